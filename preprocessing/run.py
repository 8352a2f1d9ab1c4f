"""One function over many videos: progress, resume, failures.

`map_videos` runs a plain function of one item in worker processes and gives the results as they come; `run_step` makes
a numbered preprocessing step of it: what is on disk already is skipped, what went wrong is listed in DATA/failures.csv,
and the exit status says whether too much did. Nothing else in the project starts worker processes for videos.
"""

import argparse
import csv
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from preprocessing.cli import MachineError, UserError, make_parser, positive, share, whole_number
from preprocessing.dfdc import Trouble, Video
from preprocessing.files import TABLE, file_size, reasons, remove_unfinished, write_csv
from preprocessing.workers import Limits, Workers, keep_memory

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_FAILURES = 0.02  # share of videos; DFDC itself has a few that no decoder reads
SHOWN_TROUBLES = 5


def step_parser(description: str) -> argparse.ArgumentParser:
    """The options that all numbered steps share."""
    parser = make_parser(description)
    parser.add_argument("--root-dir", type=Path, required=True, help="folder that holds dfdc_train_part_0, …")
    parser.add_argument(
        "--max-failures", type=share, default=MAX_FAILURES,
        help="share of videos that may fail before the exit status is 1, 0 to 1",
    )  # fmt: skip
    add_worker_options(parser)
    return parser


def add_worker_options(parser: argparse.ArgumentParser) -> None:
    """`--workers`, `--time-limit` and `--memory-limit`; `limits_of` reads the last two."""
    limits = Limits()
    parser.add_argument("--workers", type=whole_number, default=os.cpu_count(),
                        help="videos worked on at a time; 0 works in this process, without limits")  # fmt: skip
    parser.add_argument("--time-limit", type=positive, default=limits.seconds, metavar="SECONDS",
                        help="most time for one video, which counts as failed after it")  # fmt: skip
    parser.add_argument("--memory-limit", type=positive, default=limits.memory, metavar="GIB",
                        help="most memory of a worker for one video, likewise")  # fmt: skip


def limits_of(options: argparse.Namespace) -> Limits:
    return Limits(options.time_limit, options.memory_limit)


def map_videos(
    task: Callable[[Item], Result], items: Sequence[Item], workers: int, description: str, limits: Limits = Limits()
) -> Iterator[tuple[Item, Result | None, Exception | None]]:
    """Run `task` on each item, with a progress bar, and give (item, result, None) or (item, None, error) as they finish.

    Without workers all happens in this process, in order and without limits. With workers, `task` must be a module's
    function (or a `functools.partial` of one), and an item that hangs, crashes or needs too much memory ends as an error
    too. At most two items a worker are under way, so memory does not grow with their number.
    """
    keep_memory()
    with tqdm(total=len(items), desc=description, unit="video", disable=not items) as bar:
        for outcome in _in_workers(task, items, workers, limits) if workers else _here(task, items):
            bar.update()
            yield outcome


def run_step(
    task: Callable[[Video], None],
    videos: Sequence[Video],
    output: Callable[[Video], Path],
    options: argparse.Namespace,
    step: str,
    troubles: Sequence[Trouble] = (),
) -> int:
    """Run one numbered step over the videos whose `output` is not there yet.

    Args:
        task: makes one video's output whole or not at all; what it had to leave out stands in the output (`whole_folder`).
        options: what `step_parser` parsed.
        step: the step's name in the progress bar and in failures.csv.
        troubles: what `read_dataset` left out; listed, but not counted as failures of this step.

    Returns:
        exit status: 0, or 1 where more than `--max-failures` of the videos failed.

    Raises:
        MachineError: the disk or the GPU is at fault.
    """
    missing = [video for video in videos if not output(video).exists()]
    missing.sort(key=lambda video: file_size(video.path), reverse=True)
    failed: dict[str, Trouble] = {}
    for video, _, error in map_videos(task, missing, options.workers, step, limits_of(options)):
        if isinstance(error, MachineError):
            raise error
        if error is not None:
            failed[video.name] = Trouble(str(video.path), describe(error, video.path))
            remove_unfinished(output(video))
    found = [*troubles]
    for video in videos:
        left_out = [Trouble(str(video.path), reason) for reason in reasons(output(video))]
        found += [failed[video.name]] if video.name in failed else left_out
    report = _write_troubles(options.root_dir / "failures.csv", step, found)
    done = len(missing) - len(failed)
    print(f"{step}: {done} videos done, {len(videos) - len(missing)} were there, {len(failed)} failed{report}")
    return int(len(failed) > options.max_failures * len(videos))


def describe(error: Exception, path: Path) -> str:
    """An error in one line, without the file's name, which stands beside it."""
    text = " ".join(str(error).removeprefix(f"{path}: ").split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


@contextmanager
def keep_workers(workers: int) -> Iterator[None]:
    """Inside this block `map_videos` does not start worker processes each time, but uses the same ones again."""
    _kept.append(Workers(workers))
    try:
        yield
    finally:
        _kept.pop().close()


_kept: list[Workers] = []


def _here(task: Callable, items: Sequence) -> Iterator[tuple]:
    for item in items:
        try:
            yield item, task(item), None
        except Exception as error:  # the caller decides what it means: one bad video must not end the run
            yield item, None, error


def _in_workers(task: Callable, items: Sequence, count: int, limits: Limits) -> Iterator[tuple]:
    workers = _kept[-1] if _kept else Workers(min(count, len(items)))
    try:
        yield from workers.map(task, items, limits)
    finally:
        if workers not in _kept:
            workers.close()


def _write_troubles(path: Path, step: str, troubles: Sequence[Trouble]) -> str:
    """Replace this step's rows in failures.csv and say on stderr what they are."""
    kept = []
    if path.exists():
        with open(path, **TABLE) as file:
            kept = [row for row in csv.reader(file) if row and row[0] not in (step, "step")]
    rows = kept + [[step, trouble.file, trouble.reason] for trouble in troubles]
    if rows or path.exists():
        write_csv(path, ["step", "file", "reason"], rows)
    for trouble in troubles[:SHOWN_TROUBLES]:
        print(f"{step}: {trouble.file}: {trouble.reason}", file=sys.stderr)
    if len(troubles) > SHOWN_TROUBLES:
        print(f"{step}: … and {len(troubles) - SHOWN_TROUBLES} more in {path}", file=sys.stderr)
    return f"; {len(troubles)} left out or failed, listed in {path}" if troubles else ""
