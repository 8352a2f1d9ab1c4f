"""Predict a folder of videos with an ensemble of checkpoints.

    python -m inference.predict --test-dir VIDEOS --output submission.csv \\
        --weights-dir weights --models A B …

Reads  the videos in --test-dir (or one video file), the checkpoints WEIGHTS_DIR/MODEL;
       --list FILE.csv: which videos, by their paths below --test-dir in the column
       filename (or path), such as Kaggle's sample_submission.csv
Writes the submission: filename,label with label = probability of FAKE
       submission.report.csv beside it: why a video has 0.5 or was read only in part
       --faces-csv FILE: every face's score; --report DIR: pages to look at
Method: the winner's: 32 evenly spaced frames, MTCNN 0.7/0.8/0.8 at half resolution,
       crops centred on black, each network on all faces, his confidence rule for each
       network (--rule for others), the mean over networks.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from inference.aggregate import NO_ANSWER, RULES, TOP_FACES, Aggregation
from inference.ensemble import Ensemble, Prediction, predict_video
from inference.extraction import VideoFaces, extract_faces
from inference.members import Member, add_model_options, members_identity, read_members
from inference.pool import EnsemblePool
from inference.report import Report, thumbnail
from inference.submission import (
    Journal,
    is_answered,
    report_path,
    write_faces,
    write_submission,
)
from preprocessing.datasets.table import resolve_inside
from preprocessing.video import SUFFIXES, describe_unused, sort_files
from runtime.cli import UserError, make_parser, non_negative_int, run_main
from runtime.device import add_device_option, pick_devices
from runtime.executor import (
    ExecutorOptions,
    add_executor_options,
    error_reason,
    executor_options,
    map_items,
)
from runtime.files import file_size, read_csv_rows, readable_names
from runtime.workers import GIB


class TestVideos(NamedTuple):
    """What is to be predicted.

    paths: of the videos, by the name in the submission.
    missing: why a listed name has no video.
    order: all of these names, in the submission's order.
    unused: by reason the files and folders that are not used.
    """

    paths: dict[str, Path]
    missing: dict[str, str]
    order: list[str]
    unused: dict[str, list[Path]]


def find_test_videos(
    test_dir: Path, listed: Path | None = None, recursive: bool = False
) -> TestVideos:
    """The videos of a folder, or those that a list names, in its order.

    Raises:
        UserError: there is nothing to predict, or the list cannot be read.
    """
    if listed:
        return _read_list(test_dir, listed)
    videos, unused = find_videos(test_dir, recursive)
    top = test_dir if test_dir.is_dir() else test_dir.parent
    paths = {path.relative_to(top).as_posix(): path for path in videos}
    return TestVideos(paths, {}, sorted(paths), unused)


def _read_list(test_dir: Path, listed: Path) -> TestVideos:
    """The videos of a list; a name that is there twice counts once."""
    if not test_dir.is_dir():
        raise UserError(f"{test_dir}: no such folder; --list names videos in a folder")
    column, rows = _list_rows(listed)
    if not rows:
        raise UserError(f"{listed}: lists no video")
    paths: dict[str, Path] = {}
    missing: dict[str, str] = {}
    order: dict[Path, str] = {}
    similar = _SimilarNames()
    for row in rows:
        name, reason = row[column], ""
        try:
            path = resolve_inside(test_dir, name)
        except UserError as error:
            path, reason = Path(name), str(error)
        if path in order:
            print(
                f"{listed}: {name} is listed twice; the submission has it once",
                file=sys.stderr,
            )
            continue
        order[path] = name
        if not reason and not path.is_file():
            path = similar.find(path) or path
        if not reason and path.is_file():
            paths[name] = path
        else:
            missing[name] = reason or f"listed, but {path} is no file"
    return TestVideos(paths, missing, [*order.values()], {})


class _SimilarNames:
    """Finds files whose names differ by the ending, its case or blanks around."""

    def __init__(self) -> None:
        self._folders: dict[Path, dict[str, list[Path]]] = {}

    def find(self, path: Path) -> Path | None:
        """The only video of this name, without an ending too; None if there is none."""
        if path.parent not in self._folders:
            found: dict[str, list[Path]] = defaultdict(list)
            for name in readable_names(path.parent):
                each = path.parent / name
                if each.suffix.strip().lower() in SUFFIXES:
                    full = name.strip()
                    for key in {full.lower(), Path(full).stem}:
                        found[key].append(each)
            self._folders[path.parent] = found
        name = path.name.strip()
        names = self._folders[path.parent]
        matches = names.get(name.lower()) or names.get(name) or []
        return matches[0] if len(matches) == 1 else None


def _list_rows(listed: Path) -> tuple[str, list[dict[str, str]]]:
    """The rows of a list, and the column of its videos: filename or path."""
    try:
        return "filename", read_csv_rows(listed, ("filename",))
    except UserError as error:
        try:
            return "path", read_csv_rows(listed, ("path",))
        except UserError as other:
            # which of the two columns the user has decides which error helps
            has_path = "must have the columns" not in str(other)
            raise (other if has_path else error) from None


def find_videos(
    test_dir: Path, recursive: bool = False
) -> tuple[list[Path], dict[str, list[Path]]]:
    """The videos of a folder, sorted by name, or the one file given.

    Args:
        recursive: search the folders below it too.

    Returns:
        the videos, and by reason the files and folders that are not used.

    Raises:
        UserError: there is nothing there to predict.
    """
    if test_dir.is_file():
        return [test_dir], {}
    if not test_dir.is_dir():
        raise UserError(f"{test_dir}: no such folder or video")
    found = (
        (path for path in test_dir.rglob("*") if path.is_file())
        if recursive
        else test_dir.iterdir()
    )
    videos, unused = sort_files(found)
    if not videos:
        others = "".join(f"; {describe_unused(*each)}" for each in unused.items())
        raise UserError(f"{test_dir}: holds no video ({', '.join(SUFFIXES)}){others}")
    return videos, unused


def predict(options: argparse.Namespace) -> dict[str, dict]:
    """Predict every video and write the tables.

    Returns:
        the journal's entries by file name.
    """
    wanted = find_test_videos(options.test_dir, options.list, options.recursive)
    names = {path: name for name, path in wanted.paths.items()}
    for reason, paths in wanted.unused.items():
        print(f"{options.test_dir}: {describe_unused(reason, paths)}", file=sys.stderr)
    members, aggregation = read_members(options)
    executor = executor_options(options)
    devices = ["cpu"] if executor.is_cluster else pick_devices(options.device)
    pool = EnsemblePool(members, devices)
    ensemble = pool.first
    report = Report(options.report, aggregation) if options.report else None
    journal = Journal(options.output, _identity(options, members, aggregation))
    todo = [path for name, path in wanted.paths.items() if name not in journal.entries]
    # large files first keep all workers busy to the end
    todo.sort(key=file_size, reverse=True)
    if len(todo) < len(names):
        done = len(names) - len(todo)
        print(f"going on: {done} of {len(names)} videos are done")
    task, executor = _make_task(options, members, ensemble, executor)

    def keep(paths: Iterable[Path], predictions: Iterable[Prediction]) -> None:
        for path, (entry, faces, heatmaps, clips, residuals) in zip(paths, predictions):
            entry["filename"] = names.get(path, str(path))
            if report:
                if faces.preview is not None:
                    entry["thumbnail"] = thumbnail(faces.preview)
                images = faces.inputs.get(ensemble.shown_size)
                report.write_video(
                    entry, images, faces.provenance, heatmaps, clips, residuals
                )
            journal.add(entry)

    def groups() -> Iterator[dict[Path, VideoFaces]]:
        """The videos that are scored together, as the workers find their faces."""
        found: dict[Path, VideoFaces] = {}
        for path, result, error in map_items(
            task, todo, executor, "predict", "video", options.test_dir
        ):
            if isinstance(error, UserError):  # the video's own fault
                result = VideoFaces(reason=error_reason(error, path))
            elif error is not None:
                # a defect or the machine must not become a score of 0.5
                raise error
            if isinstance(result, Prediction):
                keep([path], [result])
                continue
            assert isinstance(result, VideoFaces)
            found[path] = result
            if sum(len(each.frames) for each in found.values()) >= ensemble.min_faces:
                yield found
                found = {}
        absent = {Path("listed", name): name for name in wanted.missing}
        names.update(absent)
        for path, name in absent.items():
            found[path] = VideoFaces(reason=wanted.missing[name])
        yield found

    for paths, predictions in pool.predict(groups(), options.grad_cam):
        keep(paths, predictions)
    entries = {name: journal.entries[name] for name in wanted.order}
    write_submission(options.output, entries, aggregation, wanted.unused)
    if options.faces_csv:
        write_faces(options.faces_csv, entries)
    if report:
        notes = [describe_unused(*each) for each in wanted.unused.items()]
        report.write_index(entries.values(), notes)
    journal.finish()
    return entries


def _identity(
    options: argparse.Namespace, members: list[Member], aggregation: Aggregation
) -> dict:
    """What a run must have in common with an earlier one to continue it."""
    identity: dict[str, object] = {
        "test_dir": str(options.test_dir.resolve()),
        "members": members_identity(members),
    }
    if options.report:  # pages are written video by video, so all must be of one kind
        folder = str(options.report.resolve())
        identity["report"] = [folder, *aggregation, options.grad_cam]
    return identity


def _make_task(
    options: argparse.Namespace,
    members: list[Member],
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
            wanted=ensemble.wanted,
            device=options.device,
            details=details,
        )
        return task, executor
    weights_gib = sum(file_size(Path(each.checkpoint)) for each in members) / GIB
    limits = executor.limits._replace(memory=executor.limits.memory + weights_gib)
    task_with_networks = partial(
        predict_video,
        members=tuple(members),
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
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--list",
        type=Path,
        metavar="FILE.csv",
        help="predict the videos of its column filename (or path), in its order; paths "
        "are relative to --test-dir; one that is not there has 0.5 and the reason",
    )
    which.add_argument(
        "--recursive",
        action="store_true",
        help="predict the videos of all folders below --test-dir too, by their paths",
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="the submission's CSV"
    )
    add_model_options(parser)
    parser.add_argument(
        "--rule",
        choices=RULES,
        help="from the scores of a video's faces to its label (default: winner, or the "
        "ensemble file's); winner-exact keeps two accidents of the winner's code, "
        "confidence is the third-placed team's, vote the fourth's",
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
        help="in the report, Grad-CAM heatmaps of the first network, and the residuals "
        "that it sees if it has that stem (`srm`), for the N faces of "
        f"each video with the highest scores (at most {TOP_FACES})",
    )
    add_executor_options(parser)
    add_device_option(parser)
    options = parser.parse_args(argv)
    entries = predict(options)
    with_reason = sum(bool(entry["reason"]) for entry in entries.values())
    unanswered = sum(not is_answered(entry) for entry in entries.values())
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
