"""Multi-node training with train.sh: two torchrun agents of one process each.

Both run on this machine.
"""

import csv
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.test_executor import restore_sigint
from tests.test_interruptions import content
from tests.test_train import SMALL
from training.checkpoint import load_checkpoint

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
NAME = "5_DeepFakeClassifier_tf_efficientnet_b0_ns_0"
SETTINGS = [*SMALL, "augmented=0"]


def start(
    data: Path,
    out: Path,
    processes: int = 1,
    launcher: Sequence[str] = (),
    **settings: object,
) -> subprocess.Popen:
    """Start train.sh in a session of its own; `settings` are environment variables.

    Args:
        launcher: a command that starts train.sh.
    """
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    settings |= {
        "PATH": path,
        "SEEDS": 5,
        "CONFIG": "tests/scratch.yaml",
        "COUNT": 0,
        "WEIGHTS_DIR": out / "weights",
        "LOGDIR": out / "logs",
        "OMP_NUM_THREADS": 1,
    }
    options = ["--device", "cpu", "--workers", "0", "--set", *SETTINGS]
    return subprocess.Popen(
        [*launcher, "./train.sh", str(data), str(processes), *options],
        cwd=ROOT,
        start_new_session=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=restore_sigint,
        env={**os.environ, **{key: str(value) for key, value in settings.items()}},
    )


def finish(*programs: subprocess.Popen) -> str:
    """Wait for programs to end. Returns their output."""
    printed = ""
    for program in programs:
        output, errors = program.communicate(timeout=200)
        assert program.returncode == 0, errors[-3000:]
        printed += output
    return printed


def two_nodes(data: Path, out: Path) -> list[subprocess.Popen]:
    """Start train.sh for each of two nodes, on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"NNODES": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [start(data, out, NODE_RANK=rank, **settings) for rank in (0, 1)]


def curve(out: Path, *columns: str) -> list[list[float]]:
    """Columns of metrics.csv, a row for each epoch."""
    with open(out / "logs" / NAME / "metrics.csv", newline="") as file:
        return [
            [float(row[column]) for column in columns] for row in csv.DictReader(file)
        ]


LOSSES = (
    "train_loss",
    "train_fake_loss",
    "train_real_loss",
    "val_fake_loss",
    "val_real_loss",
)


@pytest.fixture(scope="module")
def one_node(train_data, tmp_path_factory) -> Path:
    """A training run of two processes of one node."""
    out = tmp_path_factory.mktemp("one node")
    printed = finish(start(train_data, out, 2))
    assert "4 steps of 8 images = 2 processes x 4\n" in printed
    assert printed.count("validation loss") == 3  # only one process prints it
    return out


def test_two_nodes_train_as_two_processes_of_one(one_node, train_data, tmp_path):
    finish(*two_nodes(train_data, tmp_path))
    assert curve(tmp_path, *LOSSES) == curve(one_node, *LOSSES)
    last = f"weights/{NAME}_last"
    assert content(tmp_path / last) == content(one_node / last)


def test_one_process_goes_on_with_the_same_steps_where_a_node_was_lost(
    one_node, train_data, tmp_path
):
    """A node is killed with SIGKILL after the second epoch; one process resumes.

    The other node ends with a message. The remaining process accumulates gradients, so
    the training losses are the same. The validation losses differ slightly: the running
    statistics of batch norm are updated with both halves of a step, where two CPU
    processes keep those of the first half.
    """
    nodes = two_nodes(train_data, tmp_path)
    while not (tmp_path / "weights" / f"{NAME}_1").exists():
        assert all(node.poll() is None for node in nodes)
        time.sleep(0.02)
    os.killpg(nodes[1].pid, signal.SIGKILL)
    begin = time.monotonic()
    _, errors = nodes[0].communicate(timeout=100)
    assert nodes[0].returncode not in (0, None) and time.monotonic() - begin < 60
    assert "its node was lost" in errors, errors[-3000:]
    assert "Run the same command again" in errors, errors[-3000:]
    nodes[1].communicate()
    done = load_checkpoint(tmp_path / "weights" / f"{NAME}_last")["epoch"]
    assert done < 3  # else there is nothing to go on with
    printed = finish(start(train_data, tmp_path))
    assert f"going on after epoch {done - 1}" in printed
    assert "4 steps of 8 images = 1 processes x 4 x 2 batches added up" in printed
    curves = (curve(out, *LOSSES) for out in (tmp_path, one_node))
    for ours, theirs in zip(*curves, strict=True):
        assert ours[:3] == pytest.approx(theirs[:3], rel=1e-5)
        assert ours[3:] == pytest.approx(theirs[3:], rel=0.2)
    ours, theirs = (
        load_checkpoint(out / "weights" / f"{NAME}_2")["state_dict"]
        for out in (tmp_path, one_node)
    )
    for key, value in theirs.items():
        if "running" not in key and "num_batches" not in key:
            torch.testing.assert_close(ours[key], value, rtol=1e-4, atol=1e-5)


# A shell in a namespace with another host name, which starts its arguments there.
NAMELESS = ("unshare", "--user", "--map-root-user", "--uts", "sh", "-c")
NAMELESS = (*NAMELESS, 'hostname no-such-name && exec "$@"', "sh")


def test_two_processes_where_the_own_name_does_not_resolve(
    one_node, train_data, tmp_path
):
    """torchrun would look the name up again and again."""
    if not shutil.which("unshare") or subprocess.call([*NAMELESS, "true"]) != 0:
        pytest.skip("no namespaces here")
    finish(start(train_data, tmp_path, 2, launcher=NAMELESS))
    assert curve(tmp_path, *LOSSES) == curve(one_node, *LOSSES)
