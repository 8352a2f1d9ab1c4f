"""Workers on the machines of a Ray cluster, to be used as `preprocessing.workers.Workers` is on one.

Each worker is an actor, which keeps one worker process of `preprocessing.workers` on its machine: that imports and loads
once, and has a local one's limits of time and memory, its replacement and its second try. Ray places the actors, carries
the work to them and tells when one is lost with its machine; what was under way there is given to another.

All machines must see the data and this project under the same paths, and have its requirements and Ray installed.
"""

import os
import re
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from multiprocessing.pool import ExceptionWithTraceback
from pathlib import Path

from preprocessing.cli import MachineError, UserError, cleanups
from preprocessing.workers import Limits, Lost, Workers

ROOT = Path(__file__).parent.parent
MOST_LOSSES = 3  # actors that one item may be under way on when they are lost; then it is the item that is to blame
MOST_FAILED_STARTS = 10  # in a row
PATIENCE = 20  # seconds with no worker at all, before the user is told what is waited for


class Cluster:
    """Up to `count` actors, or as many as there is room for now, each with one processor and `gpus` of a GPU.

    Raises:
        UserError: Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(self, count: int | None, address: str | None, gpus: float):
        self._ray, self._gpus = _connect(address), gpus
        self._count = count or _room(self._ray.cluster_resources(), gpus)
        self._actor = self._ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=0)(_Actor)
        self._starting: dict = {}  # what its start will answer: an actor, and whether it is new
        self._busy: dict = {}  # what its work will answer: an actor, and the item
        self._free: list = []
        self._failed_starts = 0
        cleanups.append(self.close)

    def map(self, task: Callable, items: Sequence, limits: Limits, sees: Path) -> Iterator[tuple]:
        """Give (item, result, None) or (item, None, error) as they come; a worker is given one item at a time.

        `task` must be a module's function, or a `functools.partial` of one. Where an actor does not see the path `sees`, its
        items end as a `MachineError`: the data is not on a file system that the machines share.
        """
        task, todo, again, losses = _importable(task), iter(items), [], Counter()
        left = len(items)
        try:
            while left:
                while len(self._starting) + len(self._free) + len(self._busy) < min(self._count, left):
                    self._greet(self._actor.remote(self._gpus, Path.cwd()), new=True)
                while self._free and (item := again.pop() if again else next(todo, None)) is not None:
                    actor = self._free.pop()
                    self._busy[actor.work.remote(task, item, limits, sees)] = actor, item
                answer = self._next_answer()
                if answer in self._starting:
                    self._welcome(answer)
                    continue
                item, outcome = self._outcome(answer)
                if isinstance(outcome, self._ray.exceptions.RayError):
                    losses[item] += 1
                    if losses[item] < MOST_LOSSES:
                        again.append(item)
                        continue
                    outcome = None, Lost(f"{MOST_LOSSES} workers of the cluster were lost while they had it")
                left -= 1
                yield item, *outcome
        finally:
            for actor, _ in self._busy.values():
                self._ray.kill(actor)
            self._busy.clear()

    def close(self) -> None:
        """End the actors, and so their worker processes, and leave the cluster. A second time it does nothing."""
        if self.close in cleanups:
            cleanups.remove(self.close)
            self._ray.shutdown()

    def _outcome(self, answer: object) -> tuple:
        """A busy actor's item, and its result and error, or how the actor was lost."""
        actor, item = self._busy.pop(answer)
        try:
            outcome = self._ray.get(answer)
        except self._ray.exceptions.RayTaskError as error:  # of ours: the task's own errors are in the answer
            raise MachineError(f"a worker of the cluster failed: {_last_line(error)}") from error
        except self._ray.exceptions.RayError as error:
            print("a worker of the cluster was lost, its video is given to another", file=sys.stderr)
            self._ray.kill(actor)  # where it lives, but its answer was lost with another machine
            for idle in self._free:  # which may be lost with it
                self._greet(idle, new=False)
            self._free.clear()
            return item, error
        self._free.append(actor)
        return item, outcome

    def _greet(self, actor: object, new: bool) -> None:
        self._starting[actor.start.remote()] = actor, new

    def _welcome(self, answer: object) -> None:
        """An actor has answered that it is there, or is lost."""
        actor, new = self._starting.pop(answer)
        try:
            self._ray.get(answer)
        except self._ray.exceptions.RayError as error:
            self._failed_starts += new
            if self._failed_starts >= MOST_FAILED_STARTS and not self._free and not self._busy:
                raise MachineError(f"no worker of the cluster can start; all machines need this project at {ROOT} and its "
                                   f"requirements: {_last_line(error)}") from error  # fmt: skip
        else:
            self._failed_starts = 0
            self._free.append(actor)

    def _next_answer(self) -> object:
        """Of what is under way the next that is ready. The user is told where nothing can be under way."""
        waiting = [*self._busy, *self._starting]
        ready, _ = self._ray.wait(waiting, timeout=None if self._busy else PATIENCE)
        if not ready:
            has = {name: self._ray.cluster_resources().get(name, 0) for name in ("CPU", "GPU")}
            print(f"waiting for the cluster: a worker needs 1 CPU and {self._gpus:g} GPU; the whole cluster has {has['CPU']:g} "
                  f"CPU and {has['GPU']:g} GPU, others may use them", file=sys.stderr)  # fmt: skip
            ready, _ = self._ray.wait(waiting)
        return ready[0]


class _Actor:
    """What runs on the cluster: one worker process."""

    def __init__(self, gpus: float, folder: Path):
        """`folder`: where the program was started; relative paths mean the same here as there."""
        self._folder = folder
        if not gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # else every worker would take the machine's first GPU
        self._workers = Workers(1)

    def start(self) -> None:
        """Answers that the actor is there."""

    def work(self, task: Callable, item: object, limits: Limits, sees: Path) -> tuple:
        """Result and error of one item, one of them None."""
        for path in (self._folder, self._folder / sees):
            if not path.exists():
                return None, MachineError(f"the machine {socket.gethostname()} does not see {path}; the data must be on a file "
                                          "system that all machines of the cluster share, under one path")  # fmt: skip
        os.chdir(self._folder)
        ((_, result, error),) = self._workers.map(task, [item], limits)
        return result, error and ExceptionWithTraceback(error, error.__traceback__)


def _connect(address: str | None) -> object:
    """The module `ray`, connected."""
    try:
        import ray
    except ImportError as error:
        raise UserError(
            "--executor ray: Ray is not installed; pip install -r requirements-ray.txt -c constraints.txt"
        ) from error
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a Ray that is started here does not call home
    try:
        if place := re.fullmatch(r"([^/]+):(\d+)", address or ""):  # Ray itself would try for minutes
            socket.create_connection((place[1], int(place[2])), timeout=10).close()
        ray.init(address, logging_level="warning", include_dashboard=None if address else False,
                 runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}})  # fmt: skip
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"--ray-address {address}: {_last_line(error)}; `ray status` says what runs") from error
    return ray


def _room(resources: dict[str, float], gpus: float) -> int:
    """How many actors a cluster with these resources has room for."""
    room = resources.get("CPU", 0)
    return max(1, int(min(room, resources.get("GPU", 0) / gpus) if gpus else room))


def _importable(task: Callable) -> Callable:
    """The task under its module's own name: what is `__main__` in this process is not what is so elsewhere."""
    if isinstance(task, partial):
        return partial(_importable(task.func), *task.args, **task.keywords)
    if task.__module__ != "__main__":
        return task
    return getattr(import_module(sys.modules["__main__"].__spec__.name), task.__qualname__)


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
