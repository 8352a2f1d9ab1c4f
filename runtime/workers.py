"""Worker processes for work that may hang, crash or eat the memory.

`WorkerPool.map` runs a plain function on many items. Each worker is a process started
by `START_METHOD`. A thread of this process sends it one item at a time over a pipe and
watches it: a worker over the time or the memory limit is killed and replaced, and so is one that died. An
item whose worker died, or ran out of memory, is retried once in a fresh worker, because
another program or an earlier item may have been the cause. No worker outlives its
parent: Linux kills the workers when it ends, however it ends.
"""

import multiprocessing
import multiprocessing.connection
import multiprocessing.process
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from multiprocessing.pool import ExceptionWithTraceback  # type: ignore[attr-defined]
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from time import monotonic
from typing import NamedTuple

import cv2
from threadpoolctl import threadpool_limits

from runtime.cli import MachineError, UserError, cleanups
from runtime.device import take_turns
from runtime.process import START_METHOD, block_sigint, die_with_parent, tune_malloc

# Starting a process also asks for the exit status of others. It can be read once, and
# two threads that read at a time would lose it.
_one_at_a_time = Lock()
POLL_SECONDS = 0.5  # between two looks at a worker's clock and memory
GIB = 2**30


class Limits(NamedTuple):
    """What one item may cost.

    seconds: wall-clock time.
    memory: of its worker in GiB, memory-mapped files not counted.
    """

    seconds: float = 600
    memory: float = 4


class WorkerLost(UserError):
    """An item ended its worker. `retry`: it may succeed in a fresh one."""

    def __init__(self, message: str, retry: bool = False):
        super().__init__(message)
        self.retry = retry


class Job(NamedTuple):
    """One item, and the queue for its outcome (item, result, error)."""

    task: Callable
    item: object
    limits: Limits
    outcomes: SimpleQueue


class WorkerPool:
    """`count` worker processes, each started when there is an item for it.

    They take turns at the GPUs, where a task asks for the device "auto".
    """

    def __init__(self, count: int):
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._slots = [_WorkerSlot(self._jobs, number) for number in range(count)]
        cleanups.append(self.close)

    def map(
        self,
        task: Callable,
        items: Sequence,
        limits: Limits,
        shared_path: Path = Path(),
    ) -> Iterator[tuple]:
        """Give (item, result, None) or (item, None, error) as they come.

        At most two items a worker are under way. `task` must be a module's function, or
        a `functools.partial` of one. `shared_path` is for the workers of a cluster.
        """
        outcomes: SimpleQueue[tuple] = SimpleQueue()
        remaining = iter(items)
        first = islice(remaining, 2 * len(self._slots))
        pending = self._submit(first, task, limits, outcomes)
        try:
            while pending:
                yield outcomes.get()
                pending += (
                    self._submit(islice(remaining, 1), task, limits, outcomes) - 1
                )
        finally:
            self._drop_queued()

    def close(self) -> None:
        """End the worker processes at once, whatever they do. Idempotent."""
        if self.close not in cleanups:
            return
        cleanups.remove(self.close)
        self._drop_queued()
        for slot in self._slots:
            self._jobs.put(None)
            slot.end()
        for slot in self._slots:
            slot.join()

    def _submit(
        self, items: Iterator, task: Callable, limits: Limits, outcomes: SimpleQueue
    ) -> int:
        count = 0
        for item in items:
            self._jobs.put(Job(task, item, limits, outcomes))
            count += 1
        return count

    def _drop_queued(self) -> None:
        """Forget the jobs that no worker has begun."""
        try:
            while True:
                self._jobs.get_nowait()
        except Empty:
            pass


