"""Clips: which frames, the files, the numbered steps, and training on them."""

import csv
import shutil
from importlib import import_module

import av
import numpy as np
import pytest
import torch

from preprocessing.clips import (
    choose_clips,
    choose_frames,
    clip_length,
    read_clip,
    write_clip,
)
from preprocessing.crop_table import CLIP, read_crop_table
from preprocessing.crops import read_image
from runtime.cli import UserError
from runtime.files import open_csv, write_csv
from tests.media import FAKE, REAL, random_frames
from tests.test_temporal import T
from tests.test_train import ROOT
from training import train
from training.checkpoint import load_checkpoint
from training.config import Config, InputSettings
from training.dataset import BalancedSampler, TrainingCrops, ValidationCrops

STILL, MOVED = [10.0, 10.0, 30.0, 40.0], [80.0, 10.0, 100.0, 40.0]


def test_clips_by_hand():
    """60 frames, 20 a clip: middles 10 to 50; the face that is not there at 30."""
    boxes = {number: [STILL] for number in range(0, 60, 10)}
    clips = choose_clips(boxes, 60, 20, 4)
    assert [(clip.middle, clip.numbers) for clip in clips] == [
        *((middle, range(middle - 10, middle + 10)) for middle in (10, 20, 30, 50))
    ]
    assert clips[0].name == "10_0.mp4"
    assert all(clip.box == STILL for clip in clips)
    # searched frames of the clip around 10 are 0 and 10; around 20, 10 and 20
    boxes[30] = None
    assert [clip.middle for clip in choose_clips(boxes, 60, 20)] == [10, 20, 50]
    # the same frame numbers, another face from 30 on
    boxes |= {number: [MOVED] for number in (30, 40, 50)}
    assert [clip.middle for clip in choose_clips(boxes, 60, 20)] == [10, 20, 40, 50]
    boxes = {number: [STILL, MOVED] for number in range(0, 60, 10)}
    boxes[10] = [MOVED]
    clips = choose_clips(boxes, 60, 20, 9)
    assert [(clip.middle, clip.actor) for clip in clips] == [
        *[(10, 0), (20, 1), (30, 0), (30, 1), (40, 0), (40, 1), (50, 0), (50, 1)]
    ]
    assert choose_clips(boxes, 15, 20) == [] == choose_clips({}, 60, 20)
    assert [clip_length(fps) for fps in (0, 1, 15, 25, 29.97, 60)] == [
        *(32, 2, 15, 25, 30, 32)
    ]


def test_frames_of_a_clip_by_hand():
    assert choose_frames(30, 30.0, 7, 1 / 15) == [8, 10, 12, 14, 16, 18, 20]
    assert choose_frames(30, 30.0, 7, 1 / 15, start=0) == [0, 2, 4, 6, 8, 10, 12]
    assert choose_frames(30, 30.0, 7, 1 / 15, start=1) == [17, 19, 21, 23, 25, 27, 29]
    # 25 frames a second: 0, 1.67, 3.33, 5 frames
    assert choose_frames(25, 25.0, 4, 1 / 15, start=0) == [0, 1, 3, 5]
    # shown at 10 frames a second, of which each is shown for three
    assert choose_frames(30, 30.0, 7, 1 / 15, 0, slowest=10) == [0, 0, 3, 6, 6, 9, 12]
    assert choose_frames(4, 30.0, 4, 1 / 15) == [0, 2, 3, 3]


@pytest.mark.parametrize("size", [(48, 64), (37, 51)])
def test_a_clip_file_is_nearly_lossless_and_has_one_key_frame(tmp_path, size):
    frames = np.stack(random_frames(32, *size))
    path = tmp_path / "clip.mp4"
    write_clip(path, frames, 29.97)
    found, fps = read_clip(path.read_bytes(), "clip", "remedy")
    assert found.shape == frames.shape and found.dtype == np.uint8
    assert fps == pytest.approx(29.97, abs=0.01)
    error = np.mean((found.astype(float) - frames) ** 2)
    # patterns of extreme colours; of real faces docs/transitions.md says how much
    assert 10 * np.log10(255**2 / error) > 33
    with av.open(str(path)) as container:
        keys = [packet.is_keyframe for packet in container.demux() if packet.size]
    assert keys == [True] + [False] * 31
    again = tmp_path / "again.mp4"
    write_clip(again, frames, 29.97)
    assert again.read_bytes() == path.read_bytes()
    for damaged in (b"", b"x" * 100, path.read_bytes()[:300]):
        with pytest.raises(UserError, match="clip: not a clip; remedy"):
            read_clip(damaged, "clip", "remedy")


@pytest.fixture(scope="module")
def with_clips(preprocessed, tmp_path_factory):
    """The steps' output of videos of 24 frames, with clips of ten."""
    root = tmp_path_factory.mktemp("clips") / "data"
    shutil.copytree(preprocessed, root)
    step = import_module("preprocessing.02_extract_clips")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("preprocessing.clips.SECONDS", 0.4)
        assert step.main(["--root-dir", str(root), "--workers", "0"]) == 0
    folds = import_module("preprocessing.05_make_folds")
    assert folds.main(["--root-dir", str(root)]) == 0
    return root


