"""Paths of the numbered steps' outputs below DATA. No other module builds them.

The names are those of the winner's scripts, so that crops made by them can be used.
"""

from pathlib import Path

from preprocessing.dataset import SPLITS
from runtime.files import list_names


def boxes_path(root: Path, video: str) -> Path:
    return root / "boxes" / f"{video}.json"


def crops_dir(root: Path, video: str) -> Path:
    return root / "crops" / video


def clips_dir(root: Path, video: str) -> Path:
    return root / "clips" / video


def cropped_videos(root: Path) -> set[str]:
    """Names of the videos with crops from step 2, from one directory listing."""
    return list_names(root / "crops")


def clip_videos(root: Path) -> set[str]:
    """Names of the videos with clips, likewise."""
    return list_names(root / "clips")


def landmarks_dir(root: Path, video: str, count: int = 5) -> Path:
    """The folder of a video's landmarks, 5 or 68 of each crop."""
    return root / ("landmarks" if count == 5 else f"landmarks{count}") / video


def diffs_dir(root: Path, video: str) -> Path:
    return root / "diffs" / video


def folds_path(root: Path) -> Path:
    return root / "folds.csv"


def shard_index_path(root: Path) -> Path:
    """The index of step 6's shards, in the same folder as the shards."""
    return root / "shards" / "index.csv"


def video_list_path(root: Path, split: str) -> Path:
    """The list of the videos of a split; of all videos where there are no splits."""
    return root / (f"videos_{split}.csv" if split else "videos.csv")


def written_tables(root: Path) -> list[Path]:
    """Every table that the steps write."""
    lists = [video_list_path(root, split) for split in ("", *SPLITS)]
    return [folds_path(root), root / "failures.csv", *lists]