class _WorkerSlot(Thread):
    """A thread that owns at most one worker process, which dies with it."""

    def __init__(self, jobs: SimpleQueue, number: int):
        super().__init__(daemon=True)
        self._number = number
        self._jobs, self._lock, self._ended = jobs, Lock(), False
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: multiprocessing.connection.Connection
        self.start()

    def run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.outcomes.put((job.item, *self._run_job(job)))

    def end(self) -> None:
        with self._lock:
            self._ended = True
            self._kill()

    def _run_job(self, job: Job) -> tuple:
        """Result and error, one of them None."""
        for is_retry in (False, True):
            try:
                return self._request(job)
            except WorkerLost as lost:
                with self._lock:
                    self._kill()
                if is_retry or not lost.retry or self._ended:
                    return None, WorkerLost(f"{lost}, twice" if is_retry else str(lost))
            except Exception as error:  # noqa: BLE001 - given to the caller
                return None, error
        raise AssertionError("unreachable")

    def _request(self, job: Job) -> tuple:
        """Send the job to the worker and wait for its answer within the limits."""
        if self._process is None:
            self._start_worker()
        try:
            self._pipe.send((job.task, job.item))
        except OSError as error:
            raise self._worker_died() from error
        start = monotonic()
        while not self._pipe.poll(POLL_SECONDS):
            if monotonic() - start > job.limits.seconds:
                raise WorkerLost(
                    f"took longer than {job.limits.seconds:g} seconds (--time-limit)"
                )
            process = self._process
            if process and _memory_used(process.pid) > job.limits.memory * GIB:
                raise WorkerLost(
                    f"needed more than {job.limits.memory:g} GiB of memory "
                    "(--memory-limit)",
                    retry=True,
                )
        try:
            return self._pipe.recv()
        except (EOFError, OSError) as error:
            raise self._worker_died() from error

    def _start_worker(self) -> None:
        context = multiprocessing.get_context(START_METHOD)
        self._pipe, theirs = context.Pipe()
        with self._lock, _one_at_a_time, block_sigint():
            if self._ended:
                raise MachineError("the worker processes were ended")
            process = context.Process(
                target=_worker_main, args=(theirs, self._number), daemon=True
            )
            try:
                process.start()
            except (OSError, EOFError) as error:
                raise MachineError(
                    "the server of the worker processes ended; what it printed above "
                    "says why"
                ) from error
            self._process = process
        theirs.close()
        try:
            self._pipe.recv()
        except EOFError as error:
            raise MachineError(
                f"a worker process could not start ({self._worker_died()}); "
                "what it printed above says why"
            ) from error

    def _worker_died(self) -> WorkerLost:
        process = self._process
        if process is None:  # `end` has killed it
            return WorkerLost("its worker process was ended")
        with _one_at_a_time:
            process.join()
        code = process.exitcode or 0
        how = signal.Signals(-code).name if code < 0 else f"status {code}"
        hint = "; out of memory?" if code == -signal.SIGKILL else ""
        return WorkerLost(f"its worker process died ({how}{hint})", retry=True)

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            with _one_at_a_time:
                self._process.join()
            self._process = None


def _worker_main(pipe: multiprocessing.connection.Connection, number: int) -> None:
    """Serve one item after the other until the parent closes the pipe."""
    die_with_parent()
    take_turns(number)
    # One process a core is parallel enough: a library's threads would only wait for
    # each other's cores. First what is loaded (OpenMP and BLAS), then what is not
    # loaded yet.
    cv2.setNumThreads(1)
    threadpool_limits(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    if "torch" in sys.modules:  # imported by the server
        sys.modules["torch"].set_num_threads(1)
    # The process that holds the networks comes first: its threads wait for each other.
    os.nice(10)
    tune_malloc()
    pipe.send("ready")
    while True:
        try:
            task, item = pipe.recv()
        except EOFError:
            return
        try:
            answer = task(item), None
        except Exception as error:  # noqa: BLE001 - given to the caller
            answer = None, ExceptionWithTraceback(error, error.__traceback__)
        pipe.send(answer)


def _memory_used(pid: int | None) -> int:
    """Bytes of a process's own memory in use; 0 where the system does not tell."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    lines = [
        line for line in status.splitlines() if line.startswith(("RssAnon:", "VmSwap:"))
    ]
    return sum(int(line.split()[1]) * 1024 for line in lines)
