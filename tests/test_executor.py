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


def behave(what: str, folder: Path) -> str:
    """Answer, or not; each call leaves a file, so that calls can be counted."""
    tempfile.mkstemp(prefix=f"{what}.", dir=folder)
    if what == "hang":
        time.sleep(60)
    elif what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif what == "crash once" and len(list(folder.glob("crash once.*"))) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "eat":
        hoard = [np.ones(2**22) for _ in range(28)]  # 0.9 GiB
        time.sleep(6)
        return str(len(hoard))
    elif what == "leave":
        sys.exit(3)
    elif what == "disk":
        raise MachineError("the disk is full")
    return what


def write_name(video: Video) -> None:
    if video.name == "bad":
        raise UserError(f"{video.path}: cannot be read")
    with atomic_folder(
        video.path, ["a part is missing"] if video.name == "partly" else []
    ) as folder:
        (folder / "name").write_text(video.name)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_results_equal_a_plain_loop(workers):
    got = {
        item: (result, str(error))
        for item, result, error in map_items(
            square, range(8), ExecutorOptions(workers), "test"
        )
    }
    assert got == {
        n: (None, "three is bad") if n == 3 else (n * n, "None") for n in range(8)
    }


def test_what_kills_hangs_or_starves_a_worker_is_one_items_error(tmp_path):
    """And is tried once more where it might not be the item's fault; all others have their results."""
    items = ["a", "hang", "crash", "b", "eat", "leave", "crash once", "c"]
    start = time.monotonic()
    outcomes = map_items(
        partial(behave, folder=tmp_path),
        items,
        ExecutorOptions(2, Limits(seconds=8, memory=0.6)),
        "test",
    )
    got = {item: result if error is None else error for item, result, error in outcomes}
    assert time.monotonic() - start < 40
    assert {item: got[item] for item in ("a", "b", "c", "crash once")} == {
        n: n for n in ("a", "b", "c", "crash once")
    }
    assert str(got["hang"]) == "took longer than 8 seconds (--time-limit)"
    assert str(got["crash"]) == "its worker process died (SIGSEGV), twice"
    assert (
        str(got["eat"]) == "needed more than 0.6 GiB of memory (--memory-limit), twice"
    )
    assert str(got["leave"]) == "its worker process died (status 3), twice"
    assert all(
        isinstance(got[item], UserError) for item in ("hang", "crash", "eat", "leave")
    )
    calls = {item: len(list(tmp_path.glob(f"{item}.*"))) for item in items}
    assert calls == {
        "a": 1,
        "b": 1,
        "c": 1,
        "hang": 1,
        "crash": 2,
        "eat": 2,
        "leave": 2,
        "crash once": 2,
    }


def test_kept_workers_serve_again_and_forget_what_was_given_up(tmp_path):
    with persistent_workers(ExecutorOptions(1)):
        first = map_items(
            partial(behave, folder=tmp_path),
            list("abcdefgh"),
            ExecutorOptions(1),
            "test",
        )
        assert next(first)[1] == "a"
        first.close()
        assert {
            result
            for _, result, _ in map_items(square, [1, 2], ExecutorOptions(1), "test")
        } == {1, 4}
    assert (
        len(list(tmp_path.iterdir())) <= 3
    )  # one was done, at most two more were under way


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_the_parent(tmp_path, ending):
    """Killed with -9, or by Ctrl-C as a terminal sends it, to all at once: nobody is left, nobody prints a traceback."""
    code = (
        "import sys; from functools import partial; from pathlib import Path; from tests.test_executor import behave;"
        "from runtime.executor import ExecutorOptions, map_items; from runtime.cli import run_main\n"
        "if __name__ == '__main__':\n"
        "    task = partial(behave, folder=Path(sys.argv[1]))\n"
        "    run_main(lambda: list(map_items(task, ['hang', 'hang', 'hang'], ExecutorOptions(2), 'test')))"
    )
    (tmp_path / "program.py").write_text(code)
    (tmp_path / "calls").mkdir()
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "program.py", tmp_path / "calls"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hear_ctrl_c,
    )
    while len(list((tmp_path / "calls").iterdir())) < 2:
        assert parent.poll() is None
        time.sleep(0.05)
    (os.kill if ending == signal.SIGKILL else os.killpg)(parent.pid, ending)
    start = time.monotonic()
    _, printed = parent.communicate(timeout=20)
    assert time.monotonic() - start < 5 and parent.returncode == (
        -9 if ending == signal.SIGKILL else 130
    )
    while running(parent.pid):
        assert time.monotonic() - start < 5, running(parent.pid)
        time.sleep(0.05)
    if ending == signal.SIGINT:
        assert (
            "run the same command again to go on" in printed
            and "Traceback" not in printed
        )


def hear_ctrl_c() -> None:
    """In a program that is started: a shell lets what it runs in the background ignore Ctrl-C, and that is inherited."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def running(session: int) -> list[str]:
    """The programs of a session that have not ended."""
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
    videos = [Video(tmp_path / name, 0, False, name) for name in names]
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


def rows(tmp_path):
    with open(tmp_path / "failures.csv", newline="") as file:
        return [tuple(row) for row in csv.reader(file)]


def test_failures_are_listed_counted_and_tried_again(tmp_path):
    names = ["good", "partly", "bad"]
    assert step(tmp_path, names) == 1
    bad = ("a step", str(tmp_path / "bad"), "cannot be read")
    skipped, partly = (
        ("a step", "x.mp4", "left out"),
        ("a step", str(tmp_path / "partly"), "a part is missing"),
    )
    expected = [("step", "file", "reason"), skipped, partly, bad]
    assert rows(tmp_path) == expected
    (tmp_path / "good" / "name").write_text("not made again")
    assert step(tmp_path, names, "--max-failures", "0.4") == 0
    assert (tmp_path / "good" / "name").read_text() == "not made again"
    assert rows(tmp_path) == expected  # what the first run left out is not forgotten


def test_the_disks_refusal_ends_the_run(tmp_path):
    with pytest.raises(MachineError, match="the disk is full"):
        videos = [Video(tmp_path / "disk", 0, False, "disk")]
        parsed = step_parser("").parse_args(
            ["--root-dir", str(tmp_path), "--workers", "0"]
        )
        run_step(
            lambda video: behave(video.name, tmp_path),
            videos,
            lambda video: tmp_path / "none",
            parsed,
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
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == [
        SKIPPED_FILE,
        "whole",
    ]
    assert (
        skip_reasons(tmp_path / "folder") == ["one", "two"]
        and skip_reasons(tmp_path / "folder" / "whole") == []
    )


def test_a_full_disk_and_a_folder_that_is_in_the_way(tmp_path):
    """/dev/full refuses every byte; what was there before stays."""
    (tmp_path / "a").write_text("before")
    (tmp_path / ".a.tmp").symlink_to("/dev/full")
    with (
        pytest.raises(
            MachineError,
            match=r"/a: cannot be written \(No space left on device\); free some space",
        ),
        atomic_file(tmp_path / "a") as file,
    ):
        file.write_text("after")
    assert (tmp_path / "a").read_text() == "before" and [
        path.name for path in tmp_path.iterdir()
    ] == ["a"]
    with (
        pytest.raises(MachineError, match="move away what is in its place"),
        atomic_file(tmp_path / "a" / "b") as file,
    ):
        file.write_text("no folder")
