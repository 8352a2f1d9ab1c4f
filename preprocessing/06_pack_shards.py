"""Step 6, optional: pack the crops into WebDataset shards, some large tar files instead of millions of small files.

    python -m preprocessing.06_pack_shards --root-dir DATA        then: training.train --format wds

Reads  DATA/folds.csv, DATA/crops, DATA/landmarks, DATA/diffs
Writes DATA/shards/fold-NN-{real,fake}-NNNNN.tar: for each crop NNNNNNNN.png, .npy (landmarks, if any), .diff.png (if any),
       byte for byte as they were, and .json (its row of folds.csv); .csv beside each: the rows with shard,offset,size;
       DATA/shards/index.csv: all of those. When folds.csv or --shard-crops changes, all are packed again.
Method: WebDataset's format (github.com/webdataset/webdataset): tar files, in which what belongs together has one name up to
       the first dot. Real and fake crops and folds lie apart, so that training reads just the shards that it needs, and crops
       lie in the shuffled order of folds.csv, so that neighbours are of different videos.
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
    COLUMNS,
    SHARD_COLUMNS,
    STRING_COLUMNS,
    CropTable,
    read_crop_table,
)
from preprocessing.layout import folds_path, shard_index_path
from preprocessing.step import run_step, step_parser
from runtime.cli import UserError, positive_int, run_main
from runtime.files import atomic_file, open_csv, write_csv

SHARD_CROPS = 2000  # some 250 MB of DFDC's, landmarks and diffs included


@dataclass(frozen=True)
class Shard:
    """The `number`-th shard of the real (label 0) or fake crops of a fold. `path` is its index; the tar file lies beside it."""

    path: Path
    fold: int
    label: int
    number: int
    crops: int  # at most

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def tar(self) -> Path:
        return self.path.with_suffix(".tar")


def plan_shards(crops: CropTable, folder: Path, shard_crops: int) -> list[Shard]:
    """The shards of all crops, by fold, kind and number."""
    shards = []
    for fold in np.unique(crops["fold"]).tolist():
        for label, kind in ((0, "real"), (1, "fake")):
            for number in range(-(-len(_rows_of(crops, fold, label)) // shard_crops)):
                path = folder / f"fold-{fold:02}-{kind}-{number:05}.csv"
                shards.append(Shard(path, fold, label, number, shard_crops))
    return shards


def pack_shard(shard: Shard, root: Path, digest: str) -> None:
    """Write one shard of the folds.csv with this digest, and then its index.

    Raises:
        UserError: a crop is not there any more.
    """
    crops = _read_crops(root, digest)
    mine = _rows_of(crops, shard.fold, shard.label)[shard.number * shard.crops :][
        : shard.crops
    ]
    rows = []
    with (
        atomic_file(shard.tar) as temporary,
        tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for number, row in enumerate(mine.tolist()):
            start = tar.offset
            values = {column: _value(crops, column, row) for column in COLUMNS}
            for ending, data in (
                *_files(crops, row),
                ("json", json.dumps(values).encode()),
            ):
                entry = tarfile.TarInfo(f"{number:08}.{ending}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
            rows.append([*values.values(), shard.tar.name, start, tar.offset - start])
    write_csv(shard.path, COLUMNS + SHARD_COLUMNS, rows)


def _files(crops: CropTable, row: int) -> Iterator[tuple[str, bytes]]:
    """The files of a crop by their endings."""
    files = crops.files(row)
    try:
        yield "png", files.png.read_bytes()
    except OSError as error:
        raise UserError(
            f"{files.png}: cannot be read ({error.strerror}); run steps 2 and 5 again"
        ) from error
    for ending, path in (("npy", files.npy), ("diff.png", files.diff)):
        if path.exists():
            yield ending, path.read_bytes()


def _value(crops: CropTable, column: str, row: int) -> str | int:
    return (
        crops.name(column, row) if column in STRING_COLUMNS else int(crops[column][row])
    )


def _rows_of(crops: CropTable, fold: int, label: int) -> np.ndarray:
    return np.flatnonzero((crops["fold"] == fold) & (crops["label"] == label))


@cache
def _read_crops(root: Path, digest: str) -> CropTable:
    """Once in each worker and for each state of folds.csv, instead of the rows of each shard with each."""
    return read_crop_table(root)


def _begin(folder: Path, made_from: dict) -> None:
    """Forget shards that were made of another folds.csv or at another size."""
    note = folder / "made_from.json"
    if not note.exists() or json.loads(note.read_text()) != made_from:
        shutil.rmtree(folder, ignore_errors=True)
        with atomic_file(note) as temporary:
            temporary.write_text(json.dumps(made_from))


def _index_rows(shards: list[Shard]) -> Iterator[list[str]]:
    """The rows of the shards' own tables."""
    for shard in shards:
        with open_csv(shard.path) as file:
            yield from list(csv.reader(file))[1:]


def main(argv: list[str] | None = None) -> int:
    parser = step_parser(__doc__)
    parser.add_argument(
        "--shard-crops",
        type=positive_int,
        default=SHARD_CROPS,
        help="crops in a shard, at most",
    )
    options = parser.parse_args(argv)
    root = options.root_dir
    crops, index = read_crop_table(root), shard_index_path(root)
    digest = hashlib.sha256(folds_path(root).read_bytes()).hexdigest()
    _begin(index.parent, {"folds.csv": digest, "shard_crops": options.shard_crops})
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
        write_csv(index, COLUMNS + SHARD_COLUMNS, _index_rows(shards))
        print(
            f"6 pack shards: {len(crops)} crops in {len(shards)} shards, listed in {index}"
        )
    return status


if __name__ == "__main__":
    run_main(main)
