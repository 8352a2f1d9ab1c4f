"""Start, signals, lifetime and memory allocator of a process."""

import ctypes
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Final

from runtime.cli import MachineError, one_line

PR_SET_PDEATHSIG = 1  # of Linux's prctl.h
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h

# How worker processes are started: a server that has used no threads of PyTorch forks them. A
# forked child of a process that has used some can deadlock.
START_METHOD: Final = "forkserver"


def share_imports(*modules: str) -> None:
    """Begin to import modules for the worker processes that this process will start.

    Returns at once: the server of `START_METHOD` imports them. It ends with the thread
    that calls this, which should be the main one. No effect where it runs already.

    Raises:
        MachineError: it cannot be started.
    """
    multiprocessing.set_forkserver_preload(["runtime.server", *modules])
    # the server does not know where this process finds modules
    paths = [str(Path(__file__).parent.parent)]
    if before := os.environ.get("PYTHONPATH"):
        paths.append(before)
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    try:
        with block_sigint():
            forkserver.ensure_running()
    except OSError as error:
        raise MachineError(
            f"worker processes cannot be started ({one_line(error)}); their socket is in "
            f"{tempfile.gettempdir()}: let TMPDIR name a folder with a short path that "
            "can be written to, or give --workers 0"
        ) from error
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


@contextmanager
def block_sigint() -> Iterator[None]:
    """Block SIGINT for processes that are started inside the block.

    Ctrl-C then reaches only the parent, which ends them. Each child would otherwise
    print a traceback, even while it still imports.
    """
    # multiprocessing starts its tracker at the first use and unblocks SIGINT after that
    resource_tracker.ensure_running()
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
    if parent is not None and not parent.is_alive():  # it ended before that call
        os._exit(1)


def tune_malloc() -> None:
    """Have glibc keep freed memory instead of returning it to the system.

    Page faults of memory that is allocated anew for each tensor cost more than B7's
    arithmetic (docs/LOG.md). No effect without glibc.
    """
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
