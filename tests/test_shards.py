"""Crops in WebDataset shards: content, training items, distribution, read order."""

import csv
import importlib
import json
import pickle
import shutil
import tarfile
from collections import Counter

import numpy as np
import pytest

from preprocessing.__main__ import PACK_STEP, main
from preprocessing.crop_table import COLUMNS, read_crop_table
from runtime.cli import UserError
from runtime.files import write_csv
from tests.test_train import SMALL, arguments, metrics
from training import train
from training.config import Config, InputSettings
from training.dataset import BalancedSampler, TrainingCrops, ValidationCrops, interleave
from training.samples import Sample

pack = importlib.import_module(f"preprocessing.{PACK_STEP}").main


@pytest.fixture(scope="module")
def packed(train_data, tmp_path_factory):
    """The folder of `train_data`, packed in shards of 7 crops."""
    root = shutil.copytree(train_data, tmp_path_factory.mktemp("packed") / "data")
    assert pack(["--root-dir", str(root), "--workers", "0", "--shard-crops", "7"]) == 0
    return root


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_every_crop_lies_in_one_shard_with_all_that_belongs_to_it(packed):
    """Read with tarfile only.

    The shard's name tells fold and class; each class of a fold has the order of
    folds.csv.
    """
    expected = rows_of(packed / "folds.csv")
    found, diffs, landmarks = [], 0, 0
    for path in sorted((packed / "shards").glob("*.tar")):
        _, fold, kind, _ = path.stem.split("-")
        samples = read_tar(path)
        assert 0 < len(samples) <= 7 and list(samples) == sorted(samples)
        for sample in samples.values():
            row = {key: str(value) for key, value in json.loads(sample["json"]).items()}
            assert int(row["fold"]) == int(fold)
            assert row["label"] == ("0" if kind == "real" else "1")
            stem = row["file"].removesuffix(".png")
            files = {
                "png": packed / "crops" / row["video"] / row["file"],
                "npy": packed / "landmarks" / row["original"] / f"{stem}.npy",
                "diff.png": packed / "diffs" / row["video"] / f"{stem}_diff.png",
            }
            assert files["png"].exists()
            for suffix, file in files.items():
                content = file.read_bytes() if file.exists() else None
                assert sample.get(suffix) == content
            found.append(row)
            diffs += "diff.png" in sample
            landmarks += "npy" in sample
    assert diffs and landmarks
    assert sorted(found, key=str) == sorted(expected, key=str)
    for fold, label in {(row["fold"], row["label"]) for row in expected}:
        ours, theirs = (
            [row for row in rows if (row["fold"], row["label"]) == (fold, label)]
            for rows in (found, expected)
        )
        assert ours == theirs


def read_tar(path):
    """The samples of a shard: key → suffix → content."""
    samples = {}
    with tarfile.open(path) as tar:
        for entry in tar:
            key, _, suffix = entry.name.partition(".")
            samples.setdefault(key, {})[suffix] = tar.extractfile(entry).read()
    return samples


def test_webdatasets_own_reader_reads_them(packed):
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
    crops = read_crop_table(packed, "wds")
    names = dict.fromkeys(crops.name("shard", row) for row in range(len(crops)))
    shards = [str(packed / "shards" / name) for name in names]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode("rgb8"))
    assert len(samples) == len(crops)
    for row, sample in enumerate(samples):
        for column in ("video", "file"):
            assert sample["json"][column] == crops.name(column, row)
        np.testing.assert_array_equal(sample["png"], Sample(crops, row).image())


def test_a_training_item_is_the_same_from_either(packed):
    files, shards = read_crop_table(packed), read_crop_table(packed, "wds")
    assert len(files) == len(shards)

    def key(crops, row):
        return crops.name("video", row), crops.name("file", row), crops["fold"][row]

    indices = {key(files, row): row for row in range(len(files))}
    config = Config(input={"size": 64}, half_cutout=0.5)
    for row in range(len(shards)):
        for seed in range(3):
            one = TrainingCrops(files, config)[indices[key(shards, row)], seed]
            two = TrainingCrops(shards, config)[row, seed]
            np.testing.assert_array_equal(one["image"], two["image"])
            assert one["label"] == two["label"]


LABELS = np.repeat([0, 1, 1, 1, 0], [40, 50, 50, 60, 20])
SHARDS = np.concatenate(
    [
        np.repeat(np.arange(4), 10),
        10 + np.repeat(np.arange(16), 10),
        40 + np.repeat(np.arange(2), 10),
    ]
)


def draws(shards, epochs=400):
    """The rows of many epochs of 120 crops."""
    sampler = BalancedSampler(LABELS, 120, seed=3, shards=shards)
    for epoch in range(epochs):
        sampler.epoch = epoch
        yield np.array([row for row, _ in sampler])


