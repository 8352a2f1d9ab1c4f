"""Checkpoint files: their names, their entries, and safe loading of them.

Name    {prefix}DeepFakeClassifier_{encoder}_{fold}_{epoch}, as the winner's; the one to
        resume from has _last instead of the epoch
Entries epoch, state_dict and bce_best, as the winner's, and config (all settings), seed
        and parts (batches per step, over all processes); _last also has optimizer and
        scaler (their state dicts)

NAME.safetensors is read as well: the weights, and the other entries as JSON in the
metadata. No code from a file is executed.

The seven published checkpoints use PyTorch's file format from before 1.6. Their keys
start with `module.`, they have no settings, and they contain a NumPy float, which
`training.weights_file` allows.
"""

import io
import re
from pathlib import Path

import torch
from pydantic import ValidationError

from runtime.cli import UserError
from runtime.files import atomic_file
from training.config import Config, InputSettings
from training.model import DeepFakeClassifier
from training.weights_file import SAFETENSORS, read_weights

NETWORK = "DeepFakeClassifier"


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
    checkpoint = read_weights(path)
    if not isinstance(checkpoint.get("state_dict"), dict):
        raise UserError(
            f"{path}: holds no `state_dict`; it is not one of this project's or the "
            "winner's checkpoints"
        )
    checkpoint["state_dict"] = {
        str(key).removeprefix("module."): value
        for key, value in checkpoint["state_dict"].items()
    }
    return checkpoint


def load_classifier(path: Path) -> tuple[DeepFakeClassifier, InputSettings]:
    """Load a trained network, in eval mode on the CPU, and its input settings.

    Raises:
        UserError: as `load_checkpoint`, or the weights do not fit the encoder.
    """
    checkpoint = load_checkpoint(path)
    encoder, settings = _encoder_and_input(path, checkpoint)
    model = DeepFakeClassifier(encoder)
    try:
        model.load_state_dict(checkpoint["state_dict"])
    # TypeError and AttributeError: entries that are not tensors
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not weights of {encoder} ({reason})") from error
    return model.eval(), settings


def _encoder_and_input(path: Path, checkpoint: dict) -> tuple[str, InputSettings]:
    """Encoder and input settings of a checkpoint.

    A checkpoint of the winner has no settings: its file name gives the encoder, and the
    input settings are the defaults.
    """
    if "config" in checkpoint:
        try:
            config = Config(**checkpoint["config"])
        except (ValidationError, TypeError) as error:
            raise UserError(
                f"{path}: made by another version of this project ({error})"
            ) from error
        return config.encoder, config.input
    match = re.search(
        rf"{NETWORK}_(tf_efficientnet_b[0-7])_ns_",
        Path(path).name.removesuffix(SAFETENSORS),
    )
    if not match:
        raise UserError(
            f"{path}: holds no settings, and its file name does not give the encoder; "
            f"name it as the winner's, {NETWORK}_tf_efficientnet_b7_ns_0_36"
        )
    return f"{match[1]}.ns_jft_in1k", InputSettings()
