"""One function over many videos: where it runs, progress, resume, failures.

`map_videos` runs a plain function of one item where the user wants it (`Where`: in this process, in worker processes of this
machine, on a Ray cluster) and gives the results as they come; `run_step` makes a numbered preprocessing step of it: what is
on disk already is skipped, what went wrong is listed in DATA/failures.csv, and the exit status says whether too much did.
Nothing else in the project chooses where videos are worked on.
"""

import argparse
import csv
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple, TypeVar

from tqdm import tqdm

from preprocessing.cli import MachineError, UserError, at_least_0, make_parser, positive, share, whole_number
from preprocessing.dfdc import Trouble, Video
from preprocessing.files import TABLE, file_size, names_in, reasons, remove_unfinished, write_csv, writing
from preprocessing.workers import Limits, Workers, keep_memory

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_FAILURES = 0.02  # share of videos; DFDC itself has a few that no decoder reads
SHOWN_TROUBLES = 5


class Where(NamedTuple):
    """Where videos are worked on: on `executor` "local", this machine, or "ray", the cluster at `address`.

    workers: how many at a time; 0 in this process, without limits; None as many as there are processors.
    gpus: each worker's share of a GPU, on Ray only; on this machine all see all.
    """

    workers: int | None = None
    limits: Limits = Limits()
    executor: str = "local"
    address: str | None = None
    gpus: float = 0

    @property
    def is_cluster(self) -> bool:
        return self.executor == "ray"


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
    """The options that `where_of` reads."""
    limits = Limits()
    parser.add_argument("--workers", type=whole_number, help="videos worked on at a time; 0 works in this process, without limits; "
                        "as many as there are processors, of the cluster with Ray, if not given")  # fmt: skip
    parser.add_argument("--time-limit", type=positive, default=limits.seconds, metavar="SECONDS",
                        help="most time for one video, which counts as failed after it")  # fmt: skip
    parser.add_argument("--memory-limit", type=positive, default=limits.memory, metavar="GIB",
                        help="most memory of a worker for one video, likewise")  # fmt: skip
    parser.add_argument("--executor", choices=("local", "ray"), default="local",
                        help="where videos are worked on: on this machine, or on a Ray cluster (docs/scale.md)")  # fmt: skip
    parser.add_argument("--ray-address", metavar="HOST:PORT", help="of the cluster; the one that this machine is part of, or a "
                        "Ray of this machine alone, if not given")  # fmt: skip
    parser.add_argument("--gpus-per-worker", type=at_least_0, default=0, metavar="SHARE",
                        help="with Ray: share of a GPU for each worker, such as 0.25; 0 keeps it to processors")  # fmt: skip


def worker_arguments(options: argparse.Namespace) -> list[str]:
    """The same options for a program that this one calls."""
    names = ("workers", "time_limit", "memory_limit", "executor", "ray_address", "gpus_per_worker")
    given = {name: getattr(options, name) for name in names}
    return [
        text for name, value in given.items() if value is not None for text in (f"--{name.replace('_', '-')}", str(value))
    ]


def where_of(options: argparse.Namespace) -> Where:
    """What `add_worker_options` asked for."""
    if options.executor == "local" and (options.ray_address or options.gpus_per_worker):
        raise UserError("--ray-address and --gpus-per-worker go with --executor ray")
    if options.executor == "ray" and options.workers == 0:
        raise UserError("--workers 0 works in this process; with --executor ray give at least 1")
    limits = Limits(options.time_limit, options.memory_limit)
    return Where(options.workers, limits, options.executor, options.ray_address, options.gpus_per_worker)


def map_videos(
    task: Callable[[Item], Result],
    items: Sequence[Item],
    where: Where,
    description: str,
    sees: Path = Path(),
    unit: str = "video",
) -> Iterator[tuple[Item, Result | None, Exception | None]]:
    """Run `task` on each item, with a progress bar, and give (item, result, None) or (item, None, error) as they finish.

    Without workers all happens in this process, in order and without limits. With workers, `task` must be a module's
    function (or a `functools.partial` of one), and an item that hangs, crashes or needs too much memory ends as an error
    too. At most two items a worker are under way, so memory does not grow with their number. `sees` is a path that the
    workers of a cluster must see.
    """
    keep_memory()
    with tqdm(total=len(items), desc=description, unit=unit, disable=not items) as bar:
        here = where.workers == 0 and not where.is_cluster
        for outcome in _here(task, items) if here or not items else _in_workers(task, items, where, sees):
            bar.update()
            yield outcome


def run_step(
    task: Callable[[Video], None],
    videos: Sequence[Video],
    output: Callable[[Video], Path],
    options: argparse.Namespace,
    step: str,
    troubles: Sequence[Trouble] = (),
    unit: str = "video",
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
    there = {folder: names_in(folder) for folder in {output(video).parent for video in videos}}
    missing = [video for video in videos if output(video).name not in there[output(video).parent]]
    missing.sort(key=lambda video: file_size(video.path), reverse=True)
    failed: dict[str, Trouble] = {}
    where = where_of(options)
    with _sign(options.root_dir) if where.is_cluster else nullcontext(Path()) as sees:
        for video, _, error in map_videos(task, missing, where, step, sees, unit):
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
    print(f"{step}: {done} {unit}s done, {len(videos) - len(missing)} were there, {len(failed)} failed{report}")
    return int(len(failed) > options.max_failures * len(videos))


def describe(error: Exception, path: Path) -> str:
    """An error in one line, without the file's name, which stands beside it."""
    text = " ".join(str(error).removeprefix(f"{path}: ").split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


@contextmanager
def keep_workers(where: Where) -> Iterator[None]:
    """Inside this block `map_videos` does not start workers each time, but uses the same ones again."""
    _kept.append(_workers(where))
    try:
        yield
    finally:
        _kept.pop().close()


_kept: list["Workers | Cluster"] = []  # noqa: F821


def _workers(where: Where, most: int | None = None) -> "Workers | Cluster":  # noqa: F821
    """The choice of where to run. `most`: no more workers are of use."""
    if where.is_cluster:
        from preprocessing.cluster import Cluster

        return Cluster(where.workers, where.address, where.gpus)
    count = os.cpu_count() if where.workers is None else where.workers
    return Workers(min(count, most or count))


def _here(task: Callable, items: Sequence) -> Iterator[tuple]:
    for item in items:
        try:
            yield item, task(item), None
        except Exception as error:  # the caller decides what it means: one bad video must not end the run
            yield item, None, error


def _in_workers(task: Callable, items: Sequence, where: Where, sees: Path) -> Iterator[tuple]:
    workers = _kept[-1] if _kept else _workers(where, len(items))
    try:
        yield from workers.map(task, items, where.limits, sees)
    finally:
        if workers not in _kept:
            workers.close()


@contextmanager
def _sign(root: Path) -> Iterator[Path]:
    """A file that lies in DATA while the block runs: a machine that does not see it would write elsewhere."""
    with writing(root), tempfile.NamedTemporaryFile(prefix=".worked_on_", dir=root) as file:
        yield Path(file.name)


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
