"""The table of all crops, as step 5 and step 6 write it, in memory: 20 bytes a crop, 36 where it lies in a shard.

Reads DATA/folds.csv           video,file,label,original,frame,fold
      DATA/shards/index.csv    the same and shard,offset,size: where step 6 packed the crop

Names stand once; a row refers to them by number. Two million crops take 40 MB, and PyTorch's loader processes share them.
"""

import csv
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from preprocessing.layout import (
    crops_dir,
    diffs_dir,
    folds_path,
    landmarks_dir,
    shard_index_path,
)
from runtime.cli import UserError
from runtime.files import open_csv

FORMATS = ("files", "wds")
COLUMNS = ["video", "file", "label", "original", "frame", "fold"]
SHARD_COLUMNS = [
    "shard",
    "offset",
    "size",
]  # of a crop and what belongs to it, in bytes
STRING_COLUMNS = {
    "video": "video",
    "original": "video",
    "file": "file",
    "shard": "shard",
}  # a column, and whose names it shares
KINDS = {
    "video": "i4",
    "original": "i4",
    "file": "i4",
    "frame": "i4",
    "label": "i2",
    "fold": "i2",
}
SHARD_DTYPES = {"shard": "i4", "size": "i4", "offset": "i8"}
CHUNK = 500  # rows read at a time: what fits the cache is twice as fast as 100,000


class CropFiles(NamedTuple):
    """A crop's own file, its landmarks and its diff. The last two may not be there."""

    png: Path
    npy: Path
    diff: Path


class CropTable:
    """Rows of the table. `rows` is a structured array (N,): label is 1 for FAKE; video, original, file and shard are
    numbers of names, for which ask `name`."""

    def __init__(self, root: Path, names: dict[str, np.ndarray], rows: np.ndarray):
        self.root, self.rows, self._names = root, rows, names
        self._shared = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, column: str) -> np.ndarray:
        return self.rows[column]

    @property
    def packed(self) -> bool:
        """Whether the crops lie in shards."""
        return "shard" in self.rows.dtype.names

    def where(self, mask: np.ndarray) -> "CropTable":
        """The rows where a mask (N,) is true, or of these numbers."""
        return CropTable(self.root, self._names, self.rows[mask])

    def name(self, column: str, row: int) -> str:
        return os.fsdecode(self._names[STRING_COLUMNS[column]][self.rows[column][row]])

    def files(self, row: int) -> CropFiles:
        """Where steps 2 to 4 wrote what belongs to a crop."""
        video, file = self.name("video", row), self.name("file", row)
        stem = Path(file).stem
        return CropFiles(
            crops_dir(self.root, video) / file,
            landmarks_dir(self.root, self.name("original", row)) / f"{stem}.npy",
            diffs_dir(self.root, video) / f"{stem}_diff.png",
        )

    def __getstate__(self) -> dict:
        """For another process: PyTorch passes a tensor of shared memory as such, so no process has rows of its own."""
        import torch

        if self._shared is None:
            self._shared = torch.from_numpy(self.rows.view(np.uint8)).share_memory_()
            self.rows = self._shared.numpy().view(self.rows.dtype)
        return {
            "root": self.root,
            "_names": self._names,
            "_shared": self._shared,
            "_kind": self.rows.dtype,
        }

    def __setstate__(self, state: dict) -> None:
        kind = state.pop("_kind")
        self.__dict__.update(state)
        self.rows = self._shared.numpy().view(kind)


def read_crop_table(root: Path, form: str = "files") -> CropTable:
    """Read DATA/folds.csv, or the index of the shards where `form` is "wds".

    Raises:
        UserError: the file is missing, lacks a column or a number, or lists nothing.
    """
    root = Path(root)
    packed = form == "wds"
    path, step = (shard_index_path(root), 6) if packed else (folds_path(root), 5)
    names: dict[str, dict[str, int]] = {whose: {} for whose in STRING_COLUMNS.values()}
    try:
        with open_csv(path) as file:
            parts = list(
                _chunks(
                    csv.reader(file), KINDS | (SHARD_DTYPES if packed else {}), names
                )
            )
    except OSError as error:
        option = " --format wds" if packed else ""
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); run ./preprocess_data.sh {root}{option}"
        ) from error
    except (ValueError, OverflowError, csv.Error) as error:
        raise UserError(
            f"{path}: {error}; run preprocessing step {step} again"
        ) from error
    if not parts:
        raise UserError(f"{path}: lists no crops; run ./preprocess_data.sh {root}")
    known = {
        whose: np.array([*map(os.fsencode, numbers)] or [b""])
        for whose, numbers in names.items()
    }
    return CropTable(root, known, np.concatenate(parts))


def _chunks(
    reader, kinds: dict[str, str], names: dict[str, dict[str, int]]
) -> Iterator[np.ndarray]:
    """A CSV's rows as structured arrays; names that are new get numbers.

    Raises:
        ValueError: a column or a number is missing, with the line.
    """
    header = next(reader, [])
    if missing := [
        column
        for column in COLUMNS + SHARD_COLUMNS
        if column in kinds and column not in header
    ]:
        raise ValueError(f"lacks the column {', '.join(missing)}")
    line = 1
    while chunk := list(islice(reader, CHUNK)):
        if not (filled := [row for row in chunk if row]):  # blank lines only
            line += len(chunk)
            continue
        try:
            columns = dict(zip(header, zip(*filled, strict=True)))
            rows = np.empty(len(columns["video"]), [*kinds.items()])
            for column, dtype in kinds.items():
                if column in STRING_COLUMNS:
                    numbers = names[STRING_COLUMNS[column]]
                    values = (
                        numbers.setdefault(name, len(numbers))
                        for name in columns[column]
                    )
                else:
                    values = map(int, columns[column])
                rows[column] = np.fromiter(values, dtype, len(rows))
        except (ValueError, OverflowError) as error:
            raise ValueError(
                _first_bad_line(chunk, header, kinds, line) or str(error)
            ) from error
        line += len(chunk)
        yield rows


def _first_bad_line(
    chunk: list[list[str]], header: list[str], kinds: dict[str, str], before: int
) -> str:
    for number, row in enumerate(chunk, before + 1):
        try:
            if row and len(row) != len(header):
                raise ValueError(f"{len(row)} values for {len(header)} columns")
            for column, text in zip(header, row):
                if column in kinds and column not in STRING_COLUMNS:
                    np.array(int(text), kinds[column])
        except (ValueError, OverflowError) as error:
            return f"line {number}: {error}"
    return ""
