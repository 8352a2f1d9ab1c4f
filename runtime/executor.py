"""Map one function over many items: in this process, in worker processes, or on Ray.

`map_items` runs a plain function of one item where `ExecutorOptions` say and gives the
results as they come, with a progress bar. Nothing else chooses where items are worked
on.
"""

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from tqdm import tqdm

from runtime.cli import UserError, non_negative_float, non_negative_int, positive_float
from runtime.process import share_imports, tune_malloc
from runtime.workers import Limits, WorkerPool

if TYPE_CHECKING:
    from runtime.ray_cluster import RayCluster

Item = TypeVar("Item")
Result = TypeVar("Result")


class ExecutorOptions(NamedTuple):
    """Where items are worked on.

    workers: how many items at a time; 0 in this process, without limits; None: as many
        as there are processors.
    executor: "local", worker processes of this machine, or "ray", a cluster.
    address: of the Ray cluster, HOST:PORT.
    gpus: each Ray worker's fraction of a GPU; local workers see all GPUs.
    """

    workers: int | None = None
    limits: Limits = Limits()
    executor: str = "local"
    address: str | None = None
    gpus: float = 0

    @property
    def is_cluster(self) -> bool:
        return self.executor == "ray"


def add_executor_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `executor_options` reads."""
    limits = Limits()
    parser.add_argument(
        "--workers",
        type=non_negative_int,
        help="items worked on at a time, each in a process; 0: in this process, "
        "without limits; if not given, the number of processors (Ray: of the cluster)",
    )
    parser.add_argument(
        "--time-limit",
        type=positive_float,
        default=limits.seconds,
        metavar="SECONDS",
        help="maximum time for one video, which counts as failed after it",
    )
    parser.add_argument(
        "--memory-limit",
        type=positive_float,
        default=limits.memory,
        metavar="GIB",
        help="maximum memory of a worker for one video, likewise",
    )
    parser.add_argument(
        "--executor",
        choices=("local", "ray"),
        default="local",
        help="worker processes of this machine, or a Ray cluster (docs/scale.md)",
    )
    parser.add_argument(
        "--ray-address",
        metavar="HOST:PORT",
        help="of the cluster; if not given, the one that this machine is part of, "
        "or a Ray of this machine alone",
    )
    parser.add_argument(
        "--gpus-per-worker",
        type=non_negative_float,
        default=0,
        metavar="FRACTION",
        help="with Ray: fraction of a GPU for each worker, such as 0.25; 0: CPU only",
    )


def executor_arguments(options: argparse.Namespace) -> list[str]:
    """The same options as arguments for another program."""
    names = (
        "workers",
        "time_limit",
        "memory_limit",
        "executor",
        "ray_address",
        "gpus_per_worker",
    )
    arguments = []
    for name in names:
        if (value := getattr(options, name)) is not None:
            arguments += [f"--{name.replace('_', '-')}", str(value)]
    return arguments


def executor_options(options: argparse.Namespace) -> ExecutorOptions:
    """What `add_executor_options` parsed."""
    if options.executor == "local" and (options.ray_address or options.gpus_per_worker):
        raise UserError("--ray-address and --gpus-per-worker go with --executor ray")
    if options.executor == "ray" and options.workers == 0:
        raise UserError(
            "--workers 0 works in this process; with --executor ray give at least 1"
        )
    limits = Limits(options.time_limit, options.memory_limit)
    return ExecutorOptions(
        options.workers,
        limits,
        options.executor,
        options.ray_address,
        options.gpus_per_worker,
    )


def map_items(
    task: Callable[[Item], Result],
    items: Sequence[Item],
    options: ExecutorOptions,
    description: str,
    unit: str = "item",
    shared_path: Path = Path(),
    imports: Sequence[str] = (),
) -> Iterator[tuple[Item, Result | None, Exception | None]]:
    """Run `task` on each item, with a progress bar.

    At most two items a worker are under way, so memory does not grow with their number.

    Args:
        task: with workers a module's function, or a `functools.partial` of one.
        description, unit: of the progress bar.
        shared_path: a path that the workers of a cluster must see.
        imports: slow modules that the task imports as it runs (`share_imports`).

    Yields:
        (item, result, None) or (item, None, error) in the order in which they finish.
        Without workers all happens in this process, in order and without limits. With
        workers an item that hangs, crashes or needs too much memory is an error too.
    """
    tune_malloc()
    in_process = options.workers == 0 and not options.is_cluster
    with tqdm(total=len(items), desc=description, unit=unit, disable=not items) as bar:
        if in_process or not items:
            outcomes = _map_in_process(task, items)
        else:
            if not options.is_cluster:
                share_imports(*imports)
            outcomes = _map_in_workers(task, items, options, shared_path)
        for outcome in outcomes:
            bar.update()
            yield outcome


def error_reason(error: Exception, path: Path) -> str:
    """An error in one line, without the file's name, which is shown beside it."""
    text = " ".join(str(error).removeprefix(f"{path}: ").split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


@contextmanager
def persistent_workers(options: ExecutorOptions) -> Iterator[None]:
    """Let all calls of `map_items` inside the block use the same workers."""
    _persistent.append(_make_workers(options))
    try:
        yield
    finally:
        _persistent.pop().close()


_persistent: list["WorkerPool | RayCluster"] = []


def _make_workers(
    options: ExecutorOptions, max_count: int | None = None
) -> "WorkerPool | RayCluster":
    """`max_count`: of local workers, where more would have nothing to do."""
    if options.is_cluster:
        from runtime.ray_cluster import RayCluster

        return RayCluster(options.workers, options.address, options.gpus)
    count = (os.cpu_count() or 1) if options.workers is None else options.workers
    return WorkerPool(min(count, max_count or count))


def _map_in_process(task: Callable, items: Sequence) -> Iterator[tuple]:
    for item in items:
        try:
            yield item, task(item), None
        except Exception as error:  # noqa: BLE001 - the caller decides
            yield item, None, error


def _map_in_workers(
    task: Callable, items: Sequence, options: ExecutorOptions, shared_path: Path
) -> Iterator[tuple]:
    workers = _persistent[-1] if _persistent else _make_workers(options, len(items))
    try:
        yield from workers.map(task, items, options.limits, shared_path)
    finally:
        if workers not in _persistent:
            workers.close()