def test_the_steps_cut_pairs_with_the_originals_box(with_clips):
    names = {path.name for path in (with_clips / "clips" / REAL).glob("*.mp4")}
    assert names and names == {
        path.name for path in (with_clips / "clips" / FAKE).glob("*.mp4")
    }
    for name in names:
        frames, fps = read_clip(
            (with_clips / "clips" / REAL / name).read_bytes(), name, ""
        )
        crop = read_image(with_clips / "crops" / REAL / name.replace("mp4", "png"))
        assert fps == 25 and frames.shape == (10, *crop.shape)
        # the middle frame is the crop itself, nearly
        assert np.abs(frames[5].astype(int) - crop).mean() < 2
    with open(with_clips / "folds.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    kinds = {(row["video"], row["file"]): row["kind"] for row in rows}
    assert {kinds[REAL, name] for name in names} == {"clip"}
    assert {kind for (_, name), kind in kinds.items() if name.endswith("png")} == {
        "crop"
    }
    crops, clips = read_crop_table(with_clips), read_crop_table(with_clips, kind=CLIP)
    both = read_crop_table(with_clips, kind=None)
    assert len(crops) + len(clips) == len(both) == len(rows)
    assert all(clips.files(row).image.exists() for row in range(len(clips)))
    # landmarks are those of the middle frame's crop
    row = next(row for row in range(len(clips)) if clips.name("video", row) == FAKE)
    assert clips.files(row).npy.exists() and REAL in str(clips.files(row).npy)


def settings(**more):
    values = {"size": 48, "clip_frames": T} | more.pop("input", {})
    return Config(input=values, encoder="tf_efficientnet_lite0", **more)


def test_all_frames_of_a_clip_are_augmented_alike(with_clips):
    """A still clip stays still, through every augmentation and cutout."""
    clips = read_crop_table(with_clips, kind=CLIP)
    dataset = TrainingCrops(clips, settings(landmark_cutout=0.5, hull_cutout=0.5))
    still = np.full((25, 60, 50, 3), 100, np.uint8)
    still[:, 20:40, 10:30] = (200, 50, 20)
    looks = set()
    for seed in range(12):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("training.samples.Sample.clip", lambda self: (still, 25.0))
            item = dataset[0, seed]
        assert item["image"].shape == (T, 48, 48, 3)
        for frame in item["image"][1:]:
            np.testing.assert_array_equal(frame, item["image"][0])
        looks.add(item["image"].tobytes())
    assert len(looks) > 8
    validation = ValidationCrops(clips, InputSettings(size=48, clip_frames=T))[0]
    assert validation["image"].shape == (T, 48, 48, 3)


def test_a_blend_flickers_and_its_partner_does_not(with_clips):
    """Of a still clip: the fake's frames differ, those of the blended real are equal."""
    clips = read_crop_table(with_clips, kind=CLIP)
    real = int(np.flatnonzero(clips["label"] == 0)[0])
    rng = np.random.default_rng(0)
    still = np.repeat(rng.integers(0, 256, (1, 60, 50, 3), np.uint8), 25, axis=0)
    none = dict.fromkeys(("augmented", "landmark_cutout", "hull_cutout"), 0.0)
    dataset = TrainingCrops(clips, settings(**none, half_cutout=0.0, self_blended=1.0))
    plain = TrainingCrops(clips, settings(**none, half_cutout=0.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.samples.Sample.clip", lambda self: (still, 25.0))
        for seed in range(5):
            fake, held = dataset[real, seed, True], dataset[real, seed, False]
            assert fake["label"] > 0.9 and held["label"] < 0.1
            untouched = plain[real, seed]["image"]
            for number in range(1, T):
                assert (fake["image"][number] != fake["image"][0]).any()
                assert (held["image"][number] == held["image"][0]).all()
            # one draw of both: the first frame is the same
            assert (held["image"][0] == fake["image"][0]).all()
            assert (held["image"][0] != untouched[0]).any()


@pytest.mark.slow
def test_training_on_clips_resumes_bit_for_bit(with_clips, tmp_path):
    data = shutil.copytree(with_clips, tmp_path / "data")
    with open_csv(data / "folds.csv") as file:
        header, *rows = csv.reader(file)
    fold = header.index("fold")
    # the videos of part 0 in two folds, so that both have fakes
    rows += [[*row[:fold], "2", *row[fold + 1 :]] for row in rows if row[fold] == "0"]
    write_csv(data / "folds.csv", header, rows)

    def run(out, epochs):
        return train.main(
            [
                f"--config={ROOT / 'configs/unseen.yaml'}",
                f"--data-dir={data}",
                f"--output-dir={out / 'weights'}",
                f"--logdir={out / 'logs'}",
                "--seed=5",
                "--workers=0",
                "--device=cpu",
                "--set",
                *("input.size=48", f"input.clip_frames={T}", "batch_size=4"),
                *("batches_per_epoch=2", "max_iterations=4", "pretrained=none"),
                *("codec=0.5", "self_blended=0.5", f"epochs={epochs}"),
            ]
        )

    assert run(tmp_path / "whole", 2) == 0
    assert run(tmp_path / "parts", 1) == 0 and run(tmp_path / "parts", 2) == 0
    name = "5_DeepFakeClassifier_tf_efficientnet_lite0_0_1"
    one, two = (
        load_checkpoint(tmp_path / part / "weights" / name)
        for part in ("whole", "parts")
    )
    assert one["config"]["input"]["clip_frames"] == T
    for key, value in one["state_dict"].items():
        assert torch.equal(value, two["state_dict"][key])


def test_the_sampler_draws_clips_as_crops(with_clips):
    clips = read_crop_table(with_clips, kind=CLIP)
    items = list(BalancedSampler(clips["label"], 8, 1, batch_size=4))
    labels = clips["label"][[row for row, _ in items]]
    assert len(items) == 8 and 2 <= labels.sum() <= 6
