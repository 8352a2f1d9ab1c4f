"""Checkpoints on disk: their names, what they hold, and how they are read without running code from them.

Names  {prefix}DeepFakeClassifier_{encoder}_{fold}_{epoch}, as the winner's, and …_last for going on
Hold   epoch, state_dict, bce_best, as the winner's, and config (all settings); …_last also the optimizer and the scaler

The published seven are in PyTorch's file format of before 1.6, have `module.` before each key, no settings, and a NumPy
float, which `torch.load(weights_only=True)` refuses until that one type is allowed.
"""

import re
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError

from preprocessing.cli import UserError
from preprocessing.files import whole_file
from training.config import Config, InputSettings
from training.model import DeepFakeClassifier

NETWORK = "DeepFakeClassifier"
# what a NumPy scalar is pickled as; NumPy 1 wrote the first name of the module, NumPy 2 writes the second
_NUMPY_SCALAR = [
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
    np._core.multiarray.scalar,
    np.dtype,
    type(np.dtype(np.float64)),
]


def run_name(prefix: str, encoder: str, fold: int) -> str:
    """A run's name: what its checkpoints' names begin with. timm's `….ns_jft_in1k` is `…_ns`, as it was in 2020."""
    short = encoder.replace(".ns_jft_in1k", "_ns").replace("/", "-")
    return f"{prefix}{NETWORK}_{short}_{fold}"


def save_checkpoint(path: Path, **entries: object) -> None:
    """Write a checkpoint whole or not at all."""
    with whole_file(path) as temporary:
        torch.save(entries, temporary)


def load_checkpoint(path: Path) -> dict:
    """Read a checkpoint, old or new, to the CPU. Nothing in the file is executed.

    Raises:
        UserError: the file is missing, is no checkpoint, or holds objects other than weights and numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        with torch.serialization.safe_globals(_NUMPY_SCALAR):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file; each becomes one line for the user
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a checkpoint that can be read safely ({type(error).__name__}: {reason})") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise UserError(f"{path}: holds no `state_dict`; it is not one of this project's or the winner's checkpoints")
    checkpoint["state_dict"] = {key.removeprefix("module."): value for key, value in checkpoint["state_dict"].items()}
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
    except RuntimeError as error:
        raise UserError(f"{path}: not weights of {encoder} ({str(error).splitlines()[1].strip()[:200]})") from error
    return model.eval(), settings


def _describe(path: Path, checkpoint: dict) -> tuple[str, InputSettings]:
    """Encoder and input settings: from the checkpoint, or for the winner's from its file name."""
    if "config" in checkpoint:
        try:
            config = Config(**checkpoint["config"])
        except (ValidationError, TypeError) as error:
            raise UserError(f"{path}: made by another version of this project ({error})") from error
        return config.encoder, config.input
    named = re.search(rf"{NETWORK}_(tf_efficientnet_b[0-7])_ns_", Path(path).name)
    if not named:
        raise UserError(
            f"{path}: holds no settings, and its name does not tell the encoder; name it as the winner's, "
            f"{NETWORK}_tf_efficientnet_b7_ns_0_36"
        )
    return f"{named[1]}.ns_jft_in1k", InputSettings()
