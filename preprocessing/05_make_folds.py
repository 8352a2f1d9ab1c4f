"""Step 5: list every crop with its label and its fold.

    python -m preprocessing.05_make_folds --root-dir DATA

Reads  the data set's lists, such as DATA/dfdc_train_part_N/metadata.json, and the names
       below DATA/crops and DATA/clips
Writes DATA/folds.csv: video,file,label,original,frame,fold; label 0 is REAL, 1 is FAKE;
       where the data set has them also technique,split; folder, where the crops are not
       below DATA/crops; kind, crop or clip, where there are clips. Test crops have the fold -1. With --measure-changes also change:
       the largest value of a fake crop's diff, 0 to 255, -1 without one
       DATA/videos_SPLIT.csv, where the data set has splits, else videos.csv where it has
       techniques: filename,label,technique,split,video, for `inference.predict --list`
       and `evaluation.score --labels`
Method: the winner's 16 folds; which video is in which is chosen by the reader of the
       data set (`preprocessing.datasets`). He listed two actors, frames up to 310, and
       only real videos that have a fake; here all are listed.
"""

import argparse
import os
import random
import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import cv2
from tqdm import tqdm

from preprocessing.clips import CLIP_SUFFIX
from preprocessing.crop_table import (
    CHANGE_COLUMN,
    CLIP,
    COLUMNS,
    CROP,
    FOLDER_COLUMN,
    KIND_COLUMN,
    OPTIONAL_COLUMNS,
)
from preprocessing.crops import read_image
from preprocessing.dataset import Dataset, Video
from preprocessing.layout import (
    clip_videos,
    clips_dir,
    cropped_videos,
    crops_dir,
    diffs_dir,
    folds_path,
    video_list_path,
)
from preprocessing.step import open_dataset, step_parser
from runtime.cli import UserError, run_main
from runtime.executor import executor_options, map_items
from runtime.files import write_csv

MAX_FRAME = 2**31 - 1  # of the crop table's 32 bits
VIDEO_COLUMNS = ["filename", "label", "technique", "split", "video"]


def list_crops(dataset: Dataset) -> tuple[array, list[str]]:
    """List all crops and clips: index of its video in `dataset.videos`, file name."""
    video_indices: array[int] = array("i")
    files: list[str] = []
    cropped, with_clips = cropped_videos(dataset.root), clip_videos(dataset.root)
    progress = tqdm(dataset.videos, desc="5 make folds", unit="video")
    for index, video in enumerate(progress):
        crops = [path.name for path in video.crops]
        if not crops and video.name in cropped:
            crops = _names(crops_dir(dataset.root, video.name), ".png")
        if video.name in with_clips:
            crops += _names(clips_dir(dataset.root, video.name), CLIP_SUFFIX)
        video_indices.extend([index] * len(crops))
        files += map(sys.intern, crops)
    return video_indices, files


def _names(folder: Path, suffix: str) -> list[str]:
    return [name for name in sorted(os.listdir(folder)) if name.endswith(suffix)]


def largest_changes(video: Video, root: Path) -> dict[str, int]:
    """The largest value of each of a fake's diffs, by the crop's name without ending.

    Raises:
        UserError: a diff cannot be read.
    """
    folder = diffs_dir(root, video.name)
    return {
        path.stem.removesuffix("_diff"): int(
            read_image(path, cv2.IMREAD_GRAYSCALE).max()
        )
        for path in sorted(folder.glob("*_diff.png"))
    }


def measure_changes(
    dataset: Dataset, options: argparse.Namespace
) -> dict[tuple[str, str], int]:
    """`largest_changes` of all fakes, by video and name of the crop."""
    changes: dict[tuple[str, str], int] = {}
    for video, found, error in map_items(
        partial(largest_changes, root=dataset.root),
        dataset.fakes,
        executor_options(options),
        "5 measure changes",
        "video",
    ):
        if error is not None:
            raise error
        changes |= {(video.name, file): each for file, each in (found or {}).items()}
    return changes


def table_columns(
    dataset: Dataset, has_changes: bool = False, has_clips: bool = False
) -> list[str]:
    """The columns of folds.csv: the winner's six, and those that the data set fills."""
    filled = {
        "technique": any(video.technique for video in dataset.videos),
        "split": any(video.split for video in dataset.videos),
        CHANGE_COLUMN: has_changes,
        FOLDER_COLUMN: any(video.crops for video in dataset.videos),
        KIND_COLUMN: has_clips,
    }
    return COLUMNS + [column for column in OPTIONAL_COLUMNS if filled[column]]


