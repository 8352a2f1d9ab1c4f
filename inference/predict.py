"""Predict a folder of videos with an ensemble of checkpoints.

    python -m inference.predict --test-dir VIDEOS --output submission.csv \\
        --weights-dir weights --models A B …

Reads  the videos in --test-dir (or one video file), the checkpoints WEIGHTS_DIR/MODEL
Writes the submission: filename,label with label = probability of FAKE
       submission.report.csv beside it: why a video has 0.5 or was read only in part
       --faces-csv FILE: every face's score; --report DIR: pages to look at
Method: the winner's: 32 evenly spaced frames, MTCNN 0.7/0.8/0.8 at half resolution,
       crops centred on black, each network on all faces, his confidence rule for each
       network (--rule for others), the mean over networks.
"""

import argparse
import csv
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from inference.aggregate import NO_ANSWER, RULES, TOP_FACES
from inference.ensemble import Ensemble, Prediction, predict_batch, predict_video
from inference.extraction import VideoFaces, extract_faces
from inference.report import Report, thumbnail
from inference.submission import Journal, report_path, write_faces, write_submission
from preprocessing.video import SUFFIXES, describe_unused, sort_files
from runtime.cli import UserError, make_parser, non_negative_int, run_main
from runtime.device import add_device_option
from runtime.executor import (
    ExecutorOptions,
    add_executor_options,
    error_reason,
    executor_options,
    map_items,
)
from runtime.files import file_size
from runtime.workers import GIB

MANIFEST = Path(__file__).parent.parent / "weights" / "manifest.csv"


def find_videos(test_dir: Path) -> tuple[list[Path], dict[str, list[Path]]]:
    """The videos of a folder, sorted by name, or the one file given.

    Returns:
        the videos, and by reason the files and folders that are not used.

    Raises:
        UserError: there is nothing there to predict.
    """
    if test_dir.is_file():
        return [test_dir], {}
    if not test_dir.is_dir():
        raise UserError(f"{test_dir}: no such folder or video")
    videos, unused = sort_files(test_dir.iterdir())
    if not videos:
        others = "".join(f"; {describe_unused(*each)}" for each in unused.items())
        raise UserError(f"{test_dir}: holds no video ({', '.join(SUFFIXES)}){others}")
    return videos, unused


def find_weights(weights_dir: Path, models: list[str]) -> list[Path]:
    """The checkpoints' paths.

    Raises:
        UserError: one of them is not there.
    """
    paths = [weights_dir / model for model in models]
    if missing := [path for path in paths if not path.is_file()]:
        raise UserError(
            f"{missing[0]}: no such checkpoint ({len(missing)} of {len(paths)} are "
            "missing); weights/download.sh gets the published ones, train.sh makes "
            "your own"
        )
    return paths


