"""Sampling, training items, cutout shares, broken crops and folds."""

import csv
import shutil
from collections import Counter

import numpy as np
import pytest

from preprocessing.crop_table import read_crop_table
from runtime.cli import UserError
from runtime.files import open_csv, write_csv
from tests.media import FAKE, REAL
from training.augment import plain_transform
from training.config import Config, InputSettings
from training.dataset import (
    BalancedSampler,
    TrainingCrops,
    ValidationCrops,
    collate,
    train_val_split,
)
from training.samples import Sample

LABELS = np.array([0] * 10 + [1] * 50)


def draw(epoch, count=20, **options):
    sampler = BalancedSampler(LABELS, count, seed=7, **options)
    sampler.epoch = epoch
    return list(sampler)


def test_an_epoch_has_as_many_fakes_as_reals_drawn_anew():
    first, second = ([row for row, _ in draw(epoch)] for epoch in (0, 1))
    for rows in (first, second):
        assert sorted(LABELS[rows]) == [0] * 10 + [1] * 10
        assert len(set(rows)) == 20  # without replacement: every real once
    fakes = [{row for row in rows if LABELS[row]} for rows in (first, second)]
    assert fakes[0] != fakes[1]
    assert draw(0) == draw(0) and draw(0) != draw(1)


def test_a_longer_epoch_draws_again_and_shows_all_fakes():
    rows = [row for row, _ in draw(0, count=2000)]
    counts = Counter(rows)
    assert len(counts) == 60 and {counts[row] for row in range(10)} == {100}
    assert LABELS[rows].mean() == 0.5


def test_processes_share_an_epoch_without_overlap():
    alone = draw(3, count=18)
    shared = [draw(3, count=6, rank=rank, world_size=3) for rank in range(3)]
    assert [item for group in zip(*shared) for item in group] == alone
    assert len({seed for _, seed in alone}) == 18


def test_fewer_processes_take_over_the_others_batches():
    """With gradient accumulation, each step has the same batches.

    Four processes with one batch a step, two with two, and one with four.
    """

    def steps(processes, accumulate):
        result = [set(), set(), set()]
        options = {"world_size": processes, "batch_size": 2, "accumulate": accumulate}
        for rank in range(processes):
            items = draw(3, count=6, rank=rank, **options)
            batches = [tuple(items[at : at + 2]) for at in range(0, len(items), 2)]
            for step in range(3):
                start = step * accumulate
                result[step] |= set(batches[start : start + accumulate])
        return result

    assert steps(4, 1) == steps(2, 2) == steps(1, 4)
    assert [len(batches) for batches in steps(4, 1)] == [4, 4, 4]


def test_more_reals_than_fakes_is_balanced_too():
    rows = [row for row, _ in BalancedSampler(1 - LABELS, 20, seed=1)]
    assert LABELS[rows].mean() == 0.5


def names(crops, column="video"):
    return np.array([crops.name(column, row) for row in range(len(crops))])


@pytest.fixture
def data(preprocessed, tmp_path):
    return shutil.copytree(preprocessed, tmp_path / "data")


def test_a_training_item_follows_from_its_seed(data):
    crops = read_crop_table(data)
    dataset = TrainingCrops(crops, Config(input={"size": 64}))
    one, again, other = (dataset[item] for item in ((0, 5), (0, 5), (0, 6)))
    np.testing.assert_array_equal(one["image"], again["image"])
    assert (one["image"] != other["image"]).any()
    labels = {
        int(crops["label"][row]): float(dataset[row, 1]["label"])
        for row in range(len(crops))
    }
    assert labels == pytest.approx({0: 0.01, 1: 0.99})
    batch = collate([one, other])
    assert batch["image"].shape == (2, 64, 64, 3) and batch["label"].shape == (2,)
    assert batch["broken"] == [[], []]


