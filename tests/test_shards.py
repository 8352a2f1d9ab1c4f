"""Crops in WebDataset shards: the same files, the same training images, drawn by the same law, read from end to end."""

import csv
import importlib
import json
import pickle
import shutil
import tarfile
from collections import Counter

import numpy as np
import pytest

from preprocessing.__main__ import PACKING, main
from preprocessing.crop_table import COLUMNS, read_crop_table
from runtime.cli import UserError
from runtime.files import write_csv
from tests.test_train import SMALL, arguments, metrics
from training import train
from training.config import Config
from training.dataset import BalancedSampler, TrainingCrops, ValidationCrops, interleave
from training.samples import Sample

pack = importlib.import_module(f"preprocessing.{PACKING}").main


@pytest.fixture(scope="module")
def packed(train_data, tmp_path_factory):
    """Packed in shards of 7."""
    root = shutil.copytree(train_data, tmp_path_factory.mktemp("packed") / "data")
    assert pack(["--root-dir", str(root), "--workers", "0", "--shard-crops", "7"]) == 0
    return root


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_every_crop_lies_in_one_shard_with_all_that_belongs_to_it(packed):
    """Read with tarfile alone, in the order of folds.csv, its fold and kind in the shard's name."""
    expected = rows_of(packed / "folds.csv")
    found, diffs, landmarks = [], 0, 0
    for path in sorted((packed / "shards").glob("*.tar")):
        _, fold, kind, _ = path.stem.split("-")
        samples = {}
        with tarfile.open(path) as tar:
            for entry in tar:
                key, _, ending = entry.name.partition(".")
                samples.setdefault(key, {})[ending] = tar.extractfile(entry).read()
        assert 0 < len(samples) <= 7 and list(samples) == sorted(samples)
        for sample in samples.values():
            row = {key: str(value) for key, value in json.loads(sample["json"]).items()}
            assert (int(row["fold"]), row["label"]) == (
                int(fold),
                "0" if kind == "real" else "1",
            )
            stem = row["file"].removesuffix(".png")
            others = {
                "npy": packed / "landmarks" / row["original"] / f"{stem}.npy",
                "diff.png": packed / "diffs" / row["video"] / f"{stem}_diff.png",
            }
            assert (
                sample["png"]
                == (packed / "crops" / row["video"] / row["file"]).read_bytes()
            )
            for ending, file in others.items():
                assert sample.get(ending) == (
                    file.read_bytes() if file.exists() else None
                )
            found.append(row)
            diffs, landmarks = (
                diffs + ("diff.png" in sample),
                landmarks + ("npy" in sample),
            )
    assert diffs and landmarks
    assert sorted(found, key=str) == sorted(expected, key=str)
    for fold, label in {(row["fold"], row["label"]) for row in expected}:
        of = [
            [row for row in rows if (row["fold"], row["label"]) == (fold, label)]
            for rows in (expected, found)
        ]
        assert of[0] == of[1]


def test_webdatasets_own_reader_reads_them(packed):
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
    crops = read_crop_table(packed, "wds")
    shards = dict.fromkeys(
        str(packed / "shards" / crops.name("shard", row)) for row in range(len(crops))
    )
    samples = list(
        webdataset.WebDataset(list(shards), shardshuffle=False).decode("rgb8")
    )
    assert len(samples) == len(crops)
    for row, sample in enumerate(samples):
        assert (sample["json"]["video"], sample["json"]["file"]) == (
            crops.name("video", row),
            crops.name("file", row),
        )
        np.testing.assert_array_equal(sample["png"], Sample(crops, row).image())


def test_a_training_item_is_the_same_from_either(packed):
    files, shards = read_crop_table(packed), read_crop_table(packed, "wds")
    assert len(files) == len(shards)
    where = {
        (files.name("video", row), files.name("file", row), files["fold"][row]): row
        for row in range(len(files))
    }
    config = Config(input={"size": 64}, half_cutout=0.5)
    for row in range(len(shards)):
        other = where[
            shards.name("video", row), shards.name("file", row), shards["fold"][row]
        ]
        for seed in range(3):
            one, two = (
                TrainingCrops(files, config)[other, seed],
                TrainingCrops(shards, config)[row, seed],
            )
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
    """Each real crop once an epoch, each fake as often as another, batches with the same spread of fakes."""
    spreads = []
    for shards in (None, SHARDS):
        counts, fakes = Counter(), []
        for rows in draws(shards):
            assert (
                sorted(rows[LABELS[rows] == 0]) == sorted(np.flatnonzero(LABELS == 0))
                and len(set(rows)) == 120
            )
            counts.update(rows[LABELS[rows] == 1].tolist())
            fakes += LABELS[rows].reshape(-1, 12).sum(axis=1).tolist()
        expected = 400 * 60 / 160
        assert (
            len(counts) == 160
            and max(abs(count - expected) for count in counts.values())
            < 6 * expected**0.5
        )
        assert np.mean(fakes) == 6
        spreads.append(np.std(fakes))
    assert spreads[0] == pytest.approx(spreads[1], rel=0.05)
    assert spreads[0] == pytest.approx(
        (12 * 0.25 * (120 - 12) / (120 - 1)) ** 0.5, rel=0.05
    )  # hypergeometric


