"""Predict a folder of videos with an ensemble of checkpoints.

    python -m inference.predict --test-dir VIDEOS --output submission.csv --weights-dir weights --models A B …

Reads  the videos in --test-dir (or one video file), the checkpoints WEIGHTS_DIR/MODEL
Writes the submission, filename,label with label = probability of FAKE; beside it submission.report.csv, which says why a
       video has 0.5 or was read only in part; --faces-csv FILE with every face's score; --report DIR, pages to look at
Method: the winner's: 32 evenly spaced frames, MTCNN 0.7/0.8/0.8 at half resolution, crops centred on black, each network
       on all faces, his confidence rule for each network (--rule for others), the mean over networks.
"""

import argparse
import csv
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from inference.aggregate import NO_ANSWER, RULES
from inference.pipeline import Answer, Ensemble, VideoFaces, answer_alone, answers, extract_faces
from inference.report import TOP_FACES, Report
from inference.submission import Journal, report_path, write_faces, write_submission
from preprocessing.cli import UserError, make_parser, run_main, whole_number
from preprocessing.faces import add_device_option
from preprocessing.files import file_size
from preprocessing.run import add_worker_options, describe, map_videos, where_of
from preprocessing.video import SUFFIXES
from preprocessing.workers import GIB

MANIFEST = Path(__file__).parent.parent / "weights" / "manifest.csv"


def find_videos(test_dir: Path) -> list[Path]:
    """The videos of a folder, sorted by name, or the one file given.

    Raises:
        UserError: there is nothing there to predict.
    """
    if test_dir.is_file():
        return [test_dir]
    if not test_dir.is_dir():
        raise UserError(f"{test_dir}: no such folder or video")
    videos = sorted(path for path in test_dir.iterdir() if path.suffix.lower() in SUFFIXES)
    if not videos:
        raise UserError(f"{test_dir}: holds no video ({', '.join(SUFFIXES)})")
    return videos


def find_weights(weights_dir: Path, models: list[str]) -> list[Path]:
    """The checkpoints' paths.

    Raises:
        UserError: one of them is not there.
    """
    paths = [weights_dir / model for model in models]
    if missing := [path for path in paths if not path.is_file()]:
        raise UserError(
            f"{missing[0]}: no such checkpoint ({len(missing)} of {len(paths)} are missing); weights/download.sh gets the "
            "published ones, train.sh makes your own"
        )
    return paths


def published_models() -> list[str]:
    """The names of the winner's seven checkpoints."""
    with open(MANIFEST, newline="") as file:
        return [row["name"] for row in csv.DictReader(file)]


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """`--weights-dir` and `--models`."""
    parser.add_argument("--weights-dir", type=Path, default=Path("weights"), help="folder of the checkpoints")
    parser.add_argument("--models", nargs="+", help="checkpoints in it; the winner's seven if not given")


def predict(options: argparse.Namespace) -> dict[str, dict]:
    """Predict every video and write the tables. Returns the journal's entries by file name."""
    videos = find_videos(options.test_dir)
    weights = find_weights(options.weights_dir, options.models or published_models())
    where = where_of(options)
    ensemble = Ensemble(weights, "cpu" if where.is_cluster else options.device)
    stamps = {str(path): [path.stat().st_size, path.stat().st_mtime_ns] for path in weights}
    identity = {"test_dir": str(options.test_dir.resolve()), "weights": stamps}
    report = Report(options.report, options.rule) if options.report else None
    if report:  # pages are written video by video, so all must be of one kind
        identity["report"] = [str(options.report.resolve()), options.rule, options.grad_cam]
    journal = Journal(options.output, identity)
    todo = sorted((path for path in videos if path.name not in journal.entries), key=file_size, reverse=True)
    if len(todo) < len(videos):
        print(f"going on: {len(videos) - len(todo)} of {len(videos)} videos are done")
    if where.is_cluster:  # each worker has its own networks; here one set is enough to know that they load
        where = where._replace(limits=where.limits._replace(memory=where.limits.memory + _gibibytes(weights)))
        task = partial(answer_alone, weights=tuple(weights), device=options.device, for_report=bool(report),
                       grad_cam=options.grad_cam)  # fmt: skip
    else:
        task = partial(extract_faces, settings=ensemble.faces_settings, sizes=ensemble.sizes, device=options.device,
                       for_report=bool(report))  # fmt: skip
    found: dict[Path, VideoFaces] = {}

    def keep(answered: Iterable[Answer]) -> None:
        for entry, faces, heat in answered:
            if report:
                report.write_video(entry, faces.inputs.get(ensemble.settings[0].size), faces.origin, heat)
            journal.add(entry)

    for path, result, error in map_videos(task, todo, where, "predict", sees=options.test_dir):
        if isinstance(error, UserError):  # the video's own: it cannot be read, or cost its worker the life
            result = VideoFaces(trouble=describe(error, path))
        elif error is not None:  # a defect or a broken machine must not become a score of 0.5
            raise error
        if isinstance(result, Answer):
            keep([result])
            continue
        found[path] = result
        if sum(len(each.frames) for each in found.values()) >= ensemble.enough:
            keep(answers(ensemble, found, options.grad_cam))
            found.clear()
    keep(answers(ensemble, found, options.grad_cam))
    entries = {path.name: journal.entries[path.name] for path in videos}
    write_submission(options.output, entries, options.rule)
    if options.faces_csv:
        write_faces(options.faces_csv, entries)
    if report:
        report.write_index(entries.values())
    journal.finish()
    return entries


def _gibibytes(paths: list[Path]) -> float:
    return sum(map(file_size, paths)) / GIB


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--test-dir", type=Path, required=True, help="folder of videos, or one video")
    parser.add_argument("--output", type=Path, required=True, help="the submission's CSV")
    add_model_options(parser)
    parser.add_argument("--rule", choices=RULES, default="winner", help="from a video's faces to its label; winner-exact keeps "
                        "two accidents of his code, confidence is the third-placed team's")  # fmt: skip
    parser.add_argument("--faces-csv", type=Path, help="write every face's score to this file")
    parser.add_argument("--report", type=Path, metavar="DIR", help="write pages to look at: DIR/index.html")
    parser.add_argument("--grad-cam", type=whole_number, default=0, metavar="N", help="in the report, show where the first network "
                        f"looked in the N most suspicious faces of each video (at most {TOP_FACES})")  # fmt: skip
    add_worker_options(parser)
    add_device_option(parser)
    options = parser.parse_args(argv)
    entries = predict(options)
    troubled = sum(bool(entry["trouble"]) for entry in entries.values())
    unanswered = sum(not entry["frames"] for entry in entries.values())
    print(f"{options.output}: {len(entries)} videos, {unanswered} of them without an answer ({NO_ANSWER})")
    if troubled:
        print(f"{report_path(options.output)}: why, for these and {troubled - unanswered} others")
    if options.report:
        print(f"{options.report / 'index.html'}: open it in a browser")
    return 0


if __name__ == "__main__":
    run_main(main)
