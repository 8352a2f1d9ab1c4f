"""All training settings: a typed, frozen configuration read from YAML.

Reads  configs/*.yaml; a file may name another as `base` and override some of its keys

Errors name the file, the key and the closest existing key.

`InputSettings` describes a network's input. It is saved in every checkpoint and used
again at inference. The published checkpoints have none; for them its defaults apply,
which are the winner's settings.
"""

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from preprocessing.clips import SECONDS
from preprocessing.crop_table import CLIP, CROP
from preprocessing.crops import MARGIN_PARTS
from preprocessing.faces import INFERENCE_THRESHOLDS
from runtime.cli import UserError, one_line

Rgb = tuple[float, float, float]
Temporal = Literal["depthwise", "dense", "none"]  # `training.temporal`
MAX_BASES = 10  # files that refer to one another by `base`

# Names of settings in the winner's configuration, and here.
RENAMED_KEYS = {
    "size": "input.size",
    "lr": "learning_rate",
    "max_iter": "max_iterations",
    "fp16": "precision",
}


class InputSettings(BaseModel):
    """How a video becomes a network's input. The defaults are the winner's settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # The upper bounds limit the memory that an untrusted checkpoint can ask for.
    size: int = Field(
        default=380, ge=32, le=2048, description="side of the square input, in pixels"
    )
    # ImageNet's mean and standard deviation, RGB, of values in 0..1
    mean: Rgb = (0.485, 0.456, 0.406)
    std: Rgb = (0.229, 0.224, 0.225)
    frames_per_video: int = Field(
        default=32, ge=1, le=1000, description="evenly spaced frames of each video"
    )
    detector_thresholds: tuple[float, float, float] = INFERENCE_THRESHOLDS
    margin_parts: int = Field(
        default=MARGIN_PARTS,
        ge=1,
        description="n: a margin of 1/n of the face's bounding box on each side",
    )
    mirrored: bool = Field(
        default=False,
        description="test-time augmentation: the mean score of a face and its mirror "
        "image, at twice the cost",
    )
    clip_frames: int = Field(
        default=0,
        ge=0,
        le=32,
        description="frames of a clip, for a network that sees change over time; 0: "
        "single frames",
    )
    clip_spacing: float = Field(
        default=1 / 15, gt=0, le=2, description="seconds between the frames of a clip"
    )
    clips_per_video: int = Field(
        default=4, ge=1, le=64, description="evenly spaced clips of each face"
    )

    @field_validator("clip_frames")
    @classmethod
    def _no_clip_of_one_frame(cls, value: int) -> int:
        if value == 1:
            raise ValueError("a clip has 2 frames or more; 0 means single frames")
        return value

    @property
    def kind(self) -> str:
        """Of the rows of folds.csv that the network trains on."""
        return CLIP if self.clip_frames else CROP


class Config(BaseModel):
    """All settings of a training run. The defaults are those of the winner's B7."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder: str = Field(
        default="tf_efficientnet_b7.ns_jft_in1k",
        description="a network of timm, or efficientnet_pytorch/NAME",
    )
    pretrained: str = Field(
        default="hub",
        description="hub: weights by name, downloaded; package: ImageNet weights inside "
        "an installed package; none: random; or a local file of encoder weights, or "
        "a checkpoint",
    )
    train: Literal["all", "norms"] = Field(
        default="all",
        description="all parameters, or those of normalisation layers and the last layer",
    )
    head: Literal["average", "attention"] = Field(
        default="average",
        description="average pooling, or eight attention maps as the second-placed "
        "team's WS-DAN, which trains three passes a step",
    )
    srm: bool = Field(
        default=False,
        description="a second stem that sees noise residuals; it adds nothing at first",
    )
    temporal: Temporal = Field(
        default="depthwise",
        description="convolutions over time of a clip network: depthwise, or dense as "
        "the third-placed team's",
    )
    dropout: float = Field(default=0.0, ge=0, lt=1)
    drop_path_rate: float = Field(default=0.2, ge=0, lt=1)
    input: InputSettings = InputSettings()

    epochs: int = Field(default=40, ge=1)
    batches_per_epoch: int = Field(default=2500, ge=1)
    batch_size: int = Field(default=12, ge=1, description="images on each GPU")
    accumulate: int = Field(
        default=1,
        ge=1,
        description="gradient accumulation: batches per GPU and step; a run that is "
        "resumed on more or fewer GPUs adapts it to keep the images per step",
    )
    # on a CPU training is always float32
    precision: Literal["float32", "float16", "bfloat16"] = "float16"
    sync_batchnorm: bool = True

    optimizer: Literal["sgd", "apex_fused_sgd", "adamw"] = "sgd"
    learning_rate: float = Field(default=0.01, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(default=1e-4, ge=0)
    schedule: Literal["poly", "cosine", "exponential"] = "poly"
    poly_power: float = Field(default=0.9, gt=0)
    epoch_decay: float = Field(
        default=0.95,
        gt=0,
        le=1,
        description="factor of an exponential schedule's learning rate in each epoch",
    )
    warmup: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="fraction of max_iterations over which a cosine schedule rises "
        "linearly from 0; 0.25 is a one-cycle schedule",
    )
    max_iterations: int = Field(
        default=100_500,
        ge=1,
        description="the schedule's length; at least epochs x batches_per_epoch",
    )
    clip_gradient_norm: float = Field(default=1.0, gt=0)
    ema: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="decay of the exponential moving average of the weights, with "
        "which validation and prediction work; 0: none",
    )
    sam: float = Field(
        default=0.0,
        ge=0,
        description="rho of sharpness-aware minimisation, which takes two passes a "
        "step; 0: none",
    )

    time_learning_rate: float = Field(
        default=1.0,
        gt=0,
        description="factor of the learning rate of a clip network's weights over time, "
        "which begin at zero",
    )
    alternate: int = Field(
        default=0,
        ge=0,
        description="n, of a clip network: one step in n trains the encoder's weights of "
        "single frames, all others those over time; 0: every step trains both",
    )

    label_smoothing: float = Field(default=0.01, ge=0, lt=0.5)
    landmark_cutout: float = Field(default=0.7, ge=0, le=1, description="probability")
    hull_cutout: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="probability, if the landmark cutout is not applied",
    )
    half_cutout: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="probability, if neither of the others is applied",
    )
    augmented: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="fraction of the training crops that are augmented",
    )
    self_blended: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="fraction of the fakes that are a real crop of the same batch "
        "blended with itself; at 1 training needs no fakes, validation does",
    )
    part_blended: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="fraction of those blends that change one part of the face only, "
        "from a copy that is moved further or mirrored",
    )
    pair_mixup: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="probability that a fake crop is mixed with its original's crop",
    )
    cutmix: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="probability of CutMix, of a batch; of clips the box is cut in time "
        "too",
    )
    codec: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="probability of strong compression: JPEG, H.264 or down-scaling",
    )
    unchanged: Literal["keep", "drop", "real"] = Field(
        default="keep",
        description="fake crops that equal their original's: train on them, leave them "
        "out, or call them real",
    )
    teachers: tuple[str, ...] = Field(
        default=(),
        description="checkpoints whose mean logit the network learns (distillation)",
    )
    soft_share: float = Field(
        default=0.9,
        ge=0,
        le=1,
        description="of the teachers' answer in the target; the rest is the label",
    )
    validation_frame_step: int = Field(
        default=20, ge=1, description="validate on frames 0, n, 2n, …"
    )
    max_broken_crops: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="fraction of an epoch's crops that may be unreadable",
    )

    @model_validator(mode="after")
    def _schedule_covers_training(self) -> "Config":
        total = self.epochs * self.batches_per_epoch
        if self.max_iterations < total:
            raise ValueError(
                f"max_iterations is {self.max_iterations}, but {self.epochs} epochs of "
                f"{self.batches_per_epoch} batches are {total} iterations; "
                f"set max_iterations to at least {total}"
            )
        return self

    @model_validator(mode="after")
    def _clips(self) -> "Config":
        frames, spacing = self.input.clip_frames, self.input.clip_spacing
        if self.alternate and (not frames or self.temporal == "none"):
            raise ValueError(
                "alternate needs weights over time: set input.clip_frames, and temporal "
                "to depthwise or dense"
            )
        if self.alternate == 1:
            raise ValueError("alternate=1 never trains the weights over time")
        if self.temporal == "dense" and not frames:
            raise ValueError("temporal: dense needs clips: set input.clip_frames")
        if frames and self.head == "attention":
            raise ValueError("head: attention sees single frames, not clips")
        if frames and self.pair_mixup:
            raise ValueError("pair_mixup mixes crops; it does not know clips")
        if frames and (frames - 1) * spacing > SECONDS:
            raise ValueError(
                f"{frames} frames {spacing:.3g} s apart take more than the "
                f"{SECONDS:g} s of a clip"
            )
        return self

    @model_validator(mode="after")
    def _sam_without_scaler(self) -> "Config":
        if self.sam and self.head == "attention":
            raise ValueError(
                "head: attention trains three passes a step; leave sam out"
            )
        if self.sam and self.precision == "float16":
            raise ValueError(
                "sam takes two passes, which the gradient scaler of float16 does not "
                "follow; set precision to bfloat16 or float32"
            )
        return self