def test_each_shard_is_read_in_its_order():
    """But for the one of a kind in whose middle an epoch may begin and end."""
    for rows in draws(SHARDS, 20):
        steps = [np.diff(rows[SHARDS[rows] == shard]) for shard in set(SHARDS[rows])]
        assert all((each < 0).sum() <= 1 for each in steps)
        assert (
            sum((each < 0).any() for each in steps) <= 2 * 8
        )  # of the shards that are read at a time
        assert all((each[each > 0] == 1).all() for each in steps)


def test_by_turns_keeps_the_order_of_each():
    mixed = interleave([np.arange(50), np.arange(100, 130)], np.random.default_rng(0))
    assert mixed[mixed < 100].tolist() == list(range(50)) and mixed[
        mixed >= 100
    ].tolist() == list(range(100, 130))
    assert mixed.tolist() != sorted(mixed)


def test_what_is_packed_is_kept_until_folds_csv_changes(packed, tmp_path, capsys):
    root = shutil.copytree(packed, tmp_path / "data")
    again = ["--root-dir", str(root), "--workers", "0", "--shard-crops", "7"]
    before = {path.name: path.read_bytes() for path in (root / "shards").iterdir()}
    (root / "shards" / "fold-00-fake-00000.csv").unlink()
    assert pack(again) == 0
    assert "1 shards done" in capsys.readouterr().out
    assert {
        path.name: path.read_bytes() for path in (root / "shards").iterdir()
    } == before
    lines = (root / "folds.csv").read_text().splitlines()
    (root / "folds.csv").write_text("\n".join(lines[:-3]) + "\n")
    assert pack(again) == 0
    assert len(read_crop_table(root, "wds")) == len(lines) - 1 - 3
    lost = rows_of(root / "folds.csv")[0]
    (root / "crops" / lost["video"] / lost["file"]).unlink()
    assert (
        pack([*again[:-1], "8"]) == 1
    )  # a shard that cannot be made fails, and is named
    assert f"{lost['video']}/{lost['file']}: cannot be read" in capsys.readouterr().err
    with pytest.raises(UserError, match="--format wds"):
        read_crop_table(root, "wds")


def test_the_same_process_packs_what_folds_csv_says_now(tmp_path):
    """A second folds.csv with fewer crops in another order."""
    (tmp_path / "crops" / "a").mkdir(parents=True)
    for frame in range(6):
        (tmp_path / "crops" / "a" / f"{frame}_0.png").write_bytes(b"any")
    for frames in ([0, 1, 2, 3, 4, 5], [5, 4, 3, 2]):
        write_csv(
            tmp_path / "folds.csv",
            COLUMNS,
            [["a", f"{frame}_0.png", 0, "a", frame, 0] for frame in frames],
        )
        assert (
            pack(["--root-dir", str(tmp_path), "--workers", "0", "--shard-crops", "3"])
            == 0
        )
        assert read_crop_table(tmp_path, "wds")["frame"].tolist() == frames


def test_a_damaged_shard_counts_as_broken_crops(packed, tmp_path):
    root = shutil.copytree(packed, tmp_path / "data")
    crops = read_crop_table(root, "wds")
    path = root / "shards" / crops.name("shard", 0)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(UserError, match=rf"{path.name}.*delete .*\.\*"):
        ValidationCrops(crops, 64)[0]
    item = TrainingCrops(crops, Config(input={"size": 64}))[0, 3]
    assert item["broken"] and path.name in item["broken"][0]


def test_loader_processes_share_the_rows(packed):
    """What another process gets are the same rows, in memory that both see."""
    crops = read_crop_table(packed)
    copy = pickle.loads(pickle.dumps(crops))
    assert copy.rows.tobytes() == crops.rows.tobytes() and copy.name(
        "video", 3
    ) == crops.name("video", 3)
    assert crops._shared.is_shared() and np.shares_memory(
        crops.rows, crops._shared.numpy()
    )


@pytest.mark.slow
def test_steps_and_training_with_shards(packed, dfdc, preprocessed, tmp_path):
    """python -m preprocessing --format wds, then an epoch with loader processes; the same epoch without them."""
    root = shutil.copytree(preprocessed, tmp_path / "data")
    assert (
        main(
            [
                "--root-dir",
                str(root),
                "--workers",
                "2",
                "--device",
                "cpu",
                "--format",
                "wds",
            ]
        )
        == 0
    )
    assert len(read_crop_table(root, "wds")) == len(read_crop_table(root))
    losses = []
    for workers in ("0", "2"):
        options = ["--format", "wds", "--workers", workers, "--set", *SMALL, "epochs=1"]
        assert train.main([*arguments(packed, tmp_path / workers), *options]) == 0
        losses.append(
            {
                key: value
                for key, value in metrics(tmp_path / workers)[0].items()
                if key != "images_per_second"
            }
        )
    assert losses[0] == losses[1]
