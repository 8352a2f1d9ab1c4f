"""Load weight files from untrusted sources without executing code from them.

Reads  PyTorch's files, old and new, restricted to numbers and containers
       (`weights_only=True`); safetensors files, which can hold nothing else

In addition to PyTorch's own allowlist, NumPy scalars are allowed: the seven published
checkpoints contain one.
"""

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy._core.multiarray import scalar
from safetensors import SafetensorError, safe_open

from runtime.cli import UserError

SAFETENSORS = ".safetensors"
# How a NumPy scalar is pickled. NumPy 1 wrote the first module name, NumPy 2 writes the
# second.
_NUMPY_SCALAR: list[Callable | tuple[Callable, str]] = [
    (scalar, "numpy.core.multiarray.scalar"),
    scalar,
    np.dtype,
    type(np.dtype(np.float64)),
]


def read_weights(path: Path) -> dict:
    """Load a file to the CPU: a checkpoint's entries, or a plain state dict.

    A safetensors file gives `state_dict` and the entries of its metadata, parsed as
    JSON where they are JSON. No code from the file is executed.

    Raises:
        UserError: the file is missing or damaged, or holds objects other than weights
            and numbers.
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
            names = file.keys()  # `file` itself is not iterable
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
            # warnings about unusual formats, which are refused below or read anyway
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch raises many exception types for a damaged file; the user sees one line
        raise UserError(f"{path}: {_explain(error)}") from error


def _explain(error: Exception) -> str:
    """PyTorch's message, without its advice to allow the file's code to run."""
    text = " ".join(str(error).split())
    if refused := re.search(r"GLOBAL ([\w.]+)", text):
        return (
            f"refused: it asks for {refused[1]}, which is no part of a checkpoint and "
            "could run code; nothing of it was run. Get the file from its author, or "
            "have it saved as plain weights"
        )
    detail = text.partition("WeightsUnpickler error: ")[2] or text
    reason = re.split(r"[.]? Check |[.] ", detail)[0][:200]
    return (
        f"not a checkpoint that can be read safely ({type(error).__name__}: {reason})"
    )
