"""Worker processes for work that may go wrong in every way: hang, crash, eat the memory.

`Workers.map` runs a plain function on many items. Each worker is a process started by spawn (a forked child of a process
that has used PyTorch's threads can deadlock), which is asked one thing at a time over a pipe of its own, by a thread that
watches it. A worker over the time or the memory limit is killed and replaced; so is one that died. An item that cost its
worker the life, or the memory, is tried once more in a fresh worker: what another program or an earlier item did must not
be blamed on it. Nothing outlives the parent: Linux kills the workers when it ends, however it ends.
"""

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from multiprocessing import resource_tracker
from multiprocessing.pool import ExceptionWithTraceback
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from time import monotonic
from typing import NamedTuple

import cv2
from threadpoolctl import threadpool_limits

from preprocessing.cli import MachineError, UserError, cleanups

TICK = 0.5  # seconds between two looks at a worker's clock and memory
PR_SET_PDEATHSIG = 1  # of Linux's prctl.h
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
GIB = 2**30


class Limits(NamedTuple):
    """What one item may cost: `seconds` of wall-clock time, and `memory` of its worker in GiB, files it maps not counted."""

    seconds: float = 600
    memory: float = 4


class Lost(UserError):
    """An item cost its worker the life. `again`: it may fare better in a fresh one."""

    def __init__(self, message: str, again: bool = False):
        super().__init__(message)
        self.again = again


class Job(NamedTuple):
    """One item to work on, and where the outcome (item, result, error) goes."""

    task: Callable
    item: object
    limits: Limits
    outcomes: SimpleQueue


class Workers:
    """`count` worker processes, started when there is something for them to do."""

    def __init__(self, count: int):
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._seats = [_Seat(self._jobs) for _ in range(count)]
        cleanups.append(self.close)

    def map(self, task: Callable, items: Sequence, limits: Limits, sees: Path = Path()) -> Iterator[tuple]:
        """Give (item, result, None) or (item, None, error) as they come; at most two items a worker are under way.

        `task` must be a module's function, or a `functools.partial` of one. What the workers of this machine see is no
        question; `sees` is for those of a cluster.
        """
        outcomes, todo = SimpleQueue(), iter(items)
        under_way = self._submit(islice(todo, 2 * len(self._seats)), task, limits, outcomes)
        try:
            while under_way:
                yield outcomes.get()
                under_way += self._submit(islice(todo, 1), task, limits, outcomes) - 1
        finally:
            self._forget()

    def close(self) -> None:
        """End the worker processes at once: nobody waits for what they do now. A second time it does nothing."""
        if self.close not in cleanups:
            return
        cleanups.remove(self.close)
        self._forget()
        for seat in self._seats:
            self._jobs.put(None)
            seat.end()
        for seat in self._seats:
            seat.join()

    def _submit(self, items: Iterator, task: Callable, limits: Limits, outcomes: SimpleQueue) -> int:
        count = 0
        for item in items:
            self._jobs.put(Job(task, item, limits, outcomes))
            count += 1
        return count

    def _forget(self) -> None:
        """Drop what no worker has begun."""
        try:
            while True:
                self._jobs.get_nowait()
        except Empty:
            pass


class _Seat(Thread):
    """A thread of this process with at most one worker process at a time. The worker dies with the thread that started it."""

    def __init__(self, jobs: SimpleQueue):
        super().__init__(daemon=True)
        self._jobs, self._lock, self._ended = jobs, Lock(), False
        self._process: multiprocessing.Process | None = None
        self.start()

    def run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.outcomes.put((job.item, *self._work(job)))

    def end(self) -> None:
        with self._lock:
            self._ended = True
            self._kill()

    def _work(self, job: Job) -> tuple:
        for last in (False, True):
            try:
                return self._ask(job)
            except Lost as lost:
                with self._lock:
                    self._kill()
                if last or not lost.again or self._ended:
                    return None, Lost(f"{lost}, twice" if last else str(lost))
            except Exception as error:
                return None, error

    def _ask(self, job: Job) -> tuple:
        """The worker's answer: result and error, one of them None."""
        if self._process is None:
            self._start()
        try:
            self._pipe.send((job.task, job.item))
        except OSError as error:
            raise self._died() from error
        start = monotonic()
        while not self._pipe.poll(TICK):
            if monotonic() - start > job.limits.seconds:
                raise Lost(f"took longer than {job.limits.seconds:g} seconds (--time-limit)")
            if self._process and _memory(self._process.pid) > job.limits.memory * GIB:
                raise Lost(f"needed more than {job.limits.memory:g} GiB of memory (--memory-limit)", again=True)
        try:
            return self._pipe.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        with self._lock, deaf_to_ctrl_c():
            if self._ended:
                raise MachineError("the worker processes were ended")
            self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
            self._process.start()
        theirs.close()
        try:
            self._pipe.recv()
        except EOFError as error:
            raise MachineError(
                f"a worker process could not start ({self._died()}); what it printed above says why"
            ) from error

    def _died(self) -> Lost:
        process = self._process
        if process is None:  # `end` was here
            return Lost("its worker process was ended")
        process.join()
        code = process.exitcode
        how = signal.Signals(-code).name if code < 0 else f"status {code}"
        hint = "; out of memory?" if code == -signal.SIGKILL else ""
        return Lost(f"its worker process died ({how}{hint})", again=True)

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None


@contextmanager
def deaf_to_ctrl_c() -> Iterator[None]:
    """Processes that are started inside the block never hear Ctrl-C, not even while they import; their parent ends them."""
    resource_tracker.ensure_running()  # which multiprocessing does at the first start, and lets Ctrl-C through after it
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def die_with_parent() -> None:
    """Have Linux kill this process when the thread that started it ends."""
    if hasattr(libc := ctypes.CDLL(None), "prctl"):
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():  # it ended before that line
        os._exit(1)


def keep_memory() -> None:
    """Tell glibc, where this is glibc, to keep freed memory for the next tensor instead of giving it back to the system:
    fetching it anew costs more than B7's arithmetic (docs/LOG.md)."""
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def _serve(pipe: multiprocessing.connection.Connection) -> None:
    """The life of a worker process."""
    die_with_parent()
    # One process for each core is parallel enough; a library's threads would only wait for each other's cores.
    cv2.setNumThreads(1)
    threadpool_limits(1)  # what is loaded: OpenMP (PyTorch) and BLAS (PyTorch's, NumPy's, SciPy's)
    os.environ["OMP_NUM_THREADS"] = "1"  # what is not loaded yet
    os.nice(10)  # the process that holds the networks comes first: its threads have to wait for each other
    keep_memory()
    pipe.send("ready")
    while True:
        try:
            task, item = pipe.recv()
        except EOFError:
            return
        try:
            answer = task(item), None
        except Exception as error:  # the caller decides what it means
            answer = None, ExceptionWithTraceback(error, error.__traceback__)
        pipe.send(answer)


def _memory(process: int) -> int:
    """Bytes of a process's own memory that are in use; 0 where the system does not tell."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(("RssAnon:", "VmSwap:")))
