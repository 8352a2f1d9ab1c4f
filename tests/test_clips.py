"""Clips: which frames, the files, the numbered steps, and training on them."""

import csv
import shutil
from importlib import import_module
from itertools import pairwise

import av
import numpy as np
import pytest
import torch

from evaluation.tables import frame_scores, read_faces, scores_by_model
from inference import predict
from inference.ensemble import Ensemble
from inference.extraction import plan_clips
from inference.members import plain_members
from preprocessing.clips import (
    choose_clips,
    choose_frames,
    clip_numbers,
    read_clip,
    write_clip,
)
from preprocessing.crop_table import CLIP, read_crop_table
from preprocessing.crops import read_image
from preprocessing.video import VideoInfo, probe, read_frames
from runtime.cli import UserError
from runtime.files import open_csv, write_csv
from tests.media import FAKE, REAL, random_frames, write_video
from tests.test_temporal import T
from tests.test_train import ROOT
from training import train
from training.augment import plain_transform
from training.checkpoint import (
    load_checkpoint,
    load_classifier,
    save_checkpoint,
    start_from,
)
from training.config import Config, InputSettings
from training.dataset import BalancedSampler, TrainingCrops, ValidationCrops
from training.model import DeepFakeClassifier, Normalize
from training.samples import Sample

STILL, MOVED = [10.0, 10.0, 30.0, 40.0], [80.0, 10.0, 100.0, 40.0]


def test_clips_by_hand():
    """60 frames, 20 a clip: middles 10 to 50; the face that is not there at 30."""
    boxes = {number: [STILL] for number in range(0, 60, 10)}
    twenty = range(-10, 10)
    clips = choose_clips(boxes, 60, twenty, 4)
    assert [(clip.middle, clip.numbers) for clip in clips] == [
        *((middle, range(middle - 10, middle + 10)) for middle in (10, 20, 30, 50))
    ]
    assert clips[0].name == "10_0.mp4"
    assert all(clip.box == STILL for clip in clips)
    # searched frames of the clip around 10 are 0 and 10; around 20, 10 and 20
    boxes[30] = None
    assert [clip.middle for clip in choose_clips(boxes, 60, twenty)] == [10, 20, 50]
    # the same frame numbers, another face from 30 on
    boxes |= {number: [MOVED] for number in (30, 40, 50)}
    assert [clip.middle for clip in choose_clips(boxes, 60, twenty)] == [10, 20, 40, 50]
    boxes = {number: [STILL, MOVED] for number in range(0, 60, 10)}
    boxes[10] = [MOVED]
    clips = choose_clips(boxes, 60, twenty, 9)
    assert [(clip.middle, clip.actor) for clip in clips] == [
        *[(10, 0), (20, 1), (30, 0), (30, 1), (40, 0), (40, 1), (50, 0), (50, 1)]
    ]
    assert choose_clips(boxes, 15, twenty) == [] == choose_clips({}, 60, twenty)
    # 25 frames a second; 60, of which every second is taken; 120, every fourth
    assert clip_numbers(25) == clip_numbers(0) == range(-12, 13)
    assert clip_numbers(60) == range(-30, 30, 2) and clip_numbers(1) == range(-1, 1)
    assert clip_numbers(120) == range(-60, 60, 4) and len(clip_numbers(29.97)) == 30
    (clip, *_) = choose_clips({0: [STILL], 40: [STILL]}, 80, clip_numbers(60), 1)
    assert clip.numbers == range(10, 70, 2) and 40 in clip.numbers


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
    frames[20:] = frames[20:, ::-1]  # a cut
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


def test_clips_change_nothing_for_the_crops(with_clips, preprocessed):
    """Rows of crops are those without clips, in their order; clips come after them."""
    with (
        open_csv(preprocessed / "folds.csv") as before,
        open_csv(with_clips / "folds.csv") as after,
    ):
        crops = list(csv.reader(before))
        rows = list(csv.reader(after))
    assert [row[:-1] for row in rows[: len(crops)]] == crops
    assert {row[-1] for row in rows[1 : len(crops)]} == {"crop"}
    assert {row[-1] for row in rows[len(crops) :]} == {"clip"}


