"""Shared fixtures; slow tests run last."""

import csv
import fcntl
import importlib
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import numpy as np
import pytest
import skimage.data
import torch

from preprocessing.__main__ import DETECTOR_STEPS, STEPS
from runtime.files import atomic_folder, open_csv, write_csv
from tests.media import write_dfdc
from training.checkpoint import save_checkpoint
from training.config import Config
from training.distributed import World
from training.model import DeepFakeClassifier, Normalize
from training.trainer import Trainer


def pytest_addoption(parser):
    parser.addoption(
        "--long",
        action="store_true",
        help="fault tests with 1,000 damaged videos and 30 kills of each program",
    )


@pytest.fixture(scope="session")
def long_run(request) -> bool:
    return request.config.getoption("--long")


# One to three minutes each.
LONGEST = (
    "interruptions",
    "faults",
    "golden",
    "demo",
    "nodes",
    "augment",
    "ray_cluster",
)


def pytest_collection_modifyitems(config, items):
    """In one process fast tests first; in several the longest files first, then those
    with most slow tests, so that all processes are busy to the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    if not hasattr(config, "workerinput"):  # of pytest-xdist's processes
        items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
        return
    first = [f"test_{name}.py" for name in LONGEST]
    rank = {name: number for number, name in enumerate(first)}
    items.sort(key=lambda item: (rank.get(item.path.name, 99), -slow[item.path]))


@pytest.fixture(scope="session")
def portrait() -> np.ndarray:
    """A public-domain portrait with one face, (512, 512, 3) uint8 RGB."""
    return skimage.data.astronaut()


@pytest.fixture(scope="session")
def make_once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Make a folder once, also if pytest-xdist runs several test processes.

    The first process that asks for the folder makes it; the others wait.
    """
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def make_folder(name: str, make: Callable[[Path], object]) -> Path:
        folder = base / name
        with open(base / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                with atomic_folder(folder) as temporary:
                    make(temporary)
        return folder

    return make_folder


@pytest.fixture(scope="session")
def dfdc(make_once) -> Path:
    """A small DFDC folder, not preprocessed. Read-only: copy it to change it."""
    return make_once("dfdc", write_dfdc)


@pytest.fixture(scope="session")
def preprocessed(dfdc, make_once) -> Path:
    """The folder of `dfdc` after steps 1 to 5. Read-only: copy it to change it."""

    def preprocess(root: Path) -> None:
        shutil.copytree(dfdc, root, dirs_exist_ok=True)
        for step in STEPS:
            arguments = ["--root-dir", str(root), "--workers", "0"]
            arguments += ["--device", "cpu"] if step in DETECTOR_STEPS else []
            module = importlib.import_module(f"preprocessing.{step}")
            assert module.main(arguments) == 0

    return make_once("preprocessed", preprocess)


@pytest.fixture(scope="session")
def train_data(preprocessed, tmp_path_factory) -> Path:
    """The folder of `preprocessed`, with the videos of part 0 in two folds.

    So both training and validation have fakes. Read-only: copy it to change it.
    """
    root = shutil.copytree(preprocessed, tmp_path_factory.mktemp("train") / "data")
    with open_csv(root / "folds.csv") as file:
        header, *rows = csv.reader(file)
    rows += [[*row[:-1], "2"] for row in rows if row[-1] == "0"]
    write_csv(root / "folds.csv", header, rows)
    return root


def cpu_trainer(config: Config) -> Trainer:
    """A trainer of a network with seeded random weights."""
    torch.manual_seed(0)
    return Trainer.build(config, World(0, 1, torch.device("cpu")), "none", seed=1)


def portrait_crops(count: int, size: int, seed: int = 3) -> np.ndarray:
    """Crops (N, S, S, 3) uint8 RGB, for which the logits of `checkpoints` are moderate."""
    image, rng = skimage.data.astronaut(), np.random.default_rng(seed)
    places = rng.integers(0, len(image) - size, (count, 2))
    return np.stack([image[y : y + size, x : x + size] for y, x in places])


def spread_predictions(model: DeepFakeClassifier, size: int) -> None:
    """Make the probabilities of an untrained network spread over 0..1.

    Sets the batch norm statistics from crops of the portrait, and scales the last layer to
    logits of standard deviation 0.5: larger ones magnify rounding past the tests.
    """
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    crops = portrait_crops(32, size, seed=0)
    normalize = Normalize((0.5,) * 3, (0.25,) * 3)
    with torch.no_grad():
        logits = model.train()(normalize(torch.from_numpy(crops)))
        model.fc.weight /= 2 * logits.std()


@pytest.fixture(scope="session")
def checkpoints(make_once) -> Path:
    """Two small untrained B0 checkpoints of different input sizes, `one` and `two`."""

    def write_checkpoints(folder: Path) -> None:
        for seed, (name, size) in enumerate((("one", 64), ("two", 96))):
            torch.manual_seed(seed)
            config = Config(
                encoder="tf_efficientnet_b0.ns_jft_in1k",
                pretrained="none",
                input={"size": size},
            )
            model = DeepFakeClassifier(config.encoder)
            spread_predictions(model, size)
            save_checkpoint(
                folder / name,
                epoch=1,
                state_dict=model.state_dict(),
                bce_best=0.5,
                config=config.model_dump(),
            )

    return make_once("checkpoints", write_checkpoints)
