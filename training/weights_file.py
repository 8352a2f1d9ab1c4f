"""Files of weights, which come from strangers, read without running code from them.

Reads  PyTorch's files, old and new, as numbers and containers only (`weights_only=True`); and safetensors, which can hold
       nothing else

Beyond PyTorch's own short list one thing is allowed: a NumPy number, which the published seven hold.
"""

import json
import re
import warnings
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from runtime.cli import UserError

SAFETENSORS = ".safetensors"
# what a NumPy scalar is pickled as; NumPy 1 wrote the first name of the module, NumPy 2 writes the second
_NUMPY_SCALAR = [
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
    np._core.multiarray.scalar,
    np.dtype,
    type(np.dtype(np.float64)),
]


def read_weights(path: Path) -> dict:
    """What a file holds, on the CPU: a checkpoint's entries, or the weights alone. Nothing in the file is executed.

    A safetensors file gives `state_dict` and, from its metadata, entries that are JSON.

    Raises:
        UserError: the file is missing or damaged, or holds objects other than weights and numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    entries = (
        _read_safetensors(path) if path.suffix == SAFETENSORS else _read_pytorch(path)
    )
    if not isinstance(entries, dict):
        raise UserError(
            f"{path}: holds a {type(entries).__name__}, not weights by name"
        )
    return entries


def _read_safetensors(path: Path) -> dict:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = file.keys()  # no iterator of its own
            weights = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: not a safetensors file that can be read ({error})"
        ) from error
    return {
        **{key: _from_json(text) for key, text in metadata.items()},
        "state_dict": weights,
    }


def _from_json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _read_pytorch(path: Path) -> object:
    try:
        with torch.serialization.safe_globals(_NUMPY_SCALAR), warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # of odd formats, which are refused below or read all the same
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file; each becomes one line for the user
        raise UserError(
            f"{path}: {_refusal(' '.join(str(error).split()), error)}"
        ) from error


def _refusal(text: str, error: Exception) -> str:
    """PyTorch's message without its advice to load the file with its code."""
    if named := re.search(r"GLOBAL ([\w.]+)", text):
        return (
            f"refused: it asks for {named[1]}, which is no part of a checkpoint and could run code; nothing of it was run. "
            "Get the file from its author, or have it saved as plain weights"
        )
    reason = re.split(
        r"[.]? Check |[.] ", text.partition("WeightsUnpickler error: ")[2] or text
    )[0]
    return f"not a checkpoint that can be read safely ({type(error).__name__}: {reason[:200]})"
