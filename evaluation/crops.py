"""Score face crops that exist already, without any video.

    python -m evaluation.crops --data-dir DATA --split test \\
        --output submission.csv --faces-csv faces.csv --models A B …

Reads  DATA/folds.csv and the crops that it lists; the checkpoints WEIGHTS_DIR/MODEL
Writes the submission: filename,label, one row for each video, which is a video's name
       in folds.csv; submission.report.csv beside it; --faces-csv FILE: each crop's score
       (a box is the whole crop, the time is empty)
Then   python -m evaluation.score --submission faces.csv --labels DATA/folds.csv \\
           --split test
Method: as `inference.predict`, from the crop on: resized, centred on black, each network
       on all crops, the rule for each network, the mean over networks.
"""

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from inference.aggregate import RULES, TRACKED
from inference.extraction import VideoFaces
from inference.members import (
    add_model_options,
    engine_of,
    members_identity,
    read_members,
)
from inference.pool import EnsemblePool
from inference.submission import Journal, report_path, write_faces, write_submission
from preprocessing.crop_table import CropTable, read_crop_table
from preprocessing.crops import read_image
from preprocessing.dataset import SPLITS
from preprocessing.layout import folds_path
from runtime.cli import UserError, make_parser, run_main
from runtime.device import add_device_option, pick_devices
from runtime.executor import add_executor_options, executor_options, map_items
from training.augment import plain_transform

ALL = "all"


class CropSet(NamedTuple):
    """The crops of one video, in the order of its frames."""

    video: str
    paths: tuple[Path, ...]
    frames: tuple[int, ...]


def crop_sets(crops: CropTable) -> list[CropSet]:
    """The crops by video, videos by name."""
    by_video: dict[str, list[tuple[int, Path]]] = {}
    for row in range(len(crops)):
        found = by_video.setdefault(crops.name("video", row), [])
        found.append((int(crops["frame"][row]), crops.files(row).image))
    sets = []
    for video, found in sorted(by_video.items()):
        frames, paths = zip(*sorted(found))
        sets.append(CropSet(video, paths, frames))
    return sets


def read_crops(crops: CropSet, sizes: Sequence[int]) -> VideoFaces:
    """The networks' inputs of a video's crops.

    Args:
        sizes: input sizes S of the networks, in pixels.

    Returns:
        faces; those that cannot be read are missing, and `reason` says how many.
    """
    faces = VideoFaces()
    inputs: list[list[np.ndarray]] = []
    errors: list[str] = []
    for frame, path in zip(crops.frames, crops.paths):
        try:
            image = read_image(path)
        except UserError as error:
            errors.append(str(error))
            continue
        inputs.append([plain_transform(image, size) for size in sizes])
        faces.frames.append(frame)
        faces.boxes.append((0, 0, image.shape[1], image.shape[0]))
    faces.times = [float("nan")] * len(faces.frames)
    faces.inputs = {size: np.stack(each) for size, each in zip(sizes, zip(*inputs))}
    if errors:
        faces.reason = (
            f"{len(errors)} of {len(crops.paths)} crops cannot be read, the first: "
            f"{errors[0]}"
        )
    return faces


def predict_crops(options: argparse.Namespace) -> dict[str, dict]:
    """Score the crops of a split and write the tables.

    Returns:
        the journal's entries by video.
    """
    table = read_crop_table(options.data_dir)
    if options.split != ALL:
        table = table.select(table.is_value("split", options.split))
    if not len(table):
        raise UserError(
            f"{folds_path(options.data_dir)}: has no crop of the split {options.split}; "
            f"give another, or --split {ALL}"
        )
    sets = crop_sets(table)
    members, aggregation = read_members(options)
    pool = EnsemblePool(members, pick_devices(options.device), engine_of(options))
    ensemble = pool.first
    if ensemble.wanted.clips:
        raise UserError(
            "a network of the ensemble sees clips; inference.predict scores videos "
            "with it, this program single crops only"
        )
    if any(member.frames or member.every for member in members):
        raise UserError(
            f"{options.ensemble}: leave `frames` and `every` out; this program scores "
            "the crops that exist"
        )
    if aggregation.rule in TRACKED:
        raise UserError(
            f"{options.ensemble}: rule {aggregation.rule} needs the places of faces, "
            "which crops do not have; give another --rule"
        )
    identity = {
        "data_dir": str(options.data_dir.resolve()),
        "members": members_identity(members),
        "engine": [*engine_of(options)],
    }
    journal = Journal(options.output, identity)
    todo = [each for each in sets if each.video not in journal.entries]
    if len(todo) < len(sets):
        print(f"going on: {len(sets) - len(todo)} of {len(sets)} videos are done")
    task = partial(read_crops, sizes=ensemble.wanted.sizes)
    executor = executor_options(options)

    def found() -> Iterator[tuple[Path, VideoFaces]]:
        """The crops of each video, as the workers read them."""
        for crops, faces, error in map_items(
            task, todo, executor, "score crops", "video"
        ):
            if error is not None:
                raise error
            assert faces is not None
            yield Path(crops.video), faces

    for _, prediction in pool.predict(found()):
        journal.add(prediction.entry)
    entries = {each.video: journal.entries[each.video] for each in sets}
    write_submission(options.output, entries, aggregation)
    if options.faces_csv:
        write_faces(options.faces_csv, entries)
    journal.finish()
    return entries


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--data-dir", type=Path, required=True, help="the folder that has folds.csv"
    )
    parser.add_argument(
        "--split",
        choices=(*SPLITS, ALL),
        default="test",
        help="of folds.csv, whose crops are scored",
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="the submission's CSV"
    )
    parser.add_argument(
        "--faces-csv", type=Path, help="write every crop's score to this file"
    )
    parser.add_argument(
        "--rule",
        choices=[name for name in RULES if name not in TRACKED],
        help="from the scores of a video's crops to its label (default: winner, or the "
        "ensemble file's)",
    )
    add_model_options(parser)
    add_executor_options(parser)
    add_device_option(parser)
    options = parser.parse_args(argv)
    entries = predict_crops(options)
    with_reason = sum(bool(entry["reason"]) for entry in entries.values())
    count = sum(len(entry["frames"]) for entry in entries.values())
    print(f"{options.output}: {len(entries)} videos, {count} crops")
    if with_reason:
        print(f"{report_path(options.output)}: why crops of {with_reason} are missing")
    return 0


if __name__ == "__main__":
    run_main(main)
