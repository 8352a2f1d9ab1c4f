"""Interruptions: SIGINT, SIGKILL, a full disk, the loss of a training process.

Finished output stays intact, and the same command resumes and ends with the same bytes.
`make test-faults` runs this with `--long`: 30 kills of each program, at random times
between its start and its end.
"""

import csv
import json
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
from tests.test_executor import restore_sigint, running
from tests.test_train import SMALL
from training.checkpoint import load_checkpoint

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m")


def start(*arguments: object) -> subprocess.Popen:
    """Start `python -m ARGUMENTS` in a session of its own, as a terminal does."""
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=ROOT,
        start_new_session=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=restore_sigint,
    )


def finish(*arguments: object) -> float:
    """Run a program to its end. Returns its seconds."""
    begin = time.monotonic()
    program = start(*arguments)
    _, errors = program.communicate(timeout=300)
    assert program.returncode == 0, errors[-3000:]
    return time.monotonic() - begin


def wait_until_gone(session: int, seconds: float = 5) -> None:
    """Wait until no process of a session is left."""
    end = time.monotonic() + seconds
    while left := running(session):
        assert time.monotonic() < end, f"still running: {left}"
        time.sleep(0.05)


class Program:
    """One of the three long programs.

    Attributes:
        source: folder with the initial content of `work`.
        work: folder at a fixed path that the program writes to.
        arguments: the module and its command-line arguments.
    """

    def __init__(self, source: Path, work: Path, *arguments: object):
        self.source, self.work, self.arguments = source, work, arguments

    def reset(self) -> None:
        """Restore the initial content of `work`."""
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.source, self.work)

    def outputs(self) -> dict[str, bytes]:
        """Relative path → content of all files that are the same in each run."""
        files = {
            str(path.relative_to(self.work)): path
            for path in self.work.rglob("*")
            if path.is_file()
        }
        return {
            name: content(path)
            for name, path in sorted(files.items())
            if "tfevents" not in name
        }

    def assert_intact(self, expected: dict[str, bytes]) -> None:
        """Check that a kill left only complete files.

        Each file, temporary ones excepted, has its final content or is a complete
        earlier version.
        """
        for name, data in self.outputs().items():
            path = self.work / name
            parts = path.relative_to(self.work).parts
            if any(part.startswith(".") and part != ".left_out" for part in parts):
                continue  # a temporary file
            if path.name.endswith("_last"):
                assert load_checkpoint(path)["epoch"] >= 1
            elif path.suffix == ".csv" and data != expected[name]:
                header, *rows = data.splitlines()
                lines = expected[name].splitlines()
                assert header == lines[0] and set(rows) <= set(lines), name
            elif path.suffix != ".jsonl":
                assert data == expected[name], name


def content(path: Path) -> bytes:
    """The content of a file, without what differs from run to run.

    metrics.csv and curves.png contain the speed. A checkpoint is compared by its
    values, because its pickle also records which strings are the same object.
    """
    is_temporary = path.name.startswith(".")  # perhaps an incomplete checkpoint
    if "DeepFakeClassifier" in path.name and not is_temporary:
        return values(load_checkpoint(path))
    if path.name == "curves.png":
        return str(cv2.imread(str(path)).shape).encode()
    if path.name != "metrics.csv":
        return path.read_bytes()
    with open(path, newline="") as file:
        rows = [row[:-4] + row[-3:] for row in csv.reader(file)]
    return "\n".join(map(",".join, rows)).encode()


def values(entry: object) -> bytes:
    """Serialise the dicts, lists, tensors and scalars of a checkpoint."""
    if isinstance(entry, dict):
        pairs = (repr(key).encode() + b":" + values(entry[key]) for key in entry)
        return b"{" + b",".join(pairs) + b"}"
    if isinstance(entry, torch.Tensor):
        header = repr((entry.dtype, entry.shape)).encode()
        return header + entry.contiguous().numpy().tobytes()
    if isinstance(entry, list):
        return b"[" + b",".join(map(values, entry)) + b"]"
    return repr(entry).encode()