def published_models() -> list[str]:
    """The names of the winner's seven checkpoints."""
    with open(MANIFEST, newline="") as file:
        return [row["name"] for row in csv.DictReader(file)]


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add `--weights-dir` and `--models`."""
    parser.add_argument(
        "--weights-dir",
        type=Path,
        default=Path("weights"),
        help="folder of the checkpoints",
    )
    parser.add_argument(
        "--models",
        nargs="+",
        action="extend",
        help="checkpoints in it; the winner's seven if not given",
    )


def predict(options: argparse.Namespace) -> dict[str, dict]:
    """Predict every video and write the tables.

    Returns:
        the journal's entries by file name.
    """
    videos, unused = find_videos(options.test_dir)
    for reason, paths in unused.items():
        print(f"{options.test_dir}: {describe_unused(reason, paths)}", file=sys.stderr)
    weights = find_weights(options.weights_dir, options.models or published_models())
    executor = executor_options(options)
    ensemble = Ensemble(weights, "cpu" if executor.is_cluster else options.device)
    report = Report(options.report, options.rule) if options.report else None
    journal = Journal(options.output, _identity(options, weights))
    todo = [path for path in videos if path.name not in journal.entries]
    # large files first keep all workers busy to the end
    todo.sort(key=file_size, reverse=True)
    if len(todo) < len(videos):
        done = len(videos) - len(todo)
        print(f"going on: {done} of {len(videos)} videos are done")
    task, executor = _make_task(options, weights, ensemble, executor)
    found: dict[Path, VideoFaces] = {}

    def keep(predictions: Iterable[Prediction]) -> None:
        for entry, faces, heatmaps in predictions:
            if report:
                if faces.preview is not None:
                    entry["thumbnail"] = thumbnail(faces.preview)
                images = faces.inputs.get(ensemble.settings[0].size)
                report.write_video(entry, images, faces.provenance, heatmaps)
            journal.add(entry)

    for path, result, error in map_items(
        task, todo, executor, "predict", "video", options.test_dir
    ):
        if isinstance(error, UserError):  # the video's own fault
            result = VideoFaces(reason=error_reason(error, path))
        elif error is not None:
            # a defect or the machine must not become a score of 0.5
            raise error
        if isinstance(result, Prediction):
            keep([result])
            continue
        assert isinstance(result, VideoFaces)
        found[path] = result
        faces_found = sum(len(faces.frames) for faces in found.values())
        if faces_found >= ensemble.min_faces:
            keep(predict_batch(ensemble, found, options.grad_cam))
            found.clear()
    keep(predict_batch(ensemble, found, options.grad_cam))
    entries = {path.name: journal.entries[path.name] for path in videos}
    write_submission(options.output, entries, options.rule, unused)
    if options.faces_csv:
        write_faces(options.faces_csv, entries)
    if report:
        notes = [describe_unused(*each) for each in unused.items()]
        report.write_index(entries.values(), notes)
    journal.finish()
    return entries


def _identity(options: argparse.Namespace, weights: list[Path]) -> dict:
    """What a run must have in common with an earlier one to continue it."""
    stats = {str(path): path.stat() for path in weights}
    identity: dict[str, object] = {
        "test_dir": str(options.test_dir.resolve()),
        "weights": {name: [s.st_size, s.st_mtime_ns] for name, s in stats.items()},
    }
    if options.report:  # pages are written video by video, so all must be of one kind
        folder = str(options.report.resolve())
        identity["report"] = [folder, options.rule, options.grad_cam]
    return identity


def _make_task(
    options: argparse.Namespace,
    weights: list[Path],
    ensemble: Ensemble,
    executor: ExecutorOptions,
) -> tuple[Callable[[Path], VideoFaces | Prediction], ExecutorOptions]:
    """What is done for a video in a worker, and the worker's limits.

    On a cluster each worker has its own networks; the ensemble here only shows that
    they load.
    """
    details = bool(options.report)
    if not executor.is_cluster:
        task = partial(
            extract_faces,
            settings=ensemble.faces_settings,
            sizes=ensemble.sizes,
            device=options.device,
            details=details,
        )
        return task, executor
    weights_gib = sum(map(file_size, weights)) / GIB
    limits = executor.limits._replace(memory=executor.limits.memory + weights_gib)
    task_with_networks = partial(
        predict_video,
        weights=tuple(weights),
        device=options.device,
        details=details,
        grad_cam=options.grad_cam,
    )
    return task_with_networks, executor._replace(limits=limits)


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--test-dir", type=Path, required=True, help="folder of videos, or one video"
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="the submission's CSV"
    )
    add_model_options(parser)
    parser.add_argument(
        "--rule",
        choices=RULES,
        default="winner",
        help="from the scores of a video's faces to its label; winner-exact keeps two "
        "accidents of the winner's code, confidence is the third-placed team's",
    )
    parser.add_argument(
        "--faces-csv", type=Path, help="write every face's score to this file"
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="DIR",
        help="write an HTML report: DIR/index.html",
    )
    parser.add_argument(
        "--grad-cam",
        type=non_negative_int,
        default=0,
        metavar="N",
        help="in the report, Grad-CAM heatmaps of the first network for the N faces of "
        f"each video with the highest scores (at most {TOP_FACES})",
    )
    add_executor_options(parser)
    add_device_option(parser)
    options = parser.parse_args(argv)
    entries = predict(options)
    with_reason = sum(bool(entry["reason"]) for entry in entries.values())
    unanswered = sum(not entry["frames"] for entry in entries.values())
    print(
        f"{options.output}: {len(entries)} videos, "
        f"{unanswered} of them without an answer ({NO_ANSWER})"
    )
    if with_reason:
        others = with_reason - unanswered
        print(f"{report_path(options.output)}: why, for these and {others} others")
    if options.report:
        print(f"{options.report / 'index.html'}: open it in a browser")
    return 0


if __name__ == "__main__":
    run_main(main)
