"""In-memory table of all crops, as written by step 5 or step 6.

Reads DATA/folds.csv           video,file,label,original,frame,fold and, optionally,
                               technique,split,change,folder
      DATA/shards/index.csv    the same without folder, and shard,offset,size: where
                               step 6 packed the crop

With clips folds.csv also has the column kind, crop or clip.

A row takes 20 bytes, or 36 for a crop in a shard; 12 more with all optional columns. Each
distinct name is stored once, and rows refer to it by index. Two million crops take 40 MB,
which PyTorch's data loader workers share.
"""

import csv
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from preprocessing.layout import (
    clips_dir,
    crops_dir,
    diffs_dir,
    folds_path,
    landmarks_dir,
    shard_index_path,
)
from runtime.cli import UserError
from runtime.files import open_csv

if TYPE_CHECKING:
    import torch

FORMATS = ("files", "wds")
COLUMNS = ["video", "file", "label", "original", "frame", "fold"]
# of data sets that have them; the largest value of a fake crop's diff, 0 to 255, -1
# without; the folder of crops that are not below DATA/crops
CHANGE_COLUMN, FOLDER_COLUMN = "change", "folder"
KIND_COLUMN, CROP, CLIP = "kind", "crop", "clip"
OPTIONAL_COLUMNS = ["technique", "split", CHANGE_COLUMN, FOLDER_COLUMN, KIND_COLUMN]
# offset and size in bytes of a crop together with its landmarks, diff and metadata
SHARD_COLUMNS = ["shard", "offset", "size"]
# column: key of its list of distinct names, which columns may share
STRING_COLUMNS = {
    "video": "video",
    "original": "video",
    "file": "file",
    "shard": "shard",
    **{column: column for column in ("technique", "split", FOLDER_COLUMN, KIND_COLUMN)},
}
DTYPES = {
    "video": "i4",
    "original": "i4",
    "file": "i4",
    "frame": "i4",
    "label": "i2",
    "fold": "i2",
}
OPTIONAL_DTYPES = {
    "technique": "i2",
    "split": "i2",
    CHANGE_COLUMN: "i2",
    FOLDER_COLUMN: "i4",
    KIND_COLUMN: "i2",
}
SHARD_DTYPES = {"shard": "i4", "size": "i4", "offset": "i8"}
CHUNK_ROWS = 500  # per read: fits the CPU cache, twice as fast as 100,000


class CropFiles(NamedTuple):
    """Paths of a crop or clip, its diff, and its 5 and 68 landmarks; all but the first
    may not exist. A clip has those of its middle frame.
    """

    image: Path
    npy: Path
    diff: Path
    npy68: Path