def write_more_videos(root: Path) -> None:
    """Write a DFDC folder of twelve videos, one of them truncated."""
    write_dfdc(root)
    for part in (0, 3):
        folder = root / f"dfdc_train_part_{part}"
        for path in sorted(folder.glob("*.mp4")):
            for copy in "123":
                shutil.copy(path, folder / f"{path.stem}{copy}.mp4")
    cut(0.9, True)(root / "dfdc_train_part_3" / "cccccccccc1.mp4")
    for metadata in root.glob("*/metadata.json"):
        entries = {}
        for path in metadata.parent.glob("*.mp4"):
            label = "FAKE" if path.name[0] == "b" else "REAL"
            entries[path.name] = {"label": label, "original": "aaaaaaaaaa.mp4"}
        metadata.write_text(json.dumps(entries))


@pytest.fixture(scope="module", params=["preprocessing", "training", "prediction"])
def program(request, tmp_path_factory) -> Program:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "preprocessing":
        return preprocessing_program(folder)
    source, work = folder / "source", folder / "work"
    source.mkdir()
    if request.param == "training":
        data = request.getfixturevalue("train_data")
        workers = ("--workers", int(request.config.getoption("--long")))
        return Program(source, work, "training.train", *training(data, work), *workers)
    data = request.getfixturevalue("dfdc")
    checkpoints = request.getfixturevalue("checkpoints")
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
        *("--test-dir", videos),
        *("--output", work / "s.csv"),
        *("--faces-csv", work / "faces.csv"),
        *("--weights-dir", checkpoints),
        *("--models", "one", "two"),
        *("--workers", 2),
        *("--device", "cpu"),
    )


def preprocessing_program(folder: Path) -> Program:
    """Steps 1 to 5 on a DFDC folder of twelve videos."""
    source, work = folder / "source", folder / "work"
    write_more_videos(source)
    return Program(
        source,
        work,
        "preprocessing",
        *("--root-dir", work),
        *("--workers", 2),
        *("--device", "cpu"),
        *("--max-failures", 1),
    )


def training(data: Path, work: Path, *settings: str) -> list:
    """The arguments of a small training run."""
    return [
        *("--config", "tests/scratch.yaml"),
        *("--data-dir", data),
        *("--output-dir", work / "weights"),
        *("--logdir", work / "logs"),
        *("--seed", "5"),
        *("--workers", "0"),
        *("--device", "cpu"),
        *("--set", *SMALL, *settings),
    ]


@pytest.fixture(scope="module")
def undisturbed(program) -> tuple[float, dict[str, bytes]]:
    """Seconds and outputs of a run without interruption."""
    program.reset()
    seconds = finish(*program.arguments)
    return seconds, program.outputs()


def test_an_interrupted_program_goes_on_to_the_same_bytes(
    program, undisturbed, long_run
):
    """Ctrl-C, then SIGKILL, then to the end.

    Long: 30 times from the beginning, killed, then to the end.
    """
    seconds, expected = undisturbed
    rng = random.Random(7)
    if long_run:
        rounds = [(signal.SIGKILL, rng.uniform(0, seconds)) for _ in range(30)]
    else:
        rounds = [(signal.SIGINT, 0.6 * seconds), (signal.SIGKILL, 0.6 * seconds)]
    program.reset()
    incomplete, finished = 0, 0
    for number, delay in rounds:
        if long_run:
            program.reset()
        finished += interrupt(program, number, delay)
        program.assert_intact(expected)
        incomplete += len(program.outputs()) < len(expected)
        if long_run:
            finish(*program.arguments)
            assert program.outputs() == expected
    finish(*program.arguments)
    assert program.outputs() == expected
    print(
        f"\n{program.arguments[0]}: {len(rounds)} interruptions within {seconds:.0f} "
        f"seconds, {incomplete} with work left, {finished} after the end; all ended "
        f"with the same {len(expected)} files"
    )


