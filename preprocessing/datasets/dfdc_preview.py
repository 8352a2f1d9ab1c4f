"""Read the DFDC preview data set.

Reads  DATA/dataset.json = {"method_A/1/1_A/1_A_001.mp4": {"label": "fake", "set":
       "train", …}, …}, and the videos that it names
Names: the path without its ending, with `_` between folders; technique is the first
       folder, method_A or method_B.
Original: the entry's `original`, if it has one; else a fake is searched itself.
Split: `set`.
Source: B. Dolhansky et al., "The Deepfake Detection Challenge Preview Dataset" (2019).
"""

from pathlib import Path

from preprocessing.dataset import (
    LABELS,
    SPLITS,
    Dataset,
    Skipped,
    Video,
    make_dataset,
    note_unused,
)
from preprocessing.datasets.dfdc import read_metadata
from preprocessing.datasets.table import resolve_inside
from preprocessing.video import sort_files
from runtime.cli import UserError

LAYOUT = "dataset.json, original_videos/, method_A/, method_B/"
LIST = "dataset.json"


def detect(root: Path) -> bool:
    """Whether a folder has dataset.json beside original_videos or a method."""
    return (root / LIST).is_file() and any(
        (root / name).is_dir() for name in ("original_videos", "method_A", "method_B")
    )


def read_dataset(root: Path) -> Dataset:
    """Read the videos that dataset.json names.

    Raises:
        UserError: dataset.json cannot be read.
    """
    entries = read_metadata(root / LIST)
    items: list[Video | Skipped] = [
        _read_entry(root, name, entry) for name, entry in entries.items()
    ]
    listed = {item.path for item in items if isinstance(item, Video)}
    present = {path for path in root.glob("*/**/*") if path.is_file()}
    videos, unused = sort_files(present - listed)
    if videos:
        unused = {f"no entry in {LIST}": videos, **unused}
    items += note_unused(root, unused)
    return make_dataset(root, items)


def _read_entry(root: Path, name: str, entry: dict) -> Video | Skipped:
    label = entry.get("label")
    if not isinstance(label, str) or label.upper() not in LABELS:
        reason = f"the entry {name!r} has the label {label!r}; it must be real or fake"
        return Skipped(str(root / LIST), reason)
    split, original = entry.get("set") or "", entry.get("original")
    if not isinstance(split, str) or split.lower() not in ("", *SPLITS):
        reason = f"the entry {name!r} has the set {split!r}; it must be train or test"
        return Skipped(str(root / LIST), reason)
    try:
        path = resolve_inside(root, name)
        if not isinstance(original, str | None):
            raise UserError(f"the entry {name!r} has the original {original!r}")
        original_path = resolve_inside(root, original) if original else None
    except UserError as error:
        return Skipped(str(root / LIST), str(error))
    if not path.is_file():
        return Skipped(str(path), f"listed in {LIST}, but there is no such file")
    own = _name(root, path)
    is_fake = LABELS[label.upper()]
    return Video(
        path,
        own,
        is_fake,
        _name(root, original_path) if original_path and is_fake else own,
        technique=path.relative_to(root).parts[0] if is_fake else "",
        split=split.lower(),
    )


def _name(root: Path, path: Path) -> str:
    return "_".join(path.relative_to(root).with_suffix("").parts)