def test_shards_are_drawn_by_the_law_of_single_crops():
    """Each real crop once an epoch, each fake equally often.

    The number of fakes in a batch has the same standard deviation.
    """
    spreads = []
    for shards in (None, SHARDS):
        counts, fakes = Counter(), []
        for rows in draws(shards):
            reals = rows[LABELS[rows] == 0]
            assert sorted(reals) == sorted(np.flatnonzero(LABELS == 0))
            assert len(set(rows)) == 120
            counts.update(rows[LABELS[rows] == 1].tolist())
            fakes += LABELS[rows].reshape(-1, 12).sum(axis=1).tolist()
        expected = 400 * 60 / 160
        assert len(counts) == 160
        largest = max(abs(count - expected) for count in counts.values())
        assert largest < 6 * expected**0.5
        assert np.mean(fakes) == 6
        spreads.append(np.std(fakes))
    assert spreads[0] == pytest.approx(spreads[1], rel=0.05)
    hypergeometric = (12 * 0.25 * (120 - 12) / (120 - 1)) ** 0.5
    assert spreads[0] == pytest.approx(hypergeometric, rel=0.05)


def test_each_shard_is_read_in_its_order():
    """Except the shards in whose middle an epoch begins and ends."""
    for rows in draws(SHARDS, 20):
        steps = [np.diff(rows[SHARDS[rows] == shard]) for shard in set(SHARDS[rows])]
        assert all((each < 0).sum() <= 1 for each in steps)
        # at most the shards of each class that are open at the same time
        assert sum((each < 0).any() for each in steps) <= 2 * 8
        assert all((each[each > 0] == 1).all() for each in steps)


def test_by_turns_keeps_the_order_of_each():
    mixed = interleave([np.arange(50), np.arange(100, 130)], np.random.default_rng(0))
    assert mixed[mixed < 100].tolist() == list(range(50))
    assert mixed[mixed >= 100].tolist() == list(range(100, 130))
    assert mixed.tolist() != sorted(mixed)


def test_what_is_packed_is_kept_until_folds_csv_changes(packed, tmp_path, capsys):
    root = shutil.copytree(packed, tmp_path / "data")
    again = ["--root-dir", str(root), "--workers", "0", "--shard-crops", "7"]

    def contents():
        return {path.name: path.read_bytes() for path in (root / "shards").iterdir()}

    before = contents()
    (root / "shards" / "fold-00-fake-00000.csv").unlink()
    assert pack(again) == 0
    assert "1 shards done" in capsys.readouterr().out
    assert contents() == before
    lines = (root / "folds.csv").read_text().splitlines()
    (root / "folds.csv").write_text("\n".join(lines[:-3]) + "\n")
    assert pack(again) == 0
    assert len(read_crop_table(root, "wds")) == len(lines) - 1 - 3
    lost = rows_of(root / "folds.csv")[0]
    (root / "crops" / lost["video"] / lost["file"]).unlink()
    # a shard that cannot be written is reported
    assert pack([*again[:-1], "8"]) == 1
    assert f"{lost['video']}/{lost['file']}: cannot be read" in capsys.readouterr().err
    with pytest.raises(UserError, match="--format wds"):
        read_crop_table(root, "wds")


def test_the_same_process_packs_what_folds_csv_says_now(tmp_path):
    """A second folds.csv with fewer crops in another order."""
    (tmp_path / "crops" / "a").mkdir(parents=True)
    for frame in range(6):
        (tmp_path / "crops" / "a" / f"{frame}_0.png").write_bytes(b"any")
    arguments = [f"--root-dir={tmp_path}", "--workers=0", "--shard-crops=3"]
    for frames in ([0, 1, 2, 3, 4, 5], [5, 4, 3, 2]):
        rows = [["a", f"{frame}_0.png", 0, "a", frame, 0] for frame in frames]
        write_csv(tmp_path / "folds.csv", COLUMNS, rows)
        assert pack(arguments) == 0
        assert read_crop_table(tmp_path, "wds")["frame"].tolist() == frames


def test_a_damaged_shard_counts_as_broken_crops(packed, tmp_path):
    root = shutil.copytree(packed, tmp_path / "data")
    crops = read_crop_table(root, "wds")
    path = root / "shards" / crops.name("shard", 0)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(UserError, match=rf"{path.name}.*delete .*\.\*"):
        ValidationCrops(crops, InputSettings(size=64))[0]
    item = TrainingCrops(crops, Config(input={"size": 64}))[0, 3]
    assert item["broken"] and path.name in item["broken"][0]


def test_loader_processes_share_the_rows(packed):
    """A process gets the same rows, in shared memory."""
    crops = read_crop_table(packed)
    copy = pickle.loads(pickle.dumps(crops))
    assert copy.rows.tobytes() == crops.rows.tobytes()
    assert copy.name("video", 3) == crops.name("video", 3)
    assert crops._shared.is_shared()
    assert np.shares_memory(crops.rows, crops._shared.numpy())


@pytest.mark.slow
def test_steps_and_training_with_shards(packed, dfdc, preprocessed, tmp_path):
    """`python -m preprocessing --format wds`, and an epoch with and without workers."""
    root = shutil.copytree(preprocessed, tmp_path / "data")
    options = [f"--root-dir={root}", "--workers=2", "--device=cpu", "--format=wds"]
    assert main(options) == 0
    assert len(read_crop_table(root, "wds")) == len(read_crop_table(root))
    epochs = []
    for workers in ("0", "2"):
        options = ["--format", "wds", "--workers", workers, "--set", *SMALL, "epochs=1"]
        assert train.main([*arguments(packed, tmp_path / workers), *options]) == 0
        (epoch,) = metrics(tmp_path / workers)
        del epoch["images_per_second"]
        epochs.append(epoch)
    assert epochs[0] == epochs[1]