def interrupt(program: Program, number: signal.Signals, delay: float) -> bool:
    """Start a program and send it a signal after some seconds.

    Returns:
        Whether the program ended before the signal.
    """
    interrupted = start(*program.arguments)
    try:
        interrupted.wait(delay)
        finished = True
    except subprocess.TimeoutExpired:
        (os.killpg if number == signal.SIGINT else os.kill)(interrupted.pid, number)
        finished = False
    stopped = time.monotonic()
    _, errors = interrupted.communicate(timeout=30)
    wait_until_gone(interrupted.pid)
    if number == signal.SIGINT and interrupted.returncode:
        assert time.monotonic() - stopped < 5
        if interrupted.returncode == -signal.SIGINT and "_bootstrap" in errors:
            return finished  # on a busy machine: during Python's imports
        assert interrupted.returncode == 130
        assert "run the same command again to go on" in errors, errors[-3000:]
        assert "Traceback" not in errors, errors[-3000:]
    return finished


@pytest.fixture
def small_disk(tmp_path):
    """A tmpfs of 1 MB; `remount` changes its options."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("cannot mount a tmpfs (needs root and the permission to mount)")
    yield folder
    subprocess.run(["umount", folder], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def test_a_full_and_a_read_only_disk(program, undisturbed, small_disk, long_run):
    """A clear error and intact files; with free space the same command resumes."""
    if program.arguments[0] != "preprocessing" and not long_run:
        pytest.skip("similar for each program; make test-faults runs all three")
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
                free = shutil.disk_usage(small_disk).free
                (small_disk / "filler").write_bytes(bytes(max(0, free - 4 * 4096)))
            failed = start(*program.arguments)
            _, errors = failed.communicate(timeout=120)
            assert failed.returncode == 2, errors[-3000:]
            assert f"cannot be written ({words})" in errors, errors[-3000:]
            assert "Traceback" not in errors, errors[-3000:]
            wait_until_gone(failed.pid)
            program.assert_intact(expected)
        remount(small_disk, "size=400m")
        finish(*program.arguments)
        assert program.outputs() == expected
    finally:
        program.work.unlink()


@pytest.fixture(scope="module")
def trained_by_two(train_data, tmp_path_factory) -> Path:
    """A training run of two processes without interruption."""
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(*TORCHRUN, "training.train", *training(train_data, folder))
    return folder


@pytest.mark.parametrize("victim", ["a training process", "torchrun"])
def test_the_death_of_one_of_two_training_processes_ends_all(
    trained_by_two, train_data, tmp_path, victim, long_run
):
    """The run ends with a message, and no process is left.

    The same command resumes and ends with the weights of an undisturbed run.
    """
    if victim == "torchrun" and not long_run:
        pytest.skip("make test-faults runs it")
    command = (
        *TORCHRUN,
        "training.train",
        *training(train_data, tmp_path / "disturbed"),
    )
    program = start(*command)
    weights = tmp_path / "disturbed" / "weights"
    last = weights / "5_DeepFakeClassifier_tf_efficientnet_b0_ns_0_last"
    while not last.exists():
        assert program.poll() is None
        time.sleep(0.05)
    pgrep = ["pgrep", "-f", f"training.train.*{tmp_path}/disturbed"]
    found = subprocess.run(pgrep, capture_output=True, text=True).stdout.split()
    pids = [int(pid) for pid in found if int(pid) != program.pid]
    trainers = [
        pid
        for pid in pids
        if b"--standalone" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    os.kill(program.pid if victim == "torchrun" else trainers[0], signal.SIGKILL)
    _, errors = program.communicate(timeout=60)
    assert program.returncode != 0
    if victim != "torchrun":
        message = "another training process ended"
        assert message in errors or "SIGKILL" in errors, errors[-3000:]
    for pid in pids:
        end = time.monotonic() + 10
        while (
            Path(f"/proc/{pid}").exists()
            and " Z " not in Path(f"/proc/{pid}/stat").read_text()
        ):
            assert time.monotonic() < end, f"{pid} is still running"
            time.sleep(0.05)
    finish(*command)
    assert content(last) == content(trained_by_two / "weights" / last.name)
