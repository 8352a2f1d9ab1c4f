"""Checkpoint files: their names, their entries, and safe loading of them.

Name    {prefix}DeepFakeClassifier_{encoder}_{fold}_{epoch}, as the winner's; the one to
        resume from has _last instead of the epoch
Entries epoch, state_dict and bce_best, as the winner's, and config (all settings), seed
        and parts (batches per step, over all processes); _last also has optimizer and
        scaler (their state dicts)

NAME.safetensors is read as well: the weights, and the other entries as JSON in the
metadata. So are weights alone, and weights under `model` or with the prefixes of
DistributedDataParallel and torch.compile, if the name or the settings give the encoder.
No code from a file is executed.

The seven published checkpoints use PyTorch's file format from before 1.6. Their keys
start with `module.`, they have no settings, and they contain a NumPy float, which
`training.weights_file` allows.
"""

import io
import re
from pathlib import Path

import torch
from pydantic import ValidationError

from runtime.cli import UserError, one_line
from runtime.files import atomic_file
from training.attention import is_attention, is_of_head
from training.config import Config, InputSettings
from training.model import DeepFakeClassifier
from training.networks import make_classifier
from training.residuals import is_of_residuals
from training.temporal import is_over_time
from training.weights_file import SAFETENSORS, read_weights

NETWORK = "DeepFakeClassifier"
# The entries that weights may be under, also nested: `state_dict` of `model`.
WRAPPERS = ("state_dict", "model_state_dict", "model")
# What DistributedDataParallel, torch.compile and an outer module called `model` add to
# keys, also several of them or inside a key. No key of an EfficientNet has such a part.
WRAPPER_PARTS = {"module", "_orig_mod", "model"}


def run_name(prefix: str, encoder: str, fold: int) -> str:
    """A run's name, which the names of its checkpoints start with.

    timm's suffix `.ns_jft_in1k` is shortened to `_ns`, its name in 2020.
    """
    short = encoder.replace(".ns_jft_in1k", "_ns").replace("/", "-")
    return f"{prefix}{NETWORK}_{short}_{fold}"


