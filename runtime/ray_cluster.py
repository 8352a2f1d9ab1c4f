"""Workers on a Ray cluster, with the interface of `runtime.workers.WorkerPool`.

Each worker is a Ray actor that keeps one worker process of `runtime.workers` on its
machine: that imports and loads once, and has the same limits of time and memory, the
same replacement and the same retry as a local one. Ray places the actors, carries the
items to them and tells when one is lost with its machine; its item is then given to
another.

All machines must see the data and this project under the same paths, and have the
project's requirements and Ray installed.
"""

import logging
import os
import re
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from multiprocessing.pool import ExceptionWithTraceback  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any

from runtime.cli import MachineError, UserError, cleanups
from runtime.process import share_imports
from runtime.workers import Limits, WorkerLost, WorkerPool

ROOT = Path(__file__).parent.parent
MAX_LOSSES = 3  # actors lost while they had one item; then the item is to blame
MAX_FAILED_STARTS = 10  # in a row
IDLE_SECONDS = 20  # without any worker, before the user is told what is waited for


class RayCluster:
    """Up to `count` actors, each with one processor and `gpus` of a GPU.

    Args:
        count: as many as there is room for now if None.
        address: HOST:PORT of the cluster; Ray's own choice if None.
        gpus: fraction of a GPU for each actor.

    Raises:
        UserError: Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(self, count: int | None, address: str | None, gpus: float):
        self._ray, self._gpus = _connect(address), gpus
        self._count = count or _capacity(self._ray.cluster_resources(), gpus)
        make_actor = self._ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=0)
        self._actor = make_actor(_Actor)
        # object reference of a start → actor, and whether it is new
        self._starting: dict[Any, tuple[Any, bool]] = {}
        # object reference of a result → actor, and the item
        self._busy: dict[Any, tuple[Any, Any]] = {}
        self._idle: list[Any] = []
        self._failed_starts = 0
        cleanups.append(self.close)

    def map(
        self, task: Callable, items: Sequence, limits: Limits, shared_path: Path
    ) -> Iterator[tuple]:
        """Give (item, result, None) or (item, None, error) as they come.

        `task` must be a module's function, or a `functools.partial` of one. Where an
        actor does not see `shared_path`, its items end as a `MachineError`: the data is
        not on a file system that the machines share.
        """
        task, remaining = _importable(task), iter(items)
        retries: list[Any] = []
        losses: Counter[Any] = Counter()
        left = len(items)
        try:
            while left:
                self._start_actors(left)
                while self._idle:
                    item = retries.pop() if retries else next(remaining, None)
                    if item is None:
                        break
                    actor = self._idle.pop()
                    reference = actor.work.remote(task, item, limits, shared_path)
                    self._busy[reference] = actor, item
                reference = self._wait()
                if reference in self._starting:
                    self._on_started(reference)
                    continue
                item, outcome = self._outcome(reference)
                if isinstance(outcome, self._ray.exceptions.RayError):
                    losses[item] += 1
                    if losses[item] < MAX_LOSSES:
                        retries.append(item)
                        continue
                    outcome = (
                        None,
                        WorkerLost(
                            f"{MAX_LOSSES} workers of the cluster were lost "
                            "while they had it"
                        ),
                    )
                left -= 1
                yield item, *outcome
        finally:
            for actor, _ in self._busy.values():
                self._ray.kill(actor)
            self._busy.clear()

    def close(self) -> None:
        """End the actors and their worker processes, leave the cluster. Idempotent."""
        if self.close in cleanups:
            cleanups.remove(self.close)
            self._ray.shutdown()

    def _start_actors(self, items_left: int) -> None:
        wanted = min(self._count, items_left)
        while len(self._starting) + len(self._idle) + len(self._busy) < wanted:
            self._start(self._actor.remote(self._gpus, Path.cwd()), is_new=True)

    def _start(self, actor: Any, is_new: bool) -> None:
        self._starting[actor.start.remote()] = actor, is_new

    def _on_started(self, reference: Any) -> None:
        """An actor has answered that it runs, or it is lost."""
        actor, is_new = self._starting.pop(reference)
        try:
            self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            self._failed_starts += is_new
            none_runs = not self._idle and not self._busy
            if self._failed_starts >= MAX_FAILED_STARTS and none_runs:
                raise MachineError(
                    "no worker of the cluster can start; all machines need this "
                    f"project at {ROOT} and its requirements: {_last_line(error)}"
                ) from error
        else:
            self._failed_starts = 0
            self._idle.append(actor)

    def _outcome(self, reference: Any) -> tuple[Any, Any]:
        """A busy actor's item with (result, error), or with how the actor was lost."""
        actor, item = self._busy.pop(reference)
        try:
            outcome = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            # of the actor itself: the task's own errors are in the outcome
            raise MachineError(
                f"a worker of the cluster failed: {_last_line(error)}"
            ) from error
        except self._ray.exceptions.RayError as error:
            print(
                "a worker of the cluster was lost, its video is given to another",
                file=sys.stderr,
            )
            # it may live while its answer was lost with another machine
            self._ray.kill(actor)
            for idle in self._idle:  # these may be lost with it
                self._start(idle, is_new=False)
            self._idle.clear()
            return item, error
        self._idle.append(actor)
        return item, outcome

    def _wait(self) -> Any:
        """The next object reference that is ready. Tells the user if none can run."""
        waiting = [*self._busy, *self._starting]
        timeout = None if self._busy else IDLE_SECONDS
        ready, _ = self._ray.wait(waiting, timeout=timeout)
        if not ready:
            resources = self._ray.cluster_resources()
            cpus, gpus = resources.get("CPU", 0), resources.get("GPU", 0)
            print(
                f"waiting for the cluster: a worker needs 1 CPU and {self._gpus:g} "
                f"GPU; the whole cluster has {cpus:g} CPU and {gpus:g} GPU, "
                "others may use them",
                file=sys.stderr,
            )
            ready, _ = self._ray.wait(waiting)
        return ready[0]