def test_without_augmentation_and_cutouts_a_crop_is_itself(data):
    crops = read_crop_table(data)
    config = Config(
        input={"size": 64}, augmented=0, landmark_cutout=0, hull_cutout=0, half_cutout=0
    )
    for row in range(len(crops)):
        item = TrainingCrops(crops, config)[row, 9]
        expected = ValidationCrops(crops, InputSettings(size=64))[row]["image"]
        np.testing.assert_array_equal(item["image"], expected)


def test_each_cutout_is_taken_as_often_as_the_recipe_says(data):
    """A crop with landmarks: 0.7 landmark cutout, else 0.2 hull, else 0.1 half.

    An eighth of the landmark cutouts cut nothing.
    """
    crops = read_crop_table(data)
    reals = crops.select((names(crops) == REAL) & (crops["frame"] == 0))
    dataset = TrainingCrops(reals, Config(input={"size": 64}, augmented=0))
    plain = plain_transform(Sample(reals, 0).image() * 0 + 255, 64)
    inside = plain[..., 0] > 0
    images = (dataset[0, seed]["image"] for seed in range(1500))
    shares = np.array([(image.max(axis=2) == 0)[inside].mean() for image in images])
    untouched = 0.7 / 8 + 0.3 * 0.8 * 0.9
    assert abs((shares < 0.005).mean() - untouched) < 4 * np.sqrt(0.25 / 1500)
    assert abs((shares > 0.4).mean() - 0.3 * 0.8 * 0.1) < 4 * np.sqrt(0.03 / 1500)


def test_a_broken_crop_is_named_and_replaced_by_one_of_its_kind(data):
    (data / "crops" / FAKE / "0_0.png").write_bytes(b"")
    crops = read_crop_table(data)
    dataset = TrainingCrops(crops, Config(input={"size": 64}))
    (row,) = np.flatnonzero(
        (names(crops) == FAKE) & (names(crops, "file") == "0_0.png")
    )
    item = dataset[row, 3]
    assert item["label"] == pytest.approx(0.99)
    assert len(item["broken"]) >= 1 and f"{FAKE}/0_0.png" in item["broken"][0]
    with pytest.raises(UserError, match="0_0.png: not an image"):
        ValidationCrops(crops, InputSettings(size=64))[row]
    for path in (data / "crops" / FAKE).iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="5 crops in a row"):
        dataset[row, 3]


def test_a_broken_landmark_file_counts_as_a_broken_crop(data):
    for path in (data / "landmarks" / REAL).iterdir():
        path.write_bytes(b"no array")
    crops = read_crop_table(data)
    reals = crops.select(names(crops) == REAL)
    dataset = TrainingCrops(reals, Config(input={"size": 64}))
    with pytest.raises(UserError, match=f"landmarks/{REAL}"):
        dataset[0, 1]


def test_folds_are_split_and_every_second_frame_validates(data):
    crops = read_crop_table(data)
    with pytest.raises(UserError, match="the other folds hold no FAKE crop.*--fold"):
        train_val_split(crops, 0, 20)
    training, _ = train_val_split(crops, 0, 20, self_blended=1.0)
    assert {*training["label"]} == {0}
    with open_csv(data / "folds.csv") as file:
        header, *rows = csv.reader(file)
    rows += [[*row[:-1], "2"] for row in rows if row[-1] == "0"]
    write_csv(data / "folds.csv", header, rows)
    training, validation = train_val_split(read_crop_table(data), 0, 20)
    assert set(training["fold"]) == {1, 2} and set(validation["fold"]) == {0}
    assert set(validation["frame"]) == {0, 20}


@pytest.mark.parametrize(
    "text, words",
    [
        (None, "preprocess_data.sh"),
        ("", "lacks the column"),
        ("video,file,label,original,frame\n", "lacks the column fold"),
        ("video,file,label,original,frame,fold\n", "lists no crops"),
        ("video,file,label,original,frame,fold\na,0_0.png,zero,a,0,0\n", "line 2"),
    ],
)
def test_a_bad_folds_csv_is_named(tmp_path, text, words):
    if text is not None:
        (tmp_path / "folds.csv").write_text(text)
    with pytest.raises(UserError, match=f"folds.csv.*{words}"):
        read_crop_table(tmp_path)