def test_shards_hold_clips_too(with_clips, tmp_path):
    data = shutil.copytree(with_clips, tmp_path / "data")
    pack = import_module("preprocessing.06_pack_shards")
    assert pack.main(["--root-dir", str(data), "--workers", "0"]) == 0
    packed, files = (read_crop_table(data, form, CLIP) for form in ("wds", "files"))
    places = {
        (files.name("video", row), files.name("file", row)): row
        for row in range(len(files))
    }
    assert len(packed) == len(files) > 0
    for row in range(len(packed)):
        other = places[packed.name("video", row), packed.name("file", row)]
        (one, fps), (two, _) = Sample(packed, row).clip(), Sample(files, other).clip()
        np.testing.assert_array_equal(one, two)
        assert fps == 25
    assert len(read_crop_table(data, "wds")) == len(read_crop_table(data))


def test_a_fake_that_ends_before_a_clip_has_none(with_clips, tmp_path, monkeypatch):
    """The original's clip takes frames 5 to 14; the fake has 12."""
    data = shutil.copytree(with_clips, tmp_path / "data")
    shutil.rmtree(data / "clips")
    path = data / "dfdc_train_part_0" / f"{FAKE}.mp4"
    frames = [frame for _, frame in read_frames(path, range(12))]
    write_video(path, frames, crf="10")
    monkeypatch.setattr("preprocessing.clips.SECONDS", 0.4)
    step = import_module("preprocessing.02_extract_clips")
    arguments = ["--root-dir", str(data), "--workers", "0", "--max-failures", "1"]
    assert step.main(arguments) == 0
    assert list((data / "clips" / REAL).glob("*.mp4"))
    assert not list((data / "clips" / FAKE).glob("*.mp4"))
    assert (
        "show a face in all that were searched" in (data / "failures.csv").read_text()
    )


def test_a_clip_whose_face_does_not_stay_is_left_out(
    dfdc, clip_checkpoint, monkeypatch
):
    """Frame 4, which the first of two clips skips, shows no face."""
    from inference import extraction

    members = plain_members([clip_checkpoint / "one", clip_checkpoint / "clip"])
    wanted = Ensemble(members, "cpu").wanted
    (path,) = (dfdc / "dfdc_train_part_3").glob("*.mp4")
    settings = wanted.clips.settings
    info = probe(path)
    plan = plan_clips(range(info.frames), info, settings)
    first, second = plan
    assert plan[first][0] < 4 < plan[first][-1] < plan[second][0]
    assert 4 not in plan[first]

    def without_face(path, numbers, info):
        for number, frame in read_frames(path, numbers, info):
            yield number, 0 * frame if number == 4 else frame

    faces = extraction.extract_faces(path, wanted, "cpu")
    assert {*faces.clip_frames} == {first, second}
    monkeypatch.setattr(extraction, "read_frames", without_face)
    faces = extraction.extract_faces(path, wanted, "cpu")
    assert {*faces.clip_frames} == {second}
    assert len(faces.clips[settings.size]) == len(faces.clip_frames)


def test_a_clip_of_a_frame_that_its_box_is_not_in_is_left_out(
    dfdc, clip_checkpoint, monkeypatch
):
    """Where a frame that is not searched is smaller, its crop is empty."""
    from inference import extraction

    wanted = Ensemble(plain_members([clip_checkpoint / "clip"]), "cpu").wanted
    settings = wanted.clips.settings.model_copy(update={"frames_per_video": 3})
    clips = wanted.clips._replace(settings=settings)
    wanted = wanted._replace(plans=[extraction.FramePlan(3, 0)], clips=clips)
    (path,) = (dfdc / "dfdc_train_part_3").glob("*.mp4")
    (chosen,) = {*extraction.extract_faces(path, wanted, "cpu").clip_frames}

    def shrinking(path, numbers, info):
        for number, frame in read_frames(path, numbers, info):
            yield number, frame[:10, :10] if 0 < number - chosen < 5 else frame

    monkeypatch.setattr(extraction, "read_frames", shrinking)
    faces = extraction.extract_faces(path, wanted, "cpu")
    assert chosen in faces.frames and not faces.clip_frames
    assert "no clip: no face stays" in faces.reason


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


def test_a_frame_that_is_shown_twice_has_one_disturbance(with_clips, monkeypatch):
    """Else a network would know a slow real video by its equal frames."""
    clips = read_crop_table(with_clips, kind=CLIP)
    real = int(np.flatnonzero(clips["label"] == 0)[0])
    none = dict.fromkeys(("augmented", "landmark_cutout", "hull_cutout"), 0.0)
    dataset = TrainingCrops(clips, settings(**none, half_cutout=0.0, self_blended=1.0))
    numbers = [3, 3, *range(4, 2 + T)]
    monkeypatch.setattr(dataset, "_choose_frames", lambda *_: numbers)
    for is_blend in (True, False):
        frames = dataset[real, 1, is_blend]["image"]
        same = [(one == two).all() for one, two in pairwise(frames)]
        assert same == [True] + [False] * (T - 2)


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