Settings = TypeVar("Settings", bound=BaseModel)


def read_settings(path: Path, kind: type[Settings]) -> Settings:
    """Read a YAML file of typed settings.

    Raises:
        UserError: the file is missing or not YAML, a key is unknown or a value invalid.
    """
    return _check(path, _read(path), kind)


def add_set_option(parser: argparse.ArgumentParser) -> None:
    """Add `--set`, the overrides of `load_config`."""
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="override settings of the config file",
    )


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file and apply overrides.

    Args:
        overrides: `KEY=VALUE` each, such as `epochs=2` or `input.size=96`.

    Raises:
        UserError: the file is missing or not YAML, a key is unknown or a value invalid.
    """
    values = _read(Path(path))
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise UserError(
                f"--set {override}: write KEY=VALUE, for instance --set epochs=2"
            )
        section = values
        *groups, last = key.split(".")
        for group in groups:
            section = section.setdefault(group, {})
            if not isinstance(section, dict):
                raise UserError(f"--set {override}: {group!r} is no group of settings")
        section[last] = _parse(text, f"--set {override}")
    return _with_described_input(_check(path, values, Config))


def _check(path: Path, values: dict, kind: type[Settings]) -> Settings:
    try:
        return kind(**values)
    except ValidationError as error:
        raise UserError(f"{path}: {_explain(error, kind)}") from error
    except TypeError as error:
        raise UserError(f"{path}: {error}; keys must be words") from error


def _with_described_input(config: Config) -> Config:
    """Take size, mean and std from timm's description, where they are not set.

    EfficientNets of the published form keep the winner's.
    """
    from training.model import describe_input, has_published_form

    if has_published_form(config.encoder):
        return config
    own = config.input.model_fields_set if "input" in config.model_fields_set else set()
    described = describe_input(config.encoder)
    new = {key: value for key, value in described.items() if key not in own}
    return config.model_copy(update={"input": config.input.model_copy(update=new)})


def _read(path: Path, depth: int = 0) -> dict:
    try:
        values = _parse(path.read_bytes(), path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); "
            "the project's own configurations are in configs/"
        ) from error
    if not isinstance(values, dict):
        raise UserError(
            f"{path}: must hold `key: value` lines, as those in configs/ do"
        )
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str) or depth == MAX_BASES:
        raise UserError(
            f"{path}: `base` must name another file, and files must not refer to each "
            "other in a circle"
        )
    return {**_read(path.parent / base, depth + 1), **values}


def _parse(text: str | bytes, source: object) -> object:
    try:
        return yaml.load(text, _UniqueKeyLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{source}: not YAML: {one_line(error, 300)}") from error


class _UniqueKeyLoader(yaml.SafeLoader):
    """`yaml.SafeLoader`, which refuses a key that is given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        given = [key.value for key, _ in node.value]
        if twice := [key for key in given if given.count(key) > 1]:
            raise yaml.YAMLError(f"{twice[0]!r} is given twice")
        return super().construct_mapping(node, deep)


def _explain(error: ValidationError, kind: type[BaseModel]) -> str:
    """The first problem of a validation error, in one line."""
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"]
    if problem["type"] != "extra_forbidden":
        return f"{key}: {message}" if key else message.removeprefix("Value error, ")
    *groups, name = problem["loc"]
    for group in groups:
        kind = _settings_of(kind, group)
    known = list(kind.model_fields)
    if name in RENAMED_KEYS and kind is Config:
        closest = [RENAMED_KEYS[str(name)]]
    else:
        closest = difflib.get_close_matches(str(name), known, 1, cutoff=0.5)
    hint = (
        f"did you mean {closest[0]!r}?"
        if closest
        else f"known keys are {', '.join(known)}"
    )
    return f"unknown key {key!r}; {hint}"


def _settings_of(kind: type[BaseModel], group: int | str) -> type[BaseModel]:
    """The settings that a key holds, or each element of its list."""
    if isinstance(group, int):
        return kind
    annotation = kind.model_fields[group].annotation
    return next(
        each
        for each in (annotation, *get_args(annotation))
        if get_origin(each) is None and isinstance(each, type)
        if issubclass(each, BaseModel)
    )
