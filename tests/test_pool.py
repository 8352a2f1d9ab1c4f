"""Several devices: who takes what, and what happens when one fails. CPUs stand for GPUs."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from inference import pool as pools
from inference.ensemble import Ensemble, predict_batch
from inference.extraction import VideoFaces
from inference.members import plain_members
from inference.pool import EnsemblePool
from runtime import device
from runtime.cli import MachineError
from runtime.device import pick_device, pick_devices
from runtime.executor import ExecutorOptions, map_items


@pytest.fixture
def eight_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)


def made_videos(count):
    """Videos of one to four faces each."""
    rng = np.random.default_rng(0)
    for number in range(count):
        faces = 1 + number % 4
        images = rng.integers(0, 256, (faces, 64, 64, 3), np.uint8)
        yield (
            Path(f"{number}.mp4"),
            VideoFaces(
                {64: images, 96: images.repeat(2, 1).repeat(2, 2)[:, :96, :96]},
                [*range(faces)],
                [0.0] * faces,
                [(0, 0, 9, 9)] * faces,
            ),
        )


def test_the_rows_are_the_same_whatever_the_number_of_devices(checkpoints):
    members = plain_members([checkpoints / "one", checkpoints / "two"])
    ensemble = Ensemble(members, "cpu")
    expected = {}
    for path, faces in made_videos(13):
        (prediction,) = predict_batch(ensemble, {path: faces})
        expected[path] = prediction.entry
    for count in (1, 2, 3):
        found = EnsemblePool(members, ["cpu"] * count).predict(made_videos(13))
        entries = {path: prediction.entry for path, prediction in found}
        assert entries == expected


def test_videos_are_gathered_until_they_fill_a_device(checkpoints):
    several = EnsemblePool(plain_members([checkpoints / "one"]), ["cpu"])
    several.first.min_faces = 5
    groups = [
        [len(faces.frames) for faces in group.values()]
        for group in several._groups(made_videos(9))
    ]
    assert groups == [[1, 2, 3], [4, 1], [2, 3], [4, 1]]


def test_an_idle_device_takes_the_next_video_and_few_wait(checkpoints, monkeypatch):
    """The first device is slow: the other takes more. Videos are read as they are taken,
    one more than there are devices at most.
    """
    several = EnsemblePool(plain_members([checkpoints / "one"]), ["cpu", "cpu"])
    taken = {id(each): 0 for each in several._ensembles}
    made = done = 0

    def slow(ensemble, group, grad_cam):
        taken[id(ensemble)] += 1
        time.sleep(0.3 if ensemble is several.first else 0.02)
        return [None]

    def videos():
        nonlocal made
        for video in made_videos(12):
            assert made - done <= 3
            made += 1
            yield video

    monkeypatch.setattr(pools, "predict_batch", slow)
    for _ in several.predict(videos()):
        done += 1
    assert made == done == 12
    first, second = taken.values()
    assert 1 <= first < second


def test_what_is_finished_is_given_before_an_error(checkpoints):
    """Ctrl-C, or a worker's defect: the journal gets all that was scored."""
    several = EnsemblePool(plain_members([checkpoints / "one"]), ["cpu", "cpu"])

    def videos():
        yield from made_videos(3)
        raise KeyboardInterrupt

    given = []
    with pytest.raises(KeyboardInterrupt):
        for path, _ in several.predict(videos()):
            given.append(path.stem)
    assert sorted(given) == ["0", "1", "2"]


@pytest.mark.parametrize("count", [1, 2])
def test_a_device_that_fails_ends_the_run_with_its_name(
    checkpoints, monkeypatch, count
):
    several = EnsemblePool(plain_members([checkpoints / "one"]), ["cpu"] * count)
    broken = several._ensembles[-1]
    broken.device = "cuda:1"

    def fail(ensemble, group, grad_cam, real=predict_batch):
        if ensemble is broken:
            raise torch.AcceleratorError("CUDA error: an illegal memory access")
        return real(ensemble, group)

    monkeypatch.setattr(pools, "predict_batch", fail)
    with pytest.raises(MachineError, match=r"^cuda:1: CUDA error: an illegal memory"):
        list(several.predict(made_videos(7)))


def test_auto_is_all_gpus_and_a_worker_has_one(eight_gpus, monkeypatch):
    assert pick_devices("auto") == [f"cuda:{number}" for number in range(8)]
    assert pick_devices("cuda:3") == ["cuda:3"] and pick_devices("cpu") == ["cpu"]
    assert pick_device("auto") == "cuda"
    picked = []
    for number in range(10):
        monkeypatch.setattr(device, "_turn", [number])
        picked.append(pick_device("auto"))
    assert picked == [f"cuda:{number % 8}" for number in range(10)]
    assert pick_device("cuda:5") == "cuda:5" and pick_device("cpu") == "cpu"


def own_turn(_):
    time.sleep(0.2)  # so that no worker takes all
    return device._turn


def test_workers_know_their_number():
    outcomes = map_items(own_turn, range(6), ExecutorOptions(2), "test")
    turns = [result for _, result, error in outcomes if error is None]
    assert len(turns) == 6 and {tuple(each) for each in turns} == {(0,), (1,)}
