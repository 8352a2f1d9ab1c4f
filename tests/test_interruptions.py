"""Killed, stopped, out of disk: what is done stays whole, and the same command goes on to the same bytes.

`make test-faults` runs this with `--long`: 30 kills of each program, at random moments from its start to its end.
"""

import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest
import torch

from tests.corpus import cut
from tests.media import write_dfdc
from tests.test_executor import hear_ctrl_c, running
from tests.test_train import SMALL
from training.checkpoint import load_checkpoint

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m")


def start(*arguments: object) -> subprocess.Popen:
    """A program in a session of its own, as from a terminal."""
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=ROOT,
        start_new_session=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=hear_ctrl_c,
    )


def finish(*arguments: object) -> float:
    """Run a program to its end. Returns its seconds."""
    begin = time.monotonic()
    program = start(*arguments)
    _, errors = program.communicate(timeout=300)
    assert program.returncode == 0, errors[-3000:]
    return time.monotonic() - begin


def everybody_gone(session: int, seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while left := running(session):
        assert time.monotonic() < end, f"still running: {left}"
        time.sleep(0.05)


class Program:
    """One of the three long programs: what it is given, and what it makes in `work`, a folder at a fixed path."""

    def __init__(self, source: Path, work: Path, *arguments: object):
        self.source, self.work, self.arguments = source, work, arguments

    def begin_anew(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.source, self.work)

    def made(self) -> dict[str, bytes]:
        """Relative path to content, of all that does not differ from run to run."""
        found = {
            str(path.relative_to(self.work)): path
            for path in self.work.rglob("*")
            if path.is_file()
        }
        return {
            name: content(path)
            for name, path in sorted(found.items())
            if "tfevents" not in name
        }

    def check_whole(self, expected: dict[str, bytes]) -> None:
        """After a kill: each file under its own name is what it will be, or an earlier state of it that is whole."""
        for name, data in self.made().items():
            path = self.work / name
            if any(
                part.startswith(".") and part != ".left_out"
                for part in path.relative_to(self.work).parts
            ):
                continue  # a temporary
            if path.name.endswith("_last"):
                assert load_checkpoint(path)["epoch"] >= 1
            elif path.suffix == ".csv" and data != expected[name]:
                header, rows = data.splitlines()[0], data.splitlines()[1:]
                assert header == expected[name].splitlines()[0] and set(rows) <= set(
                    expected[name].splitlines()
                ), name
            elif path.suffix != ".jsonl":
                assert data == expected[name], name


def content(path: Path) -> bytes:
    """A file's bytes; of metrics.csv without the speed, which is never the same; of a checkpoint the bytes of what it holds
    (a pickle also tells which of its words are the same object)."""
    if "DeepFakeClassifier" in path.name and not path.name.startswith(
        "."
    ):  # a temporary may be half a checkpoint
        return values(load_checkpoint(path))
    if path.name == "curves.png":  # which shows the speed too
        return str(cv2.imread(str(path)).shape).encode()
    if path.name != "metrics.csv":
        return path.read_bytes()
    with open(path, newline="") as file:
        return "\n".join(
            ",".join(row[:-4] + row[-3:]) for row in csv.reader(file)
        ).encode()


def values(entry: object) -> bytes:
    if isinstance(entry, dict):
        return (
            b"{"
            + b",".join(
                repr(key).encode() + b":" + values(value)
                for key, value in entry.items()
            )
            + b"}"
        )
    if isinstance(entry, torch.Tensor):
        return (
            repr((entry.dtype, entry.shape)).encode()
            + entry.contiguous().numpy().tobytes()
        )
    return (
        b"[" + b",".join(map(values, entry)) + b"]"
        if isinstance(entry, list)
        else repr(entry).encode()
    )


def write_more_videos(root: Path) -> None:
    """A DFDC folder with more to do, and a video that is read in part."""
    write_dfdc(root)
    for part in (0, 3):
        folder = root / f"dfdc_train_part_{part}"
        for path in sorted(folder.glob("*.mp4")):
            for copy in "123":
                shutil.copy(path, folder / f"{path.stem}{copy}.mp4")
    cut(0.9, True)(root / "dfdc_train_part_3" / "cccccccccc1.mp4")
    for metadata in root.glob("*/metadata.json"):
        names = [path.name for path in metadata.parent.glob("*.mp4")]
        entry = '"{}": {{"label": "{}", "original": "aaaaaaaaaa.mp4"}}'
        metadata.write_text(
            "{"
            + ", ".join(
                entry.format(n, "FAKE" if n[0] == "b" else "REAL") for n in names
            )
            + "}"
        )


@pytest.fixture(scope="module", params=["preprocessing", "training", "prediction"])
def program(request, tmp_path_factory) -> Program:
    folder = tmp_path_factory.mktemp(request.param)
    source, work = folder / "source", folder / "work"
    if request.param == "preprocessing":
        write_more_videos(source)
        return Program(
            source,
            work,
            "preprocessing",
            "--root-dir",
            work,
            "--workers",
            2,
            "--device",
            "cpu",
            "--max-failures",
            1,
        )
    if request.param == "training":
        data, workers = (
            request.getfixturevalue("train_data"),
            int(request.config.getoption("--long")),
        )
        source.mkdir()
        return Program(
            source, work, "training.train", *training(data, work), "--workers", workers
        )
    data, checkpoints = (
        request.getfixturevalue("dfdc"),
        request.getfixturevalue("checkpoints"),
    )
    source.mkdir()
    videos = folder / "videos"
    videos.mkdir()
    for copy in "12":
        for path in data.glob("*/*.mp4"):
            shutil.copy(path, videos / f"{path.stem}{copy}.mp4")
    cut(0.9, True)(videos / "cut.mp4")
    return Program(
        source,
        work,
        "inference.predict",
        "--test-dir",
        videos,
        "--output",
        work / "s.csv",
        "--faces-csv",
        work / "faces.csv",
        "--weights-dir",
        checkpoints,
        "--models",
        "one",
        "two",
        "--workers",
        2,
        "--device",
        "cpu",
    )


def training(data: Path, work: Path, *settings: str) -> list:
    return [
        "--config",
        "configs/demo.yaml",
        "--data-dir",
        data,
        "--output-dir",
        work / "weights",
        "--logdir",
        work / "logs",
        "--seed",
        "5",
        "--workers",
        "0",
        "--device",
        "cpu",
        "--set",
        *SMALL,
        *settings,
    ]


@pytest.fixture(scope="module")
def undisturbed(program) -> tuple[float, dict[str, bytes]]:
    """Seconds, and all that is made."""
    program.begin_anew()
    seconds = finish(*program.arguments)
    return seconds, program.made()


def test_an_interrupted_program_goes_on_to_the_same_bytes(
    program, undisturbed, long_run
):
    """Ctrl-C, then kill -9, then to the end. Long: 30 times from the beginning, killed, then to the end."""
    seconds, expected = undisturbed
    rng = random.Random(7)
    rounds = (
        [(signal.SIGKILL, rng.uniform(0, seconds)) for _ in range(30)]
        if long_run
        else [(signal.SIGINT, 0.6 * seconds), (signal.SIGKILL, 0.6 * seconds)]
    )
    program.begin_anew()
    left, finished = 0, 0
    for how, moment in rounds:
        if long_run:
            program.begin_anew()
        interrupted = start(*program.arguments)
        try:
            interrupted.wait(moment)
            finished += 1  # before the kill
        except subprocess.TimeoutExpired:
            (os.killpg if how == signal.SIGINT else os.kill)(interrupted.pid, how)
        stopped = time.monotonic()
        _, errors = interrupted.communicate(timeout=30)
        everybody_gone(interrupted.pid)
        if how == signal.SIGINT and interrupted.returncode:
            assert interrupted.returncode == 130 and time.monotonic() - stopped < 5
            assert (
                "run the same command again to go on" in errors
                and "Traceback" not in errors
            ), errors[-3000:]
        program.check_whole(expected)
        left += len(program.made()) < len(expected)
        if long_run:
            finish(*program.arguments)
            assert program.made() == expected
    finish(*program.arguments)
    assert program.made() == expected
    print(
        f"\n{program.arguments[0]}: {len(rounds)} interruptions within {seconds:.0f} seconds, {left} with work left, "
        f"{finished} came after its end; all ended with the same {len(expected)} files"
    )


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MB. Remount it to change it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounting = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True
    )
    if mounting.returncode:
        pytest.skip(
            "cannot mount a small disk here (needs root and the right to mount)"
        )
    yield folder
    subprocess.run(["umount", folder], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def test_a_full_and_a_read_only_disk(program, undisturbed, small_disk, long_run):
    """A clear error, what was there is whole, and with room the same command goes on to the same bytes."""
    if program.arguments[0] != "preprocessing" and not long_run:
        pytest.skip("the same for each program; make test-faults runs all three")
    _, expected = undisturbed
    shutil.rmtree(program.work, ignore_errors=True)
    work = small_disk / "work"
    shutil.copytree(program.source, work)
    program.work.symlink_to(work)
    try:
        for options, words in (
            ("ro", "Read-only file system"),
            ("rw", "No space left on device"),
        ):
            remount(small_disk, options)
            if options == "rw":
                room = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
                (small_disk / "filler").write_bytes(bytes(max(0, room - 4 * 4096)))
            failed = start(*program.arguments)
            _, errors = failed.communicate(timeout=120)
            assert failed.returncode == 2, errors[-3000:]
            assert (
                f"cannot be written ({words})" in errors and "Traceback" not in errors
            ), errors[-3000:]
            everybody_gone(failed.pid)
            program.check_whole(expected)
        remount(small_disk, "size=400m")
        finish(*program.arguments)
        assert program.made() == expected
    finally:
        program.work.unlink()


@pytest.fixture(scope="module")
def trained_by_two(train_data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(*TORCHRUN, "training.train", *training(train_data, folder))
    return folder


@pytest.mark.parametrize("victim", ["a training process", "torchrun"])
def test_the_death_of_one_of_two_training_processes_ends_all(
    trained_by_two, train_data, tmp_path, victim, long_run
):
    """With a message, not a hang; nobody is left; typed again it goes on to the weights of an undisturbed run."""
    if victim == "torchrun" and not long_run:
        pytest.skip("make test-faults runs it")
    program = start(
        *TORCHRUN, "training.train", *training(train_data, tmp_path / "disturbed")
    )
    last = (
        tmp_path
        / "disturbed"
        / "weights"
        / "5_DeepFakeClassifier_tf_efficientnet_b0_ns_0_last"
    )
    while not last.exists():
        assert program.poll() is None
        time.sleep(0.05)
    children = subprocess.run(
        ["pgrep", "-f", f"training.train.*{tmp_path}/disturbed"],
        capture_output=True,
        text=True,
    )
    pids = [int(pid) for pid in children.stdout.split() if int(pid) != program.pid]
    trainers = [
        pid
        for pid in pids
        if b"--standalone" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    os.kill(trainers[0] if victim != "torchrun" else program.pid, signal.SIGKILL)
    _, errors = program.communicate(timeout=60)
    assert program.returncode != 0
    if victim != "torchrun":
        assert "another training process ended" in errors or "SIGKILL" in errors, (
            errors[-3000:]
        )
    for pid in pids:
        end = time.monotonic() + 10
        while (
            Path(f"/proc/{pid}").exists()
            and " Z " not in Path(f"/proc/{pid}/stat").read_text()
        ):
            assert time.monotonic() < end, f"{pid} is still running"
            time.sleep(0.05)
    finish(*TORCHRUN, "training.train", *training(train_data, tmp_path / "disturbed"))
    assert content(last) == content(trained_by_two / "weights" / last.name)