@pytest.fixture(scope="module")
def clip_checkpoint(checkpoints, tmp_path_factory):
    """Checkpoint `one`, and the clip network that begins with it, in a folder."""
    folder = tmp_path_factory.mktemp("networks")
    shutil.copy(checkpoints / "one", folder)
    entries = load_checkpoint(folder / "one")
    frame, settings = load_classifier(folder / "one")
    config = Config(**entries["config"])
    clips = {"clip_frames": T, "clip_spacing": 0.1, "clips_per_video": 2}
    config = config.model_copy(update={"input": settings.model_copy(update=clips)})
    model = DeepFakeClassifier(config.encoder, clip_frames=T)
    start_from(model, frame.state_dict(), folder / "one")
    save_checkpoint(
        folder / "clip", state_dict=model.state_dict(), config=config.model_dump()
    )
    return folder


def run(videos, folder, models, out, *options):
    return predict.main(
        [
            *(f"--test-dir={videos}", f"--output={out / 'submission.csv'}"),
            *(f"--weights-dir={folder}", "--workers=0", "--device=cpu"),
            *(f"--faces-csv={out / 'faces.csv'}", "--rule=mean", *options),
            *("--models", *models),
        ]
    )


def test_planned_clips_by_hand():
    info = VideoInfo(100, 30.0, 0.0, 64, 48, (), 0.0, False)
    settings = InputSettings(clip_frames=3, clip_spacing=0.2, clips_per_video=2)
    # six frames to both sides; 0 and 99 have no room
    plan = plan_clips([0, 33, 66, 99], info, settings)
    assert plan == {33: [27, 33, 39], 66: [60, 66, 72]}
    short = VideoInfo(5, 30.0, 0.0, 64, 48, (), 0.0, False)
    assert plan_clips([0, 2, 4], short, settings) == {2: [0, 2, 4]}
    one = VideoInfo(1, 30.0, 0.0, 64, 48, (), 0.0, False)
    assert plan_clips([0], one, settings) == {}


