"""Load weight files from untrusted sources without executing code from them.

Reads  PyTorch's files, old and new, restricted to numbers and containers
       (`weights_only=True`); safetensors files, which can hold nothing else

In addition to PyTorch's own allowlist, NumPy scalars are allowed: the seven published
checkpoints contain one.
"""

import json
import re
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy._core.multiarray import scalar
from safetensors import SafetensorError, safe_open

from runtime.cli import UserError, one_line

SAFETENSORS = ".safetensors"
# How a NumPy scalar is pickled. NumPy 1 wrote the first module name, NumPy 2 writes the
# second.
_NUMPY_SCALAR: list[Callable | tuple[Callable, str]] = [
    (scalar, "numpy.core.multiarray.scalar"),
    scalar,
    np.dtype,
    type(np.dtype(np.float64)),
]


# What a file begins with that is no file of weights.
_ARCHIVES = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"(\xb5/\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!": "rar",
}
_OTHER_FORMATS = {b"\x89HDF": "HDF5 (Keras)", b"GGUF": "GGUF", b"\x93NUMPY": "NumPy"}
_ZIP = b"PK\x03\x04"  # PyTorch's format from 1.6 on is a zip archive
_OLD_PYTORCH = b"\x80\x02\x8a\x0a"  # before 1.6: a pickle of a 10-byte number
_AGAIN = "download or copy it again"


def read_weights(path: Path) -> dict:
    """Load a file to the CPU: a checkpoint's entries, or a plain state dict.

    A safetensors file, whatever its name, gives `state_dict` and the entries of its
    metadata, parsed as JSON where they are JSON. No code from the file is executed.

    Raises:
        UserError: the file is missing or damaged, is something else than weights, or
            holds objects other than weights and numbers.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give the file of weights")
    if path.is_symlink() and not path.exists():
        raise UserError(
            f"{path}: links to {path.readlink()}, which does not exist; get that file, "
            "or give another"
        )
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        entries = (
            _read_safetensors(path) if _is_safetensors(path) else _read_pytorch(path)
        )
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or one_line(error)})"
        ) from error
    if not isinstance(entries, dict):
        raise UserError(
            f"{path}: holds a {type(entries).__name__}, not weights by name"
        )
    return entries


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(1024)


def _is_safetensors(path: Path) -> bool:
    """By its contents: 8 bytes, then JSON; by its name if they say nothing."""
    head = _head(path)
    if head.startswith((_ZIP, _OLD_PYTORCH)):
        return False
    return path.suffix == SAFETENSORS or head[8:10] == b'{"'


def _read_safetensors(path: Path) -> dict:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = file.keys()  # `file` itself is not iterable
            weights = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: {_explain_safetensors(path, error)}") from error
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
    # an open file: by the name, torch.load chooses safetensors for some
    with open(path, "rb") as file:
        return _load_pytorch(path, file)


def _load_pytorch(path: Path, file: BinaryIO) -> object:
    try:
        with torch.serialization.safe_globals(_NUMPY_SCALAR), warnings.catch_warnings():
            # warnings about unusual formats, which are refused below or read anyway
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch raises many exception types for a damaged file; the user sees one line
        raise UserError(f"{path}: {_explain(path, error)}") from error


def _explain_safetensors(path: Path, error: Exception) -> str:
    if substitute := _describe_substitute(path):
        return substitute
    head = _head(path)
    size = path.stat().st_size
    header = int.from_bytes(head[:8], "little")
    # the header's length is above that of any real one where the file is no safetensors
    in_header = 8 + header > size and head[8:9] == b"{"
    if in_header or "IncompleteBuffer" in str(error):
        return _cut_off(size)
    if text := _describe_text(head):
        return text
    return f"not a safetensors file that can be read ({one_line(error)}); {_AGAIN}"


def _explain(path: Path, error: Exception) -> str:
    """What is wrong with a file, without PyTorch's advice to allow its code to run."""
    if substitute := _describe_substitute(path):
        return substitute
    message = " ".join(str(error).split())
    if refused := re.search(r"GLOBAL ([\w.]+)", message):
        return (
            f"refused: it asks for {refused[1]}, which is no part of a checkpoint and "
            "could run code; nothing of it was run. Get the file from its author, or "
            "have it saved as plain weights"
        )
    head = _head(path)
    if head.startswith(_OLD_PYTORCH) or "unexpected EOF" in message:
        return _cut_off(path.stat().st_size)
    if text := _describe_text(head):
        return text
    detail = message.partition("WeightsUnpickler error: ")[2] or message
    reason = one_line(re.split(r"[.]? Check |[.] ", detail)[0])
    return (
        f"not a checkpoint that can be read safely ({type(error).__name__}: {reason}); "
        f"{_AGAIN}"
    )


def _describe_substitute(path: Path) -> str | None:
    """What a file is that often stands in place of weights, and what to do then."""
    size = path.stat().st_size
    if size == 0:
        return f"is an empty file; {_AGAIN}"
    head = _head(path)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()  # UTF-8's mark
    if text.startswith(b"version https://git-lfs.github.com/spec/"):
        return (
            "is a Git LFS pointer, which stands for the file; run `git lfs pull` in "
            "the repository that it is from"
        )
    if text.startswith(b"<"):
        return (
            "is a web page, saved in place of the file; download the file itself, and "
            "sign in first where the site asks for it"
        )
    if head.startswith(_ZIP):
        return _describe_zip(path)
    for magic, name in _ARCHIVES.items():
        if head.startswith(magic):
            return f"is packed with {name}; unpack it and give the file inside"
    if head[257:262] == b"ustar":
        return "is a tar archive; unpack it and give the file inside"
    for magic, name in _OTHER_FORMATS.items():
        if head.startswith(magic):
            return (
                f"is a file of another format, {name}; give weights that PyTorch or "
                "safetensors has saved"
            )
    if not any(head):
        return f"begins with zeros, as a download that did not end; {_AGAIN}"
    return None


def _describe_zip(path: Path) -> str | None:
    """What a zip archive is that PyTorch cannot read; None if PyTorch wrote it."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    # what zipfile raises for a damaged archive; UnicodeDecodeError is a ValueError
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, struct.error):
        return _cut_off(path.stat().st_size)
    files = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in files:
        return (
            "is a TorchScript program, which holds code; nothing of it was run. Have "
            "its state_dict() saved instead"
        )
    if "data.pkl" in files:
        return None
    first = f", the first {one_line(names[0], 60)}" if names else ""
    return (
        f"is a zip archive of {len(names)} files{first}, not weights; unpack it and "
        "give the file of weights inside"
    )


def _describe_text(head: bytes) -> str | None:
    """Say so if a file begins as a text, such as a server's answer."""
    text = head.decode("utf-8", "ignore")
    if not all(each.isprintable() or each.isspace() for each in text):
        return None
    return f"is a text, not weights (it begins: {one_line(text, 60)}); {_AGAIN}"


def _cut_off(size: int) -> str:
    return f"is cut off or damaged ({size:,} bytes are there); {_AGAIN}"
