"""Step 6, optional: pack the crops into WebDataset shards.

    python -m preprocessing.06_pack_shards --root-dir DATA

A few large tar files replace millions of small files. `training.train --format wds`
reads them.

Reads  DATA/folds.csv, DATA/crops, DATA/clips, DATA/landmarks, DATA/diffs
Writes DATA/shards/fold-NN-{real,fake}-NNNNN.tar: for each crop NNNNNNNN.png (of a clip .mp4), .npy
       (landmarks, if any) and .diff.png (if any), byte for byte, and .json (its row of
       folds.csv); a .csv for each: the rows with shard,offset,size;
       DATA/shards/index.csv: all of those rows. If folds.csv or --shard-crops changes,
       all shards are packed again.
Method: WebDataset's format (github.com/webdataset/webdataset): tar files in which the
       files of a sample share the name up to the first dot. Shards are separate by fold
       and label, so that training reads only those it needs. Crops are in the shuffled
       order of folds.csv, so that neighbours come from different videos.
"""

import csv
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np

from preprocessing.crop_table import (
    FOLDER_COLUMN,
    SHARD_COLUMNS,
    STRING_COLUMNS,
    CropTable,
    read_crop_table,
)
from preprocessing.layout import folds_path, shard_index_path
from preprocessing.step import output_root, run_step, step_parser
from runtime.cli import UserError, positive_int, run_main
from runtime.files import atomic_file, open_csv, write_csv

SHARD_CROPS = 2000  # about 250 MB for DFDC, including landmarks and diffs


@dataclass(frozen=True)
class Shard:
    """The `number`-th shard of the real (label 0) or fake (label 1) crops of a fold.

    `path` is its index, a CSV file; the tar file is next to it.
    """

    path: Path
    fold: int
    label: int
    number: int
    max_crops: int

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def tar(self) -> Path:
        return self.path.with_suffix(".tar")


def plan_shards(crops: CropTable, folder: Path, shard_crops: int) -> list[Shard]:
    """The shards of all crops, by fold, label and number."""
    shards = []
    for fold in np.unique(crops["fold"]).tolist():
        for label, label_name in ((0, "real"), (1, "fake")):
            num_crops = len(_select_rows(crops, fold, label))
            for number in range(-(-num_crops // shard_crops)):
                path = folder / f"fold-{fold:02}-{label_name}-{number:05}.csv"
                shards.append(Shard(path, fold, label, number, shard_crops))
    return shards


def pack_shard(shard: Shard, root: Path, digest: str) -> None:
    """Write one shard, and then its index.

    Args:
        digest: SHA-256 of folds.csv, the key under which a worker caches its table.

    Raises:
        UserError: a crop does not exist any more.
    """
    crops = _read_crops(root, digest)
    start = shard.number * shard.max_crops
    selected = _select_rows(crops, shard.fold, shard.label)
    selected = selected[start : start + shard.max_crops]
    rows, columns = [], packed_columns(crops)
    with (
        atomic_file(shard.tar) as temporary,
        tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for number, row in enumerate(selected.tolist()):
            offset = tar.offset
            values = {column: _value(crops, column, row) for column in columns}
            metadata = json.dumps(values).encode()
            for extension, data in (*_read_files(crops, row), ("json", metadata)):
                member = tarfile.TarInfo(f"{number:08}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
            size = tar.offset - offset
            rows.append([*values.values(), shard.tar.name, offset, size])
    write_csv(shard.path, columns + SHARD_COLUMNS, rows)


def _read_files(crops: CropTable, row: int) -> Iterator[tuple[str, bytes]]:
    """Extension and bytes of each file of a crop."""
    files = crops.files(row)
    try:
        yield files.image.suffix[1:], files.image.read_bytes()
    except OSError as error:
        raise UserError(
            f"{files.image}: cannot be read ({error.strerror}); run steps 2 and 5 again"
        ) from error
    for extension, path in (
        ("npy", files.npy),
        ("68.npy", files.npy68),
        ("diff.png", files.diff),
    ):
        if path.exists():
            yield extension, path.read_bytes()


def packed_columns(crops: CropTable) -> list[str]:
    """The columns of folds.csv that a shard's index has: all but the folder."""
    return [column for column in crops.columns if column != FOLDER_COLUMN]


def _value(crops: CropTable, column: str, row: int) -> str | int:
    if column in STRING_COLUMNS:
        return crops.name(column, row)
    return int(crops[column][row])


def _select_rows(crops: CropTable, fold: int, label: int) -> np.ndarray:
    return np.flatnonzero((crops["fold"] == fold) & (crops["label"] == label))


@cache
def _read_crops(root: Path, digest: str) -> CropTable:
    """Read folds.csv once per worker and version, so that tasks need not carry rows."""
    return read_crop_table(root, kind=None)


def _remove_outdated(folder: Path, source: dict[str, str | int]) -> None:
    """Remove shards that were packed from another folds.csv or with another size."""
    path = folder / "made_from.json"
    if not path.exists() or json.loads(path.read_text()) != source:
        shutil.rmtree(folder, ignore_errors=True)
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(source))


def _index_rows(shards: list[Shard]) -> Iterator[list[str]]:
    """The rows of all shards' indices."""
    for shard in shards:
        with open_csv(shard.path) as file:
            yield from list(csv.reader(file))[1:]


def main(argv: list[str] | None = None) -> int:
    parser = step_parser(__doc__)
    parser.add_argument(
        "--shard-crops",
        type=positive_int,
        default=SHARD_CROPS,
        help="maximum number of crops in a shard",
    )
    options = parser.parse_args(argv)
    root = output_root(options)
    crops, index = read_crop_table(root, kind=None), shard_index_path(root)
    digest = hashlib.sha256(folds_path(root).read_bytes()).hexdigest()
    source = {"folds.csv": digest, "shard_crops": options.shard_crops}
    _remove_outdated(index.parent, source)
    shards = plan_shards(crops, index.parent, options.shard_crops)
    status = run_step(
        partial(pack_shard, root=root, digest=digest),
        shards,
        lambda shard: shard.path,
        options,
        "6 pack shards",
        unit="shard",
    )
    if all(shard.path.exists() for shard in shards):
        write_csv(index, packed_columns(crops) + SHARD_COLUMNS, _index_rows(shards))
        print(
            f"6 pack shards: {len(crops)} crops in {len(shards)} shards, "
            f"listed in {index}"
        )
    return status


if __name__ == "__main__":
    run_main(main)
