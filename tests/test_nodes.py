"""Training on several nodes by train.sh: two agents of torchrun on this machine, as nodes of one process each."""

import csv
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.test_executor import hear_ctrl_c
from tests.test_interruptions import content
from tests.test_train import SMALL
from training.checkpoint import load_checkpoint

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
NAME = "5_DeepFakeClassifier_tf_efficientnet_b0_ns_0"
SETTINGS = [*SMALL, "augmented=0"]


def start(
    data: Path, out: Path, processes: int = 1, **settings: object
) -> subprocess.Popen:
    """train.sh, in a session of its own; `settings` are environment variables."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    settings |= {
        "PATH": path,
        "SEEDS": 5,
        "CONFIG": "configs/demo.yaml",
        "COUNT": 0,
        "WEIGHTS_DIR": out / "weights",
        "LOGDIR": out / "logs",
        "OMP_NUM_THREADS": 1,
    }
    command = [
        "./train.sh",
        data,
        processes,
        "--device",
        "cpu",
        "--workers",
        0,
        "--set",
        *SETTINGS,
    ]
    return subprocess.Popen(
        [*map(str, command)],
        cwd=ROOT,
        start_new_session=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=hear_ctrl_c,
        env={**os.environ, **{key: str(value) for key, value in settings.items()}},
    )


def finish(*programs: subprocess.Popen) -> str:
    """What they printed."""
    printed = ""
    for program in programs:
        output, errors = program.communicate(timeout=200)
        assert program.returncode == 0, errors[-3000:]
        printed += output
    return printed


def two_nodes(data: Path, out: Path) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"NNODES": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [start(data, out, NODE_RANK=rank, **settings) for rank in (0, 1)]


def curve(out: Path, *columns: str) -> list[list[float]]:
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
    """Trained by two processes of one node."""
    out = tmp_path_factory.mktemp("one node")
    printed = finish(start(train_data, out, 2))
    assert "4 steps of 8 images = 2 processes x 4\n" in printed
    assert printed.count("validation loss") == 3  # one of them tells
    return out


def test_two_nodes_train_as_two_processes_of_one(one_node, train_data, tmp_path):
    finish(*two_nodes(train_data, tmp_path))
    assert curve(tmp_path, *LOSSES) == curve(one_node, *LOSSES)
    last = f"weights/{NAME}_last"
    assert content(tmp_path / last) == content(one_node / last)


def test_one_process_goes_on_with_the_same_steps_where_a_node_was_lost(
    one_node, train_data, tmp_path
):
    """Killed with -9 after the second epoch: the other ends with a message. Gradients are added up from there on, so the losses
    in training are the same; batch norm remembers both halves of a step, where two CPUs keep the first one's, so those in
    validation are not quite."""
    nodes = two_nodes(train_data, tmp_path)
    while not (tmp_path / "weights" / f"{NAME}_1").exists():
        assert all(node.poll() is None for node in nodes)
        time.sleep(0.02)
    os.killpg(nodes[1].pid, signal.SIGKILL)
    begin = time.monotonic()
    _, errors = nodes[0].communicate(timeout=100)
    assert nodes[0].returncode not in (0, None) and time.monotonic() - begin < 60
    assert "its node was lost" in errors and "Run the same command again" in errors, (
        errors[-3000:]
    )
    nodes[1].communicate()
    done = load_checkpoint(tmp_path / "weights" / f"{NAME}_last")["epoch"]
    assert done < 3  # else there is nothing to go on with
    printed = finish(start(train_data, tmp_path))
    assert f"going on after epoch {done - 1}" in printed
    assert "4 steps of 8 images = 1 processes x 4 x 2 batches added up" in printed
    for ours, theirs in zip(
        curve(tmp_path, *LOSSES), curve(one_node, *LOSSES), strict=True
    ):
        assert ours[:3] == pytest.approx(theirs[:3], rel=1e-5)
        assert ours[3:] == pytest.approx(theirs[3:], rel=0.2)
    ours, theirs = (
        load_checkpoint(out / "weights" / f"{NAME}_2")["state_dict"]
        for out in (tmp_path, one_node)
    )
    for key, value in theirs.items():
        if "running" not in key and "num_batches" not in key:
            torch.testing.assert_close(ours[key], value, rtol=1e-4, atol=1e-5)
