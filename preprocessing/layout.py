"""Where the numbered steps write below DATA: the only place that spells those paths.

The names are the winner's own, so crops made by his scripts serve here.
"""

from pathlib import Path

from runtime.files import list_names


def boxes_path(root: Path, video: str) -> Path:
    return root / "boxes" / f"{video}.json"


def crops_dir(root: Path, video: str) -> Path:
    return root / "crops" / video


def cropped_videos(root: Path) -> set[str]:
    """The names of the videos that step 2 has cut, with one directory listing."""
    return list_names(root / "crops")


def landmarks_dir(root: Path, video: str) -> Path:
    return root / "landmarks" / video


def diffs_dir(root: Path, video: str) -> Path:
    return root / "diffs" / video


def folds_path(root: Path) -> Path:
    return root / "folds.csv"


def shard_index_path(root: Path) -> Path:
    """Of the shards of step 6, which lie beside it."""
    return root / "shards" / "index.csv"
