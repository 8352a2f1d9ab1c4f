"""Checkpoints on disk: their names, what they hold, and how they are read without running code from them.

Names  {prefix}DeepFakeClassifier_{encoder}_{fold}_{epoch}, as the winner's, and …_last for going on
Hold   epoch, state_dict, bce_best, as the winner's, and config (all settings), seed, parts (batches in a step, of all
       processes); …_last also the optimizer and the scaler
       NAME.safetensors serves too: the weights, and the other entries as JSON in its metadata

The published seven are in PyTorch's file format of before 1.6, have `module.` before each key, no settings, and a NumPy
float, for which `training.weights_file` makes an exception.
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
    """A run's name: what its checkpoints' names begin with. timm's `….ns_jft_in1k` is `…_ns`, as it was in 2020."""
    short = encoder.replace(".ns_jft_in1k", "_ns").replace("/", "-")
    return f"{prefix}{NETWORK}_{short}_{fold}"


def save_checkpoint(path: Path, **entries: object) -> None:
    """Write a checkpoint whole or not at all."""
    buffer = (
        io.BytesIO()
    )  # a full disk then says so itself; PyTorch's own message would not
    torch.save(entries, buffer)
    with atomic_file(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load_checkpoint(path: Path) -> dict:
    """Read a checkpoint, old or new, to the CPU. Nothing in the file is executed.

    Raises:
        UserError: the file is missing, is no checkpoint, or holds objects other than weights and numbers.
    """
    checkpoint = read_weights(path)
    if not isinstance(checkpoint.get("state_dict"), dict):
        raise UserError(
            f"{path}: holds no `state_dict`; it is not one of this project's or the winner's checkpoints"
        )
    checkpoint["state_dict"] = {
        str(key).removeprefix("module."): value
        for key, value in checkpoint["state_dict"].items()
    }
    return checkpoint


def load_classifier(path: Path) -> tuple[DeepFakeClassifier, InputSettings]:
    """A trained network in eval mode on the CPU, and the input it expects.

    Raises:
        UserError: as `load_checkpoint`, or the weights do not fit the encoder.
    """
    checkpoint = load_checkpoint(path)
    encoder, settings = _describe(path, checkpoint)
    model = DeepFakeClassifier(encoder)
    try:
        model.load_state_dict(checkpoint["state_dict"])
    except (
        RuntimeError,
        TypeError,
        AttributeError,
    ) as error:  # the last two where entries are no tensors
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not weights of {encoder} ({reason})") from error
    return model.eval(), settings


def _describe(path: Path, checkpoint: dict) -> tuple[str, InputSettings]:
    """Encoder and input settings: from the checkpoint, or for the winner's from its file name."""
    if "config" in checkpoint:
        try:
            config = Config(**checkpoint["config"])
        except (ValidationError, TypeError) as error:
            raise UserError(
                f"{path}: made by another version of this project ({error})"
            ) from error
        return config.encoder, config.input
    named = re.search(
        rf"{NETWORK}_(tf_efficientnet_b[0-7])_ns_",
        Path(path).name.removesuffix(SAFETENSORS),
    )
    if not named:
        raise UserError(
            f"{path}: holds no settings, and its name does not tell the encoder; name it as the winner's, "
            f"{NETWORK}_tf_efficientnet_b7_ns_0_36"
        )
    return f"{named[1]}.ns_jft_in1k", InputSettings()
