"""One function over many videos: where it runs, progress, resume, failures.

`map_videos` runs a plain function of one item in worker processes and gives the results as they come; `run_step` makes
a numbered preprocessing step of it: what is on disk already is skipped, what went wrong is listed in DATA/failures.csv,
and the exit status says whether too much did. Nothing else in the project starts worker processes for videos.
"""

import argparse
import csv
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import cv2
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from preprocessing.cli import UserError, make_parser, positive_int, share
from preprocessing.dfdc import Trouble, Video
from preprocessing.files import file_size, write_csv

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_FAILURES = 0.02  # share of videos; DFDC itself has a few that no decoder reads
SHOWN_TROUBLES = 5
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # names of glibc's malloc.h


def step_parser(description: str) -> argparse.ArgumentParser:
    """The options that all numbered steps share."""
    parser = make_parser(description)
    parser.add_argument("--root-dir", type=Path, required=True, help="folder that holds dfdc_train_part_0, …")
    parser.add_argument("--workers", type=positive_int, default=os.cpu_count(), help="videos worked on at a time")
    parser.add_argument(
        "--max-failures", type=share, default=MAX_FAILURES,
        help="share of videos that may fail before the exit status is 1, 0 to 1",
    )  # fmt: skip
    return parser


def map_videos(
    task: Callable[[Item], Result], items: Sequence[Item], workers: int, description: str
) -> Iterator[tuple[Item, Result | None, Exception | None]]:
    """Run `task` on each item, with a progress bar, and give (item, result, None) or (item, None, error) as they finish.

    With one worker all happens in this process and in order. With more, `task` must be a module's function (or a
    `functools.partial` of one): processes start by spawn, because a forked child of a process that has used PyTorch's
    threads can deadlock. At most two items a worker are under way, so memory does not grow with their number.
    """
    keep_memory()
    run = _here if workers == 1 or len(items) < 2 else _in_processes
    with tqdm(total=len(items), desc=description, unit="video", disable=not items) as bar:
        for outcome in run(task, items, min(workers, len(items))):
            bar.update()
            yield outcome


def run_step(
    task: Callable[[Video], list[str]],
    videos: Sequence[Video],
    output: Callable[[Video], Path],
    options: argparse.Namespace,
    step: str,
    troubles: Sequence[Trouble] = (),
) -> int:
    """Run one numbered step over the videos whose `output` is not there yet.

    Args:
        task: makes one video's output whole or not at all, and returns the reasons for what it had to leave out.
        options: what `step_parser` parsed.
        step: the step's name in the progress bar and in failures.csv.
        troubles: what `read_dataset` left out; listed, but not counted as failures of this step.

    Returns:
        exit status: 0, or 1 where more than `--max-failures` of the videos failed.
    """
    missing = [video for video in videos if not output(video).exists()]
    missing.sort(key=lambda video: file_size(video.path), reverse=True)
    troubles, failed = list(troubles), 0
    for video, left_out, error in map_videos(task, missing, options.workers, step):
        if error is not None:
            failed += 1
            left_out = [describe(error, video.path)]
        troubles += [Trouble(str(video.path), reason) for reason in left_out]
    report = _write_troubles(options.root_dir / "failures.csv", step, troubles)
    done = len(missing) - failed
    print(f"{step}: {done} videos done, {len(videos) - len(missing)} were there, {failed} failed{report}")
    return int(failed > options.max_failures * len(videos))


def describe(error: Exception, path: Path) -> str:
    """An error in one line, without the file's name, which stands beside it."""
    text = str(error).removeprefix(f"{path}: ")
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


@contextmanager
def keep_workers(workers: int) -> Iterator[None]:
    """Inside this block `map_videos` does not start worker processes each time, but uses the same ones again."""
    _kept.append(_start_pool(workers))
    try:
        yield
    finally:
        _end(_kept.pop())


def keep_memory() -> None:
    """Tell glibc, where this is glibc, to keep freed memory for the next tensor instead of giving it back to the system:
    fetching it anew costs more than B7's arithmetic (docs/LOG.md)."""
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def _here(task: Callable, items: Sequence, workers: int) -> Iterator[tuple]:
    for item in items:
        try:
            yield item, task(item), None
        except Exception as error:  # the caller reports it: one bad video must not end the run
            yield item, None, error


def _in_processes(task: Callable, items: Sequence, workers: int) -> Iterator[tuple]:
    pool = _kept[-1] if _kept else _start_pool(workers)
    running: dict[Future, object] = {}
    todo = iter(items)
    try:
        while True:
            while len(running) < 2 * workers and (item := next(todo, None)) is not None:
                running[pool.submit(task, item)] = item
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                item, error = running.pop(future), future.exception()
                if isinstance(error, BrokenProcessPool):
                    raise UserError("a worker process was killed (out of memory?); try again with fewer --workers")
                yield item, None if error else future.result(), error
    finally:
        if pool not in _kept:
            _end(pool)


_kept: list[ProcessPoolExecutor] = []


def _start_pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker)


def _end(pool: ProcessPoolExecutor) -> None:
    """End the worker processes at once: whether all is done or something went wrong, nobody waits for what they do now."""
    for process in list((pool._processes or {}).values()):
        process.terminate()
    pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process hears Ctrl-C and ends the workers
    # One process for each core is parallel enough; a library's threads would only wait for each other's cores.
    cv2.setNumThreads(1)
    threadpool_limits(1)  # what is loaded: OpenMP (PyTorch) and BLAS (PyTorch's, NumPy's, SciPy's)
    os.environ["OMP_NUM_THREADS"] = "1"  # what is not loaded yet
    os.nice(10)  # the process that holds the networks comes first: its threads have to wait for each other
    keep_memory()


def _write_troubles(path: Path, step: str, troubles: Sequence[Trouble]) -> str:
    """Replace this step's rows in failures.csv and say on stderr what is new."""
    kept = []
    if path.exists():
        with open(path, newline="", encoding="utf-8") as file:
            kept = [row for row in csv.reader(file) if row and row[0] not in (step, "step")]
    rows = kept + [[step, trouble.file, trouble.reason] for trouble in troubles]
    if rows or path.exists():
        write_csv(path, ["step", "file", "reason"], rows)
    for trouble in troubles[:SHOWN_TROUBLES]:
        print(f"{step}: {trouble.file}: {trouble.reason}", file=sys.stderr)
    if len(troubles) > SHOWN_TROUBLES:
        print(f"{step}: … and {len(troubles) - SHOWN_TROUBLES} more in {path}", file=sys.stderr)
    return f"; {len(troubles)} left out or failed, listed in {path}" if troubles else ""
