"""The members of an ensemble: which checkpoints, and which faces each of them sees.

Reads  --models: checkpoints in --weights-dir, which see all faces and count alike; the
       winner's seven if not given; or
       --ensemble FILE.yaml: members with weights, faces, frames and mirror images, and
       how their scores become a label; configs/ensembles/ has those of DFDC's top five
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from inference.aggregate import POOLED, RULES, Aggregation
from runtime.cli import UserError
from training.config import read_settings

MANIFEST = Path(__file__).parent.parent / "weights" / "manifest.csv"
ENGINES = ("auto", "torch", "openvino")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
MAX_FRAMES = 1000  # of a video


class Member(BaseModel):
    """A network of an ensemble. The defaults are what `--models` gives."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: str = Field(description="in --weights-dir")
    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    faces: Literal["all", "largest"] = Field(
        default="all", description="all faces of a frame, or the largest only"
    )
    frames: int | None = Field(
        default=None,
        ge=1,
        le=MAX_FRAMES,
        description="evenly spaced frames of a video, as many as the checkpoint says if "
        "not given; with `every` at most so many, all if not given",
    )
    every: int = Field(
        default=0, ge=0, description="every n-th frame from the first; 0: evenly spaced"
    )
    mirrored: Literal["no", "mean", "alternate"] | None = Field(
        default=None,
        description="mean: the mean score of a face and its mirror image; alternate: "
        "the faces of every second frame mirrored; as the checkpoint says if not given",
    )

    @field_validator("mirrored", mode="before")
    @classmethod
    def _bare_no(cls, value: object) -> object:
        """YAML reads `no` as false."""
        return "no" if value is False else value


class EnsembleFile(BaseModel):
    """An ensemble file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    members: tuple[Member, ...] = Field(min_length=1)
    rule: str = "winner"
    shrink: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="factor of a label's distance from 0.5",
    )

    @model_validator(mode="after")
    def _counts(self) -> "EnsembleFile":
        if self.rule not in RULES:
            raise ValueError(f"rule: {self.rule!r} is none of {', '.join(RULES)}")
        if not sum(member.weight for member in self.members):
            raise ValueError("the weights of all members are 0")
        if self.rule in POOLED and not self.is_equal:
            raise ValueError(
                f"rule: {self.rule} takes the faces of all members together; leave "
                "their weights out"
            )
        return self

    @property
    def is_equal(self) -> bool:
        """Whether all members have the same weight."""
        return len({member.weight for member in self.members}) == 1


class Engine(NamedTuple):
    """What runs the networks, of `ENGINES`, in which of `PRECISIONS`."""

    name: str = "auto"
    precision: str = "auto"


def plain_members(paths: Sequence[Path | str]) -> list[Member]:
    """Checkpoints that see all faces and count alike."""
    return [Member(checkpoint=str(path)) for path in paths]


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add `--weights-dir`, `--models`, `--ensemble`, `--engine` and `--precision`."""
    parser.add_argument(
        "--weights-dir",
        type=Path,
        default=Path("weights"),
        help="folder of the checkpoints",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--models",
        nargs="+",
        action="extend",
        help="checkpoints, or ONNX files of `inference.export`, in it; the winner's seven "
        "if not given",
    )
    which.add_argument(
        "--ensemble",
        type=Path,
        metavar="FILE.yaml",
        help="members, their weights and the rule, such as configs/ensembles/first.yaml",
    )
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="auto",
        help="what runs the networks; auto: on a CPU OpenVINO if it is installed, else "
        "PyTorch; ONNX files by ONNX Runtime where it is not OpenVINO",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="of the networks; auto: float32 on a CPU, float16 on a GPU. bfloat16 is "
        "faster on processors with AMX or AVX512-BF16, and rounds scores",
    )


def engine_of(options: argparse.Namespace) -> Engine:
    """What `add_model_options` parsed of `--engine` and `--precision`."""
    return Engine(options.engine, options.precision)


def read_members(options: argparse.Namespace) -> tuple[list[Member], Aggregation]:
    """The members that the options name, with the paths of their checkpoints.

    Args:
        options: of `add_model_options`, and `rule`, None if not given.

    Raises:
        UserError: the ensemble file is wrong, or a checkpoint is not there.
    """
    if options.ensemble:
        file = read_settings(options.ensemble, EnsembleFile)
    else:
        models = options.models or published_models()
        file = EnsembleFile(members=tuple(plain_members(models)))
    paths = find_weights(
        options.weights_dir, [member.checkpoint for member in file.members]
    )
    members = [
        member.model_copy(update={"checkpoint": str(path)})
        for member, path in zip(file.members, paths)
    ]
    rule = options.rule or file.rule
    if rule in POOLED and not file.is_equal:
        raise UserError(
            f"--rule {rule} takes the faces of all members together; "
            f"{options.ensemble} weights them"
        )
    names = unique_names(paths)
    weights = {} if file.is_equal else {n: m.weight for n, m in zip(names, members)}
    return members, Aggregation(rule, weights, file.shrink)


def find_weights(weights_dir: Path, models: Sequence[str]) -> list[Path]:
    """The checkpoints' paths.

    Raises:
        UserError: one of them is not there.
    """
    paths = [weights_dir / model for model in models]
    if missing := [path for path in paths if not path.is_file()]:
        raise UserError(
            f"{missing[0]}: no such checkpoint ({len(missing)} of {len(paths)} are "
            "missing); weights/download.sh gets the published ones, train.sh makes "
            "your own, inference.export ONNX files"
        )
    return paths


def published_models() -> list[str]:
    """The names of the winner's seven checkpoints."""
    with open(MANIFEST, newline="") as file:
        return [row["name"] for row in csv.DictReader(file)]


def members_identity(members: Sequence[Member]) -> list:
    """By which a journal knows its networks: checkpoints, and the faces they see.

    A checkpoint by its path, size and time of change. Weights in the ensemble are left
    out: the faces' scores do not depend on them.
    """
    identity = []
    for member in members:
        stat = Path(member.checkpoint).stat()
        sees = member.model_dump(mode="json", exclude={"weight"})
        identity.append([sees, stat.st_size, stat.st_mtime_ns])
    return identity


def unique_names(paths: Sequence[Path]) -> list[str]:
    """The names of the checkpoints' files, or their paths where two names are equal."""
    names = [path.name for path in paths]
    names = names if len(set(names)) == len(names) else [str(path) for path in paths]
    if len(set(names)) < len(names):
        twice = max(names, key=names.count)
        raise UserError(f"{twice}: is given twice; name each checkpoint once")
    return names