class _Actor:
    """What runs on the cluster: one worker process."""

    def __init__(self, gpus: float, folder: Path):
        """`folder`: where the program was started, the base of relative paths."""
        self._folder = folder
        if not gpus:
            # every worker would take the machine's first GPU
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        share_imports()
        self._pool = WorkerPool(1)

    def start(self) -> None:
        """Answers that the actor runs."""

    def work(
        self, task: Callable, item: object, limits: Limits, shared_path: Path
    ) -> tuple:
        """Result and error of one item, one of them None."""
        for path in (self._folder, self._folder / shared_path):
            if not path.exists():
                return None, MachineError(
                    f"the machine {socket.gethostname()} does not see {path}; the data "
                    "must be on a file system that all machines of the cluster share, "
                    "under one path"
                )
        os.chdir(self._folder)
        ((_, result, error),) = self._pool.map(task, [item], limits)
        return result, error and ExceptionWithTraceback(error, error.__traceback__)


def _connect(address: str | None) -> Any:
    """The module `ray`, connected to the cluster."""
    try:
        import ray
    except ImportError as error:
        raise UserError(
            "--executor ray: Ray is not installed; "
            "pip install -r requirements-ray.txt -c constraints.txt"
        ) from error
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry
    try:
        if host_port := re.fullmatch(r"([^/]+):(\d+)", address or ""):
            # Ray itself would try for minutes
            target = host_port[1], int(host_port[2])
            socket.create_connection(target, timeout=10).close()
        ray.init(
            address,
            logging_level=logging.WARNING,
            include_dashboard=None if address else False,
            runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"--ray-address {address}: {_last_line(error)}; `ray status` says what runs"
        ) from error
    return ray


def _capacity(resources: dict[str, float], gpus: float) -> int:
    """How many actors a cluster with these resources has room for."""
    cpus = resources.get("CPU", 0)
    return max(1, int(min(cpus, resources.get("GPU", 0) / gpus) if gpus else cpus))


def _importable(task: Callable) -> Callable:
    """The task under its module's own name, since `__main__` differs elsewhere."""
    if isinstance(task, partial):
        return partial(_importable(task.func), *task.args, **task.keywords)
    if task.__module__ != "__main__":
        return task
    spec = sys.modules["__main__"].__spec__
    assert spec is not None, "the program was started by `python -m`"
    return getattr(import_module(spec.name), task.__qualname__)


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
