"""Readers of data sets as they are downloaded, one file each.

A reader is a module of this package with

    LAYOUT: str                              its folders and files, for `--help`
    detect(root: Path) -> bool               whether a folder has this layout
    read_dataset(root: Path) -> Dataset      its videos; raises `UserError`

To add one, add its file and a test. `faceforensics` also takes a compression,
`faceforensics/c23`; a `.csv` or `.json` file is read by `table` or `deepfakebench`.
"""

import pkgutil
from importlib import import_module
from pathlib import Path
from types import ModuleType

from preprocessing.dataset import Dataset
from preprocessing.datasets import deepfakebench, table
from runtime.cli import UserError

AUTO = "auto"
FILE_READERS = {".csv": table, ".json": deepfakebench}


def list_readers() -> dict[str, ModuleType]:
    """The readers of folders by name."""
    modules = {
        module.name: import_module(f"{__name__}.{module.name}")
        for module in pkgutil.iter_modules(__path__)
    }
    return {name: each for name, each in modules.items() if hasattr(each, "detect")}


def read_dataset(root: Path, name: str = AUTO) -> Dataset:
    """Read a data set.

    Args:
        root: the folder that holds it.
        name: a reader's name, "auto" to find the reader by the folder's layout, or a
            table of the data set's files, .csv or .json, in this folder or elsewhere.

    Raises:
        UserError: there is no such folder or reader, or no usable video.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the folder of the data set")
    try:
        return _read(root, name)
    except OSError as error:
        raise UserError(
            f"{error.filename}: cannot be read ({error.strerror})"
        ) from error


def _read(root: Path, name: str) -> Dataset:
    if reader := FILE_READERS.get(Path(name).suffix.lower()):
        file = Path(name) if Path(name).exists() else root / name
        return _not_empty(reader.read_dataset(root, file), root)
    reader_name, _, variant = name.partition("/")
    readers = list_readers()
    if name == AUTO:
        reader_name = _detect(root, readers)
    if reader_name not in readers:
        raise UserError(
            f"--dataset {name}: give auto, {', '.join(readers)}, or a .csv or .json "
            "file"
        )
    read = readers[reader_name].read_dataset
    if not variant:
        return _not_empty(read(root), root)
    if reader_name != "faceforensics":
        raise UserError(f"--dataset {name}: {reader_name} has no compressions")
    return _not_empty(read(root, variant), root)


def _detect(root: Path, readers: dict[str, ModuleType]) -> str:
    """The only reader whose layout the folder has."""
    names = [name for name, reader in readers.items() if reader.detect(root)]
    if len(names) == 1:
        return names[0]
    if names:
        raise UserError(
            f"{root}: looks like {' and '.join(names)}; choose one with --dataset"
        )
    layouts = "".join(f"\n  {name}: {each.LAYOUT}" for name, each in readers.items())
    raise UserError(
        f"{root}: is none of the known data sets. Give the folder that holds, for\n"
        f"  {layouts.strip()}\nor list any other in a table, --dataset FILE.csv "
        "(docs/data.md)"
    )


def _not_empty(dataset: Dataset, root: Path) -> Dataset:
    if not dataset.videos:
        reasons = "".join(
            f"\n  {item.file}: {item.reason}" for item in dataset.skipped[:5]
        )
        raise UserError(f"{root}: no usable video{reasons}")
    return dataset
