"""Worker processes, limits, failures of steps, atomic writes, full disks."""

import csv
import os
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from preprocessing.dataset import Skipped, Video
from preprocessing.faces import DETECTOR_IMPORTS
from preprocessing.step import run_step, step_parser
from runtime.cli import MachineError, UserError
from runtime.executor import ExecutorOptions, map_items, persistent_workers
from runtime.files import SKIPPED_FILE, atomic_file, atomic_folder, skip_reasons
from runtime.workers import Limits

ROOT = Path(__file__).parent.parent


def square(number: int) -> int:
    if number == 3:
        raise ValueError("three is bad")
    return number * number


def simulate(behaviour: str, folder: Path) -> str:
    """A task that hangs, crashes, allocates memory, exits or returns its argument.

    Each call creates a file in the folder, so that calls can be counted.
    """
    tempfile.mkstemp(prefix=f"{behaviour}.", dir=folder)
    if behaviour == "hang":
        time.sleep(60)
    elif behaviour == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif behaviour == "crash once" and len(list(folder.glob("crash once.*"))) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    elif behaviour == "allocate":
        arrays = [np.ones(2**22) for _ in range(28)]  # 0.9 GiB
        time.sleep(6)
        return str(len(arrays))
    elif behaviour == "exit":
        sys.exit(3)
    elif behaviour == "disk":
        raise MachineError("the disk is full")
    return behaviour


def write_name(video: Video) -> None:
    """The task of a step: fails for "bad", skips a part of "partly"."""
    if video.name == "bad":
        raise UserError(f"{video.path}: cannot be read")
    skipped = ["a part is missing"] if video.name == "partly" else []
    with atomic_folder(video.path, skipped) as folder:
        (folder / "name").write_text(video.name)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_results_equal_a_plain_loop(workers):
    outcomes = map_items(square, range(8), ExecutorOptions(workers), "test")
    results = {item: (result, str(error)) for item, result, error in outcomes}
    expected = {n: (n * n, "None") for n in range(8)}
    expected[3] = (None, "three is bad")
    assert results == expected


@pytest.mark.slow
def test_what_kills_hangs_or_starves_a_worker_is_one_items_error(tmp_path):
    """The error of an item does not affect the others.

    A crash or a lack of memory is retried once, because it may not be the item's fault;
    a timeout is not.
    """
    items = ["a", "hang", "crash", "b", "allocate", "exit", "crash once", "c"]
    start = time.monotonic()
    outcomes = map_items(
        partial(simulate, folder=tmp_path),
        items,
        ExecutorOptions(2, Limits(seconds=8, memory=0.6)),
        "test",
    )
    results, errors = {}, {}
    for item, result, error in outcomes:
        if error is None:
            results[item] = result
        else:
            assert isinstance(error, UserError)
            errors[item] = str(error)
    assert time.monotonic() - start < 40
    assert results == {item: item for item in ("a", "b", "c", "crash once")}
    assert errors == {
        "hang": "took longer than 8 seconds (--time-limit)",
        "crash": "its worker process died (SIGSEGV), twice",
        "allocate": "needed more than 0.6 GiB of memory (--memory-limit), twice",
        "exit": "its worker process died (status 3), twice",
    }
    calls = {item: len(list(tmp_path.glob(f"{item}.*"))) for item in items}
    once, twice = ("a", "b", "c", "hang"), ("crash", "allocate", "exit", "crash once")
    assert calls == dict.fromkeys(once, 1) | dict.fromkeys(twice, 2)


def test_kept_workers_serve_again_and_forget_what_was_given_up(tmp_path):
    task, executor = partial(simulate, folder=tmp_path), ExecutorOptions(1)
    with persistent_workers(executor):
        first = map_items(task, list("abcdefgh"), executor, "test")
        assert next(first)[1] == "a"
        first.close()
        second = map_items(square, [1, 2], executor, "test")
        assert {result for _, result, _ in second} == {1, 4}
    # one item was done, at most two more were submitted
    assert len(list(tmp_path.iterdir())) <= 3


# What a program of two workers prints of each item.
PROGRAM = """
import sys, threading
from runtime.cli import run_main
from runtime.executor import ExecutorOptions, map_items
def threads(item):
    import torch
    counts = [torch.get_num_threads()]
    other = threading.Thread(target=lambda: counts.append(torch.get_num_threads()))
    other.start()
    other.join()
    return counts
def main():
    options = ExecutorOptions(2)
    outcomes = map_items(threads, [1, 2, 3], options, "test", imports=sys.argv[1:])
    print(*[f"{type(error).__name__} {error}" if error else result
            for _, result, error in outcomes], sep="\\n")
if __name__ == "__main__":
    run_main(main)
"""