def test_a_video_of_one_frame_has_no_clip(dfdc, clip_checkpoint, tmp_path):
    (source,) = (dfdc / "dfdc_train_part_3").glob("*.mp4")
    folder = tmp_path / "videos"
    folder.mkdir()
    frames = [frame for _, frame in read_frames(source, [0])]
    write_video(folder / "a.mp4", frames, crf="10")
    report = f"--report={tmp_path / 'report'}"
    assert run(folder, clip_checkpoint, ["one", "clip"], tmp_path, report) == 0
    with open(tmp_path / "submission.report.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert "no clip: all frames of one would be the same" in row["reason"]
    # the network that gave no answer is not shown as one that said 0.5
    (page,) = (tmp_path / "report" / "videos").glob("*.html")
    assert '<td class="number">–</td><td class="number">none</td>' in page.read_text()


def test_prediction_mixes_networks_of_frames_and_of_clips(
    dfdc, clip_checkpoint, tmp_path
):
    """A new clip network's score is the sigmoid of the mean of the frame network's
    logits of the same frames, cut with the middle one's box; it counts as a face's.
    """
    videos = dfdc / "dfdc_train_part_3"
    assert run(videos, clip_checkpoint, ["one", "clip"], tmp_path) == 0
    with open(tmp_path / "faces.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    clips = [row for row in rows if row["model"] == "clip"]
    faces = [row for row in rows if row["model"] == "one"]
    assert len(rows) == len(clips) + len(faces) and len(clips) >= 2
    assert all(row["clip_seconds"] == "" for row in faces)
    model, settings = load_classifier(clip_checkpoint / "one")
    (video,) = videos.glob("*.mp4")
    frames = dict(read_frames(video, range(24)))
    normalize = Normalize(settings.mean, settings.std)
    for row in clips:
        middle = int(row["frame"])
        # 0.1 s at 25 frames a second: 2.5 frames, the last one shown until then
        numbers = [middle - 3, middle, middle + 2]
        assert float(row["clip_seconds"]) == pytest.approx(5 / 25)
        x1, y1, x2, y2 = (int(row[name]) for name in ("x1", "y1", "x2", "y2"))
        (same,) = [
            face
            for face in faces
            if (face["frame"], face["x1"]) == (row["frame"], row["x1"])
        ]
        assert (int(same["y2"]), int(same["x2"])) == (y2, x2)
        pad_x, pad_y = (x2 - x1) // 3, (y2 - y1) // 3
        crops = [
            frames[number][
                max(y1 - pad_y, 0) : y2 + pad_y, max(x1 - pad_x, 0) : x2 + pad_x
            ]
            for number in numbers
        ]
        images = np.stack([plain_transform(crop, settings.size) for crop in crops])
        with torch.inference_mode():
            logits = model(normalize(torch.from_numpy(images)))
        expected = torch.sigmoid(logits.mean()).item()
        assert float(row["probability"]) == pytest.approx(expected, abs=1e-5)
    with open(tmp_path / "submission.csv", newline="") as file:
        (label,) = [float(row["label"]) for row in csv.DictReader(file)]
    by_network = [
        np.mean([float(row["probability"]) for row in each]) for each in (faces, clips)
    ]
    assert label == pytest.approx(np.mean(by_network), abs=1e-6)
    # scores of frames and videos can be read again
    read = read_faces(tmp_path / "faces.csv")[video.name]
    assert {len(each) for each in scores_by_model(read).values()} == {
        len(faces),
        len(clips),
    }
    assert len(frame_scores(read)) == len({row["frame"] for row in faces})


def test_the_frame_networks_scores_are_the_same_beside_a_clip_network(
    dfdc, clip_checkpoint, tmp_path
):
    videos = dfdc / "dfdc_train_part_3"
    for models in (["one"], ["one", "clip"]):
        out = tmp_path / "_".join(models)
        out.mkdir()
        report = f"--report={out / 'report'}"
        assert run(videos, clip_checkpoint, models, out, report) == 0
    alone = (tmp_path / "one" / "faces.csv").read_text().splitlines()
    beside = (tmp_path / "one_clip" / "faces.csv").read_text().splitlines()
    assert [f"{line}," for line in alone[1:]] == [
        line for line in beside[1:] if ",one," in line
    ]
    (page,) = (tmp_path / "one_clip" / "report" / "videos").glob("*.html")
    assert (
        page.read_text().count("<rect x=") >= 3 and "clip (clips)" in page.read_text()
    )
    (page,) = (tmp_path / "one" / "report" / "videos").glob("*.html")
    assert "clip" not in page.read_text().split("</style>")[1]


def test_an_ensemble_of_clip_networks_alone(dfdc, clip_checkpoint, tmp_path):
    videos = dfdc / "dfdc_train_part_3"
    report = f"--report={tmp_path / 'report'}"
    assert run(videos, clip_checkpoint, ["clip"], tmp_path, report) == 0
    with open(tmp_path / "submission.csv", newline="") as file:
        (label,) = [float(row["label"]) for row in csv.DictReader(file)]
    assert 0 < label < 1 and label != 0.5
    (page,) = (tmp_path / "report" / "videos").glob("*.html")
    assert "Clips with the highest scores" in page.read_text()
    assert "Grad-CAM" not in page.read_text()
    assert run(videos, clip_checkpoint, ["clip"], tmp_path, report, "--grad-cam=2") == 0
    text = page.read_text()
    assert text.count('alt="Grad-CAM heatmap of clip, clip at') == 2


def test_grad_cam_shows_the_frame_with_the_highest_score(clip_checkpoint):
    """Against the frame network, which a new clip network is frame by frame."""
    members = plain_members([clip_checkpoint / "clip", clip_checkpoint / "one"])
    ensemble = Ensemble(members, "cpu")
    frames = Ensemble(members[1:], "cpu")
    rng = np.random.default_rng(0)
    clips = rng.integers(0, 256, (3, T, 64, 64, 3), np.uint8)
    view = ensemble.clip_view(clips)
    model, settings = load_classifier(clip_checkpoint / "one")
    normalize = Normalize(settings.mean, settings.std)
    with torch.inference_mode():
        logits = model(normalize(torch.from_numpy(clips))).reshape(3, T)
    for number, best in enumerate(logits.argmax(1).tolist()):
        np.testing.assert_array_equal(view.images[number], clips[number, best])
        # sums near 0 differ with the batch
        expected = frames.grad_cam(clips[number, best][None])[0]
        np.testing.assert_allclose(view.heatmaps[number], expected, atol=0.02)