class CropTable:
    """Rows of the table.

    `rows` is a structured array (N,). label is 1 for FAKE. The columns of
    `STRING_COLUMNS` are indices of names; `name` looks them up.
    """

    def __init__(self, root: Path, names: dict[str, np.ndarray], rows: np.ndarray):
        self.root, self.rows, self._names = root, rows, names
        self._shared: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, column: str) -> np.ndarray:
        return self.rows[column]

    @property
    def in_shards(self) -> bool:
        """Whether the crops are packed in shards."""
        return "shard" in self.rows.dtype.names

    @property
    def columns(self) -> list[str]:
        """The columns of folds.csv that are there."""
        names = self.rows.dtype.names
        return COLUMNS + [column for column in OPTIONAL_COLUMNS if column in names]

    def is_value(self, column: str, value: str) -> np.ndarray:
        """Whether an optional column has a value, (N,) bool; false where there is none."""
        if column not in self.columns:
            return np.zeros(len(self), bool)
        places = np.flatnonzero(self._names[column] == os.fsencode(value))
        return np.isin(self.rows[column], places)

    def counts(self) -> dict[str, int]:
        """Crops by technique: real first, then the techniques by name, or fake."""
        is_fake = self.rows["label"] == 1
        counts = {"real": int((~is_fake).sum())}
        if "technique" not in self.columns:
            return counts | {"fake": int(is_fake.sum())}
        numbers = np.bincount(self.rows["technique"][is_fake])
        names = [os.fsdecode(name) or "fake" for name in self._names["technique"]]
        found = {name: int(count) for name, count in zip(names, numbers) if count}
        return counts | dict(sorted(found.items()))

    def select(self, mask: np.ndarray) -> "CropTable":
        """The rows selected by a boolean mask (N,) or by row indices."""
        return CropTable(self.root, self._names, self.rows[mask])

    def name(self, column: str, row: int) -> str:
        """The value of a string column."""
        return os.fsdecode(self._names[STRING_COLUMNS[column]][self.rows[column][row]])

    def files(self, row: int) -> CropFiles:
        """Paths of a crop's files from steps 2 to 4."""
        video, file = self.name("video", row), self.name("file", row)
        stem = Path(file).stem
        folder, owner = crops_dir(self.root, video), self.name("original", row)
        if self.is_clip(row):
            folder = clips_dir(self.root, video)
        if FOLDER_COLUMN in self.columns and (own := self.name(FOLDER_COLUMN, row)):
            folder, owner = self.root / own, video
        return CropFiles(
            folder / file,
            landmarks_dir(self.root, owner) / f"{stem}.npy",
            diffs_dir(self.root, video) / f"{stem}_diff.png",
            landmarks_dir(self.root, owner, 68) / f"{stem}.npy",
        )

    def is_clip(self, row: int) -> bool:
        return KIND_COLUMN in self.columns and self.name(KIND_COLUMN, row) == CLIP

    def original_rows(self) -> np.ndarray:
        """The row of the original's crop of the same file name, (N,); -1 where none is.

        Only fakes have one. Crops that exist already were not cut with one box, so none
        of them has.
        """
        width = int(self.rows["file"].max()) + 1 if len(self) else 1
        keys = self.rows["video"].astype(np.int64) * width + self.rows["file"]
        wanted = self.rows["original"].astype(np.int64) * width + self.rows["file"]
        order = np.argsort(keys)
        places = np.searchsorted(keys, wanted, sorter=order)
        found = order[np.minimum(places, len(self) - 1)]
        is_pair = (keys[found] == wanted) & (self.rows["label"] == 1)
        is_pair &= self.rows["video"] != self.rows["original"]
        if FOLDER_COLUMN in self.columns:
            is_pair &= self.is_value(FOLDER_COLUMN, "")
        return np.where(is_pair, found, -1)

    def __getstate__(self) -> dict[str, Any]:
        """Move the rows to shared memory, so that no process has its own copy.

        PyTorch passes a tensor in shared memory to another process as a handle.
        """
        import torch

        if self._shared is None:
            self._shared = torch.from_numpy(self.rows.view(np.uint8)).share_memory_()
            self.rows = self._shared.numpy().view(self.rows.dtype)
        return {
            "root": self.root,
            "_names": self._names,
            "_shared": self._shared,
            "_dtype": self.rows.dtype,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        dtype = state.pop("_dtype")
        self.__dict__.update(state)
        self.rows = state["_shared"].numpy().view(dtype)


def read_crop_table(
    root: Path, format: str = "files", kind: str | None = CROP
) -> CropTable:
    """Read DATA/folds.csv, or DATA/shards/index.csv where `format` is "wds".

    Args:
        kind: the rows to read, of crops or of clips; None: of both.

    Raises:
        UserError: the file cannot be read, lacks a column, has an invalid row, or lists
            no crops.
    """
    root = Path(root)
    in_shards = format == "wds"
    path, step = (shard_index_path(root), 6) if in_shards else (folds_path(root), 5)
    required = DTYPES | SHARD_DTYPES if in_shards else DTYPES
    names: dict[str, dict[str, int]] = {key: {} for key in STRING_COLUMNS.values()}
    try:
        with open_csv(path) as file:
            chunks = list(_read_chunks(csv.reader(file), required, names))
    except OSError as error:
        option = " --format wds" if in_shards else ""
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); "
            f"run ./preprocess_data.sh {root}{option}"
        ) from error
    except (ValueError, OverflowError, csv.Error) as error:
        raise UserError(
            f"{path}: {error}; run preprocessing step {step} again"
        ) from error
    if not chunks:
        raise UserError(f"{path}: lists no crops; run ./preprocess_data.sh {root}")
    name_arrays = {
        key: np.array([*map(os.fsencode, indices)] or [b""])
        for key, indices in names.items()
    }
    table = CropTable(root, name_arrays, np.concatenate(chunks))
    if kind is None or (KIND_COLUMN not in table.columns and kind == CROP):
        return table
    table = table.select(table.is_value(KIND_COLUMN, kind))
    if not len(table):
        raise UserError(
            f"{path}: lists no {kind}s; run ./preprocess_data.sh again"
            + " with --clips" * (kind == CLIP)
            + " with --format wds" * in_shards
        )
    return table


def _read_chunks(
    reader: Iterator[list[str]],
    required: dict[str, str],
    names: dict[str, dict[str, int]],
) -> Iterator[np.ndarray]:
    """Read a CSV's rows as structured arrays, and add new names to `names`.

    Raises:
        ValueError: a column is missing or a row is invalid; the message has its line.
    """
    header: list[str] = next(reader, [])
    wanted = [column for column in COLUMNS + SHARD_COLUMNS if column in required]
    if missing := [column for column in wanted if column not in header]:
        raise ValueError(f"lacks the column {', '.join(missing)}")
    optional = OPTIONAL_DTYPES.items()
    dtypes = required | {
        column: dtype for column, dtype in optional if column in header
    }
    line = 1
    while chunk := list(islice(reader, CHUNK_ROWS)):
        if not (filled := [row for row in chunk if row]):  # blank lines only
            line += len(chunk)
            continue
        try:
            columns = dict(zip(header, zip(*filled, strict=True)))
            rows = np.empty(len(columns["video"]), [*dtypes.items()])
            for column, dtype in dtypes.items():
                values: Iterable[int]
                if column in STRING_COLUMNS:
                    indices = names[STRING_COLUMNS[column]]
                    values = (
                        indices.setdefault(name, len(indices))
                        for name in columns[column]
                    )
                else:
                    values = map(int, columns[column])
                rows[column] = np.fromiter(values, dtype, len(rows))
        except (ValueError, OverflowError) as error:
            raise ValueError(
                _first_bad_line(chunk, header, dtypes, line) or str(error)
            ) from error
        line += len(chunk)
        yield rows


def _first_bad_line(
    chunk: list[list[str]], header: list[str], dtypes: dict[str, str], lines_before: int
) -> str:
    """Number and error of the first invalid row of a chunk; empty if there is none."""
    for number, row in enumerate(chunk, lines_before + 1):
        try:
            if row and len(row) != len(header):
                raise ValueError(f"{len(row)} values for {len(header)} columns")
            for column, text in zip(header, row):
                if column in dtypes and column not in STRING_COLUMNS:
                    np.array(int(text), dtypes[column])
        except (ValueError, OverflowError) as error:
            return f"line {number}: {error}"
    return ""
