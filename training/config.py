"""The one place for settings: a typed, frozen configuration read from YAML.

Reads  configs/*.yaml; a file may name another as `base`, and holds only what differs from it
Errors name the file, the key and the nearest key that exists.

`InputSettings` is what a network expects of its input. It is written into every checkpoint and read from it at inference;
the published checkpoints carry none, and for them its defaults, the winner's settings, hold.
"""

import difflib
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from preprocessing.crops import MARGIN_PARTS
from preprocessing.faces import INFERENCE_THRESHOLDS
from runtime.cli import UserError

Rgb = tuple[float, float, float]
MAX_BASES = 10


class InputSettings(BaseModel):
    """How a video becomes a network's input. The defaults are the winner's settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # the upper bounds keep a stranger's checkpoint from asking for all of the memory
    size: int = Field(
        380, ge=32, le=2048, description="pixels a side of the square input"
    )
    mean: Rgb = (0.485, 0.456, 0.406)  # ImageNet's, RGB, of values in 0..1
    std: Rgb = (0.229, 0.224, 0.225)
    frames_per_video: int = Field(
        32, ge=1, le=1000, description="evenly spaced frames looked at in each video"
    )
    detector_thresholds: tuple[float, float, float] = INFERENCE_THRESHOLDS
    margin_parts: int = Field(
        MARGIN_PARTS, ge=1, description="n for 1/n of the face's box added on each side"
    )


class Config(BaseModel):
    """All settings of a training run. The defaults are those of the winner's B7."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder: str = Field(
        "tf_efficientnet_b7.ns_jft_in1k",
        description="timm's name, or efficientnet_pytorch/NAME",
    )
    pretrained: str = Field(
        "hub",
        description="hub: ImageNet weights by name; none: random; else a local file",
    )
    dropout: float = Field(0.0, ge=0, lt=1)
    drop_path_rate: float = Field(0.2, ge=0, lt=1)
    input: InputSettings = InputSettings()

    epochs: int = Field(40, ge=1)
    batches_per_epoch: int = Field(2500, ge=1)
    batch_size: int = Field(12, ge=1, description="images on each GPU")
    accumulate: int = Field(
        1,
        ge=1,
        description="batches of a GPU whose gradients are added up for a step; a run that goes "
        "on with more or fewer GPUs changes it so that a step has the same images",
    )
    precision: Literal["float32", "float16", "bfloat16"] = (
        "float16"  # on a CPU training is always float32
    )
    sync_batchnorm: bool = True

    optimizer: Literal["sgd", "apex_fused_sgd"] = "sgd"
    learning_rate: float = Field(0.01, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(1e-4, ge=0)
    poly_power: float = Field(0.9, gt=0)
    max_iterations: int = Field(
        100_500,
        ge=1,
        description="the schedule's length; at least epochs x batches_per_epoch",
    )
    clip_gradient_norm: float = Field(1.0, gt=0)

    label_smoothing: float = Field(0.01, ge=0, lt=0.5)
    landmark_cutout: float = Field(0.7, ge=0, le=1, description="probability")
    hull_cutout: float = Field(
        0.2, ge=0, le=1, description="probability, where no landmark was cut out"
    )
    half_cutout: float = Field(
        0.1, ge=0, le=1, description="probability, where neither was"
    )
    augmented: float = Field(
        1.0,
        ge=0,
        le=1,
        description="share of the training crops that the augmentations are applied to",
    )
    validation_frame_step: int = Field(
        20, ge=1, description="validate on frames 0, n, 2n, …"
    )
    max_broken_crops: float = Field(
        0.01, ge=0, le=1, description="share of an epoch's crops that may be unreadable"
    )

    @model_validator(mode="after")
    def _schedule_covers_training(self) -> "Config":
        total = self.epochs * self.batches_per_epoch
        if self.max_iterations < total:
            raise ValueError(
                f"max_iterations is {self.max_iterations}, but {self.epochs} epochs of {self.batches_per_epoch} batches "
                f"are {total} iterations; set max_iterations to at least {total}"
            )
        return self


def load_config(path: Path, overrides: list[str] = ()) -> Config:
    """Read a YAML file and apply `KEY=VALUE` overrides, such as `epochs=2` or `input.size=96`.

    Raises:
        UserError: the file is missing or no YAML, a key is unknown or a value does not fit.
    """
    values = _read(Path(path))
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise UserError(
                f"--set {override}: write KEY=VALUE, for instance --set epochs=2"
            )
        place = values
        *groups, last = key.split(".")
        for group in groups:
            place = place.setdefault(group, {})
            if not isinstance(place, dict):
                raise UserError(f"--set {override}: {group!r} is no group of settings")
        place[last] = _parse(text, f"--set {override}")
    try:
        return Config(**values)
    except ValidationError as error:
        raise UserError(f"{path}: {_explain(error)}") from error
    except TypeError as error:
        raise UserError(f"{path}: {error}; keys must be words") from error


def _read(path: Path, depth: int = 0) -> dict:
    try:
        values = _parse(path.read_bytes(), path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); the project's own are in configs/"
        ) from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold `key: value` lines; see configs/b7.yaml")
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str) or depth == MAX_BASES:
        raise UserError(
            f"{path}: `base` must name another file, and files must not name each other in a circle"
        )
    return {**_read(path.parent / base, depth + 1), **values}


def _parse(text: str | bytes, where: object) -> object:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(
            f"{where}: not YAML: {' '.join(str(error).split())[:300]}"
        ) from error


def _explain(error: ValidationError) -> str:
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] != "extra_forbidden":
        return (
            f"{key}: {problem['msg']}"
            if key
            else problem["msg"].removeprefix("Value error, ")
        )
    *group, name = problem["loc"]
    known = list((InputSettings if group else Config).model_fields)
    # what the winner's own configuration called things, then the nearest spelling
    winners = {
        "size": "input.size",
        "lr": "learning_rate",
        "schedule": "poly_power",
        "max_iter": "max_iterations",
        "fp16": "precision",
    }
    near = (
        [winners[name]]
        if name in winners
        else difflib.get_close_matches(str(name), known, 1, cutoff=0.5)
    )
    return f"unknown key {key!r}; " + (
        f"did you mean {near[0]!r}?" if near else f"known keys are {', '.join(known)}"
    )