def fold_rows(
    dataset: Dataset,
    video_indices: array,
    files: list[str],
    seed: int,
    changes: dict[tuple[str, str], int] | None = None,
) -> Iterator[list]:
    """One row of `table_columns` for each crop, shuffled by `seed`; then the clips,
    likewise, so that they change nothing for the crops.
    """
    columns = table_columns(dataset, changes is not None, _has_clips(files))
    frames = _frame_numbers(dataset.videos)
    is_clip = [file.endswith(CLIP_SUFFIX) for file in files]
    order: array[int] = array("i")
    for kind in (False, True):
        part = array("i", (n for n, each in enumerate(is_clip) if each == kind))
        random.Random(seed).shuffle(part)
        order.extend(part)
    for position in order:
        video, file = dataset.videos[video_indices[position]], files[position]
        number = frames.get((video.name, file))
        row = {
            "video": video.name,
            "file": file,
            "label": int(video.is_fake),
            "original": video.original,
            "frame": int(file.split("_")[0]) if number is None else number,
            "fold": video.fold,
            "technique": video.technique,
            "split": video.split,
            CHANGE_COLUMN: (changes or {}).get((video.name, Path(file).stem), -1),
            FOLDER_COLUMN: _folder(video, dataset.root),
            KIND_COLUMN: CLIP if is_clip[position] else CROP,
        }
        yield [row[column] for column in columns]


def _has_clips(files: list[str]) -> bool:
    return any(file.endswith(CLIP_SUFFIX) for file in files)


def _frame_numbers(videos: Iterable[Video]) -> dict[tuple[str, str], int]:
    """Of crops that exist already: their names where those are numbers, each another and
    none too large, else their places.
    """
    frames: dict[tuple[str, str], int] = {}
    for video in videos:
        names = [path.stem for path in video.crops]
        numbers = [int(name) if name.isdecimal() else -1 for name in names]
        if (
            len({*numbers}) < len(numbers)
            or not 0 <= min(numbers, default=0)
            or (max(numbers, default=0) > MAX_FRAME)
        ):
            numbers = [*range(len(names))]
        for path, number in zip(video.crops, numbers):
            frames[video.name, path.name] = number
    return frames


def _folder(video: Video, root: Path) -> str:
    """The folder of crops that exist already, relative to `root` where it is inside."""
    if not video.crops:
        return ""
    folder, top = video.path.parent.resolve(), root.resolve()
    return str(folder.relative_to(top) if folder.is_relative_to(top) else folder)


def count_crops(dataset: Dataset, video_indices: array) -> Iterator[str]:
    """A line for each split and technique: how many videos and crops it has."""
    crops: Counter[tuple[str, bool, str]] = Counter()
    videos: dict[tuple[str, bool, str], set[int]] = {}
    for index in video_indices:
        video = dataset.videos[index]
        key = video.split, video.is_fake, video.technique
        crops[key] += 1
        videos.setdefault(key, set()).add(index)
    for (split, is_fake, technique), count in sorted(crops.items()):
        name = technique or ("fake" if is_fake else "real")
        found = len(videos[split, is_fake, technique])
        yield f"{split or '(no split)'}: {name}: {found} videos, {count} crops"


def write_video_lists(dataset: Dataset, data: Path) -> list[Path]:
    """Write the lists of videos. Returns their paths.

    Args:
        data: the data set's folder, to which the paths are relative.
    """
    by_split: dict[str, list[list]] = {}
    for video in dataset.videos:
        if not video.crops:
            name = video.path.relative_to(data).as_posix()
            row = [name, int(video.is_fake), video.technique, video.split, video.name]
            by_split.setdefault(video.split, []).append(row)
    paths = []
    for split, rows in by_split.items():
        paths.append(video_list_path(dataset.root, split))
        write_csv(paths[-1], VIDEO_COLUMNS, rows)
    return paths


def main(argv: list[str] | None = None) -> int:
    parser = step_parser(__doc__)
    parser.add_argument("--seed", type=int, default=777, help="seed of the row order")
    parser.add_argument(
        "--measure-changes",
        action="store_true",
        help="read all diffs, and note how much each fake crop differs from its "
        "original's; training's setting `unchanged` needs it",
    )
    options = parser.parse_args(argv)
    dataset = open_dataset(options)
    video_indices, files = list_crops(dataset)
    if not files:
        raise UserError(
            f"{dataset.root / 'crops'}: holds no crops of these videos; "
            "run steps 1 and 2 first"
        )
    changes = measure_changes(dataset, options) if options.measure_changes else None
    path, columns = (
        folds_path(dataset.root),
        table_columns(dataset, changes is not None, _has_clips(files)),
    )
    rows = fold_rows(dataset, video_indices, files, options.seed, changes)
    write_csv(path, columns, rows)
    fakes = sum(dataset.videos[index].is_fake for index in video_indices)
    clips = sum(file.endswith(CLIP_SUFFIX) for file in files)
    what = f"crops and clips ({clips} clips)" if clips else "crops"
    print(f"5 make folds: {len(files) - fakes} real and {fakes} fake {what} in {path}")
    if {"technique", "split"} & {*columns}:
        for line in count_crops(dataset, video_indices):
            print(f"5 make folds: {line}")
        for path in write_video_lists(dataset, options.root_dir):
            print(f"5 make folds: {path}: for inference.predict --list")
    return 0


if __name__ == "__main__":
    run_main(main)