def save_checkpoint(path: Path, **entries: object) -> None:
    """Write a checkpoint atomically."""
    # torch.save to a buffer: its own error message does not say that the disk is full
    buffer = io.BytesIO()
    torch.save(entries, buffer)
    with atomic_file(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load_checkpoint(path: Path) -> dict:
    """Load a checkpoint, ours or the winner's, to the CPU. No code of it is executed.

    Raises:
        UserError: the file is missing, is no checkpoint, or holds objects other than
            weights and numbers.
    """
    entries = read_weights(path)
    weights = _find_weights(entries)
    if weights is None:
        names = ", ".join(map(str, entries)) or "nothing"
        raise UserError(
            f"{path}: holds no `state_dict` and no weights by name, but "
            f"{one_line(names, 100)}; give one of this project's or the winner's "
            "checkpoints, or plain weights of such a network"
        )
    if weights is entries:  # weights alone
        entries = {}
    others = {key: value for key, value in entries.items() if key not in WRAPPERS}
    return {**others, "state_dict": _without_wrapper_parts(path, weights)}


def _find_weights(entries: dict) -> dict | None:
    """The weights by name: the entries themselves, or what they have as `WRAPPERS`."""
    weights: object = entries
    for _ in range(4):  # files nest them twice; a damaged one may contain itself
        if not isinstance(weights, dict):
            return None
        wrapper = next((name for name in WRAPPERS if name in weights), None)
        if wrapper is None:
            is_alone = any(isinstance(each, torch.Tensor) for each in weights.values())
            return weights if is_alone or weights is not entries else None
        weights = weights[wrapper]
    return None


def _without_wrapper_parts(path: Path, weights: dict) -> dict:
    shortened: dict = {}
    for key, value in weights.items():
        parts = str(key).split(".")
        name = ".".join(part for part in parts if part not in WRAPPER_PARTS)
        if name in shortened:
            raise UserError(
                f"{path}: holds two networks ({one_line(name, 100)} is there twice); "
                "save the weights of one of them"
            )
        shortened[name] = value
    return shortened


def load_classifier(path: Path) -> tuple[DeepFakeClassifier, InputSettings]:
    """Load a trained network, in eval mode on the CPU, and its input settings.

    Raises:
        UserError: as `load_checkpoint`, or the weights do not fit the encoder.
    """
    checkpoint = load_checkpoint(path)
    config = _settings_of(path, checkpoint)
    model = make_classifier(config)
    _load_weights(model, checkpoint["state_dict"], path, config.encoder)
    return model.eval(), config.input


def read_start(path: Path) -> dict | None:
    """The weights of a checkpoint to begin a training with; None if it is none.

    Encoder weights alone, which `DeepFakeClassifier` reads, are none.
    """
    if not path.is_file():
        return None
    weights = load_checkpoint(path)["state_dict"]
    is_network = "fc.weight" in weights and any(
        str(key).startswith("encoder.") for key in weights
    )
    return weights if is_network else None


def start_from(model: DeepFakeClassifier, weights: dict, path: Path) -> None:
    """Load such weights; a clip network also begins with a frame network's, one with a
    stem for residuals with those of one without, and one with attention maps, whose last
    layer is another, with the encoder of one without.

    Raises:
        UserError: they do not fit.
    """
    own = model.state_dict()
    for is_new in (is_over_time, is_of_residuals):
        if not any(is_new(key) for key in weights):
            weights = weights | {key: own[key] for key in own if is_new(key)}
    if is_attention(own) and not is_attention(weights):
        weights = {key: weights[key] for key in weights if not key.startswith("fc.")}
        weights |= {key: own[key] for key in own if is_of_head(key)}
    _load_weights(model, weights, path, "this encoder")


def _load_weights(
    model: DeepFakeClassifier, weights: dict, path: Path, encoder: str
) -> None:
    try:
        model.load_state_dict(weights)
    # TypeError and AttributeError: entries that are not tensors
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = _describe_misfit(model.state_dict(), weights)
        raise UserError(
            f"{path}: not weights of {encoder}: {reason or one_line(error)}; give the "
            "whole network's weights, under the name or with the settings of their "
            "encoder"
        ) from error


def _describe_misfit(expected: dict, weights: dict) -> str:
    """In what weights differ from those of a network: how many entries, and which."""
    shared = [key for key in expected if key in weights]
    other_shapes = [
        key
        for key in shared
        if getattr(weights[key], "shape", None) != expected[key].shape
    ]
    differences = {
        f"of {len(expected):,} entries are missing": [
            key for key in expected if key not in weights
        ],
        "have no place in it": [key for key in weights if key not in expected],
        "are no tensors of its shape": other_shapes,
    }
    return ", ".join(
        f"{len(keys):,} {what} ({_first(keys)})"
        for what, keys in differences.items()
        if keys
    )


def _first(keys: list[str], count: int = 2) -> str:
    names = ", ".join(one_line(key, 60) for key in keys[:count])
    return f"{names}, …" if len(keys) > count else names


def _settings_of(path: Path, checkpoint: dict) -> Config:
    """The settings of a checkpoint.

    A checkpoint of the winner has none: its file name gives the encoder, all others are
    the defaults.
    """
    if "config" in checkpoint:
        try:
            return Config(**checkpoint["config"])
        except (ValidationError, TypeError) as error:
            raise UserError(
                f"{path}: made by another version of this project, or by another "
                f"program ({one_line(error)}); use the version that made it"
            ) from error
    match = re.search(
        rf"{NETWORK}_(tf_efficientnet_b[0-7])_ns_",
        Path(path).name.removesuffix(SAFETENSORS),
    )
    if not match:
        raise UserError(
            f"{path}: holds no settings, and its file name does not give the encoder; "
            f"name it as the winner's, {NETWORK}_tf_efficientnet_b7_ns_0_36"
        )
    return Config(encoder=f"{match[1]}.ns_jft_in1k")