def run_program(folder: Path, module: str, **variables: str):
    (folder / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{folder}"} | variables
    environment.pop("OMP_NUM_THREADS", None)
    return subprocess.run(
        [sys.executable, folder / "program.py", module],
        env=environment,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.slow
def test_a_worker_that_shares_an_import_has_one_thread(tmp_path):
    assert run_program(tmp_path, "torch").stdout.splitlines() == ["[1, 1]"] * 3


def test_a_shared_import_that_fails_is_named(tmp_path):
    (tmp_path / "broken.py").write_text("raise RuntimeError('two versions')")
    ended = run_program(tmp_path, "broken")
    assert "RuntimeError: two versions" in ended.stderr
    expected = "MachineError the server of the worker processes ended"
    lines = ended.stdout.splitlines()
    assert len(lines) == 3 and all(line.startswith(expected) for line in lines)


def test_a_temporary_folder_with_a_long_name_is_named(tmp_path):
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    ended = run_program(tmp_path, "json", TMPDIR=str(folder))
    (line,) = [line for line in ended.stderr.splitlines() if "TMPDIR" in line]
    assert str(folder) in line and ended.returncode == 2


@pytest.mark.slow
def test_what_workers_share_does_not_ask_for_gpus():
    """CUDA cannot be used in a forked process of one that has begun to use it."""
    code = (
        "import torch\n"
        "def fail(*_): raise SystemExit('CUDA was asked')\n"
        "torch._C._cuda_init = torch._C._cuda_getDeviceCount = fail\n"
        "torch.cuda.is_available = torch.cuda.device_count = fail\n"
        f"import {', '.join(DETECTOR_IMPORTS)}\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_the_parent(tmp_path, ending):
    """By SIGKILL, or by Ctrl-C, which a terminal sends to the whole process group.

    No process is left, and none prints a traceback.
    """
    code = (
        "import sys\n"
        "from functools import partial\n"
        "from pathlib import Path\n"
        "from runtime.cli import run_main\n"
        "from runtime.executor import ExecutorOptions, map_items\n"
        "from tests.test_executor import simulate\n"
        "def main():\n"
        "    task = partial(simulate, folder=Path(sys.argv[1]))\n"
        "    list(map_items(task, ['hang'] * 3, ExecutorOptions(2), 'test'))\n"
        "if __name__ == '__main__':\n"
        "    run_main(main)"
    )
    (tmp_path / "program.py").write_text(code)
    (tmp_path / "calls").mkdir()
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "program.py", tmp_path / "calls"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=restore_sigint,
    )
    while len(list((tmp_path / "calls").iterdir())) < 2:
        assert parent.poll() is None
        time.sleep(0.05)
    (os.kill if ending == signal.SIGKILL else os.killpg)(parent.pid, ending)
    start = time.monotonic()
    _, printed = parent.communicate(timeout=20)
    assert time.monotonic() - start < 5
    assert parent.returncode == (-9 if ending == signal.SIGKILL else 130)
    while running(parent.pid):
        assert time.monotonic() - start < 5, running(parent.pid)
        time.sleep(0.05)
    if ending == signal.SIGINT:
        assert "run the same command again to go on" in printed
        assert "Traceback" not in printed


def restore_sigint() -> None:
    """Let a started program receive SIGINT; for `preexec_fn`.

    A shell starts background jobs with SIGINT ignored, and child processes inherit it.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def running(session: int) -> list[str]:
    """Names of the processes of a session, without zombies."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().rpartition(")")
        except OSError:
            continue
        state, _, _, sid = rest.split()[:4]
        if int(sid) == session and state != "Z":
            found.append(name)
    return found


def step(tmp_path, names, *options):
    """Run a step over videos of the given names. Returns its exit status."""
    videos = [Video(tmp_path / name, name, False, name) for name in names]
    parsed = step_parser("").parse_args(
        ["--root-dir", str(tmp_path), "--workers", "0", *options]
    )
    return run_step(
        write_name,
        videos,
        lambda video: video.path,
        parsed,
        "a step",
        [Skipped("x.mp4", "left out")],
    )


def failures(tmp_path):
    with open(tmp_path / "failures.csv", newline="") as file:
        return [tuple(row) for row in csv.reader(file)]


def test_failures_are_listed_counted_and_tried_again(tmp_path):
    names = ["good", "partly", "bad"]
    assert step(tmp_path, names) == 1
    expected = [
        ("step", "file", "reason"),
        ("a step", "x.mp4", "left out"),
        ("a step", str(tmp_path / "partly"), "a part is missing"),
        ("a step", str(tmp_path / "bad"), "cannot be read"),
    ]
    assert failures(tmp_path) == expected
    (tmp_path / "good" / "name").write_text("not made again")
    assert step(tmp_path, names, "--max-failures", "0.5") == 0
    assert (tmp_path / "good" / "name").read_text() == "not made again"
    assert failures(tmp_path) == expected  # those of the first run are kept


def test_the_disks_refusal_ends_the_run(tmp_path):
    videos = [Video(tmp_path / "disk", "disk", False, "disk")]
    options = step_parser("").parse_args([f"--root-dir={tmp_path}", "--workers=0"])
    with pytest.raises(MachineError, match="the disk is full"):
        run_step(
            lambda video: simulate(video.name, tmp_path),
            videos,
            lambda video: tmp_path / "none",
            options,
            "a step",
        )
    assert not (tmp_path / "failures.csv").exists()


def test_what_is_half_written_never_takes_the_name_and_is_removed(tmp_path):
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "folder") as folder:
        (folder / "half").touch()
        raise RuntimeError
    with pytest.raises(RuntimeError), atomic_file(tmp_path / "file") as file:
        Path(file).write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    skipped = []
    with atomic_folder(tmp_path / "folder", skipped) as folder:
        (folder / "whole").touch()
        skipped += ["one", "two"]
    names = sorted(path.name for path in (tmp_path / "folder").iterdir())
    assert names == [SKIPPED_FILE, "whole"]
    assert skip_reasons(tmp_path / "folder") == ["one", "two"]
    assert skip_reasons(tmp_path / "folder" / "whole") == []


def test_a_full_disk_and_a_folder_that_is_in_the_way(tmp_path):
    """/dev/full refuses every byte; the existing file stays."""
    (tmp_path / "a").write_text("before")
    (tmp_path / ".a.tmp").symlink_to("/dev/full")
    full = r"/a: cannot be written \(No space left on device\); free some space"
    with (
        pytest.raises(MachineError, match=full),
        atomic_file(tmp_path / "a") as file,
    ):
        file.write_text("after")
    assert (tmp_path / "a").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    with (
        pytest.raises(MachineError, match="move away what is in its place"),
        atomic_file(tmp_path / "a" / "b") as file,
    ):
        file.write_text("no folder")
