"""Paths of the numbered steps' outputs below DATA. No other module builds them.

The names are those of the winner's scripts, so that crops made by them can be used.
"""

from pathlib import Path

from runtime.files import list_names


def boxes_path(root: Path, video: str) -> Path:
    return root / "boxes" / f"{video}.json"


def crops_dir(root: Path, video: str) -> Path:
    return root / "crops" / video


def cropped_videos(root: Path) -> set[str]:
    """Names of the videos with crops from step 2, from one directory listing."""
    return list_names(root / "crops")


def landmarks_dir(root: Path, video: str) -> Path:
    return root / "landmarks" / video


def diffs_dir(root: Path, video: str) -> Path:
    return root / "diffs" / video


def folds_path(root: Path) -> Path:
    return root / "folds.csv"


def shard_index_path(root: Path) -> Path:
    """The index of step 6's shards, in the same folder as the shards."""
    return root / "shards" / "index.csv"
