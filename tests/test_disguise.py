"""Disguises against known results; the robustness table and the metadata baseline."""

import csv
import json
import random

import cv2
import numpy as np
import pytest

from evaluation import disguise, perturbations, robustness
from evaluation.tables import read_labels
from preprocessing.video import open_video, probe, read_frames
from runtime.cli import UserError
from tests.corpus import film, portrait
from tests.media import FAKE, REAL, write_video

FRAME = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def mean_frame(path):
    frames = [frame.astype(float) for _, frame in read_frames(path, range(99))]
    return np.mean(frames, axis=0)


@pytest.fixture(scope="module")
def disguised(dfdc, tmp_path_factory):
    """All disguises of a real video and its fake, from the small DFDC folder."""
    out = tmp_path_factory.mktemp("disguised") / "out"
    videos = dfdc / "dfdc_train_part_0"
    arguments = [
        f"--test-dir={videos}",
        f"--labels={videos / 'metadata.json'}",
        f"--output-dir={out}",
        "--workers=0",
    ]
    assert disguise.main(arguments) == 0
    return out


def test_the_sheet_names_every_copy(disguised):
    rows = read(disguised / "labels.csv")
    assert {row["filename"] for row in rows} == {
        path.name for path in disguised.glob("*.mp4")
    }
    assert {(row["source"], row["disguise"]) for row in rows} == {
        (f"{name}.mp4", kind)
        for name in (REAL, FAKE)
        for kind in [perturbations.NONE, *perturbations.PERTURBATIONS]
    }
    assert all(row["label"] == str(int(row["source"].startswith(FAKE))) for row in rows)
    assert {row["original"] for row in rows if row["label"] == "1"} == {f"{REAL}.mp4"}
    for row in rows:
        drawn = perturbations.draw_strength(row["disguise"], row["source"], 0)
        assert (
            row["disguise"] == perturbations.NONE
            or json.loads(row["strength"]) == drawn
        )
    assert read_labels(disguised / "labels.csv")[f"{FAKE}__blur.mp4"] == 1


def test_strengths_follow_from_the_seed_and_stay_in_their_bounds():
    bounds = {
        "blur": ("sigma", 2, 10),
        "frame_rate": ("frames_a_second", 15, 24),
        "noise": ("deviation", 10, 25),
        "quality": ("rate_factor", 29, 40),
        "resolution": ("scale", 0.25, 0.5),
        "slow_motion": ("speed", 0.25, 0.75),
        "picture": ("size", 0.15, 0.25),
        "dots": ("count", 50, 100),
    }
    for kind, (name, low, high) in bounds.items():
        drawn = [
            perturbations.draw_strength(kind, f"{number}.mp4", 3)[name]
            for number in range(200)
        ]
        margin = 0.1 * (high - low)
        assert low <= min(drawn) < low + margin, kind
        assert high - margin < max(drawn) <= high, kind
    for kind in perturbations.PERTURBATIONS:
        one, two = (perturbations.draw_strength(kind, "a.mp4", 1) for _ in range(2))
        assert one == two
    for kind, name, low, high in (
        ("brightness", "level", 0.15, 0.35),
        ("rotation", "degrees", 5, 15),
    ):
        draw = perturbations.PERTURBATIONS[kind].draw
        drawn = np.array([draw(random.Random(number))[name] for number in range(200)])
        assert (drawn < 0).any() and (drawn > 0).any()
        assert low <= np.abs(drawn).min() and np.abs(drawn).max() <= high


def test_frames_by_hand():
    assert (perturbations.mirror(FRAME, {}, 0) == FRAME[:, ::-1]).all()
    grey = perturbations.grey(FRAME, {}, 0).astype(float)
    np.testing.assert_allclose(
        grey, np.repeat((FRAME @ [0.299, 0.587, 0.114])[..., None], 3, 2), atol=1
    )
    np.testing.assert_array_equal(
        perturbations.brightness(FRAME, {"level": 0.2}, 0),
        np.minimum(FRAME + 51.0, 255),
    )
    expected = np.clip((FRAME - 127.5) * 2 + 127.5, 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(
        perturbations.contrast(FRAME, {"factor": 2}, 0), expected
    )
    flat = np.full((200, 200, 3), 128, np.uint8)
    noisy = perturbations.noise(flat, {"deviation": 20, "seed": 1}, 0).astype(float)
    assert noisy.std() == pytest.approx(20, rel=0.03)
    assert noisy.mean() == pytest.approx(127.5, abs=0.5)
    assert perturbations.resolution(FRAME, {"scale": 0.25}, 0).shape == (12, 16, 3)
    # a rotation by 180 degrees mirrors each pixel at the centre
    turned = perturbations.rotation(FRAME, {"degrees": 180}, 0)
    np.testing.assert_array_equal(turned[1:, 1:], FRAME[1:, 1:][::-1, ::-1])
    # one pixel at 48 lines
    blurred = perturbations.blur(FRAME, {"sigma": 1080 / 48}, 0)
    np.testing.assert_array_equal(blurred, cv2.GaussianBlur(FRAME, (0, 0), 1.001))


@pytest.mark.parametrize(
    "movement, places", [("still", 1), ("rolling", 17), ("jumping", 2)]
)
def test_what_is_pasted_moves_as_it_should(movement, places):
    """The positions of a pasted picture in twenty frames.

    Still: one. Rolling: 19/60 of a path of 52 pixels. Jumping: one jump.
    """
    strength = {"size": 0.25, "movement": movement, "x": 0.1, "y": 0.4, "seed": 5}
    positions = set()
    for number in range(20):
        pasted = perturbations.picture(FRAME, strength, number)
        changed = np.argwhere((pasted != FRAME).any(axis=2))
        assert 0.02 < len(changed) / (48 * 64) < 0.1
        positions.add(tuple(changed.mean(axis=0).round(1)))
    assert len(positions) == places


def test_masks_cover_their_part_of_the_face():
    image = portrait(300, 300)
    (points,) = [face.landmarks for face in perturbations._detect_faces(image)]
    dog = (perturbations.dog_mask(image, {}, 0) != image).any(axis=2)
    crown = (perturbations.flower_crown(image, {}, 0) != image).any(axis=2)
    nose, eyes = points[2].astype(int), points[:2].mean(axis=0)
    assert dog[nose[1], nose[0]] and not crown[nose[1], nose[0]]
    assert np.argwhere(crown)[:, 0].max() < eyes[1]
    assert crown.sum() > 300 and dog.sum() > 300
    blank = np.zeros_like(image)
    assert (perturbations.dog_mask(blank, {}, 0) == blank).all()  # no face, no mask


def test_time_and_sound(disguised):
    """The source has 24 frames at 25 fps."""
    slow, fewer = (
        probe(disguised / f"{REAL}__{kind}.mp4")
        for kind in ("slow_motion", "frame_rate")
    )
    strengths = {
        row["disguise"]: row["strength"]
        for row in read(disguised / "labels.csv")
        if row["source"] == f"{REAL}.mp4"
    }
    speed = json.loads(strengths["slow_motion"])["speed"]
    assert slow.frames == 24 and slow.fps == pytest.approx(25 * speed, rel=0.01)
    rate = json.loads(strengths["frame_rate"])["frames_a_second"]
    assert fewer.fps == pytest.approx(rate, rel=0.01)
    assert abs(fewer.frames - 24 * rate / 25) <= 1
    for kind, sounds in (("none", 1), ("blur", 1), ("silent", 0), ("slow_motion", 0)):
        with open_video(disguised / f"{REAL}__{kind}.mp4") as container:
            assert len(container.streams.audio) == sounds, kind
    sizes = {
        kind: (disguised / f"{REAL}__{kind}.mp4").stat().st_size
        for kind in ("silent", "quality")
    }
    assert sizes["quality"] < 0.7 * sizes["silent"]


def test_a_disguise_that_changes_no_pixel_changes_none(disguised):
    """The frames differ from the undisguised ones only by one more encoding."""
    undisguised = mean_frame(disguised / f"{REAL}__none.mp4")
    for kind in ("silent", "slow_motion"):
        frame = mean_frame(disguised / f"{REAL}__{kind}.mp4")
        assert np.abs(frame - undisguised).mean() < 2
    assert (disguised / f"{REAL}__none.mp4").stat().st_size > 0


def test_some_disguises_for_each_video(dfdc, tmp_path, capsys):
    folder = dfdc / "dfdc_train_part_0"
    arguments = [
        f"--test-dir={folder}",
        f"--output-dir={tmp_path}",
        "--workers=0",
        *("--kinds", "grey", "mirror", "silent"),
        "--per-video=1",
    ]
    assert disguise.main(arguments) == 0
    rows = read(tmp_path / "labels.csv")
    sources = sorted(row["source"] for row in rows if row["disguise"] != "none")
    assert len(rows) == 4 and sources == [f"{REAL}.mp4", f"{FAKE}.mp4"]

    def modified():
        return {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.mp4")}

    before = modified()
    assert disguise.main(arguments) == 0 and before == modified()


def container_facts(rng, leak):
    """Container metadata of 60 families of a real video and its fake.

    Args:
        leak: make the fakes 1.5 times as large.
    """
    facts = []
    for _ in range(60):
        size = rng.uniform(1e6, 2e6)
        fake = size * (1.5 if leak else 1) + rng.normal(0, 1e5)
        facts += [{"bytes": size, "codec": "h264"}, {"bytes": fake, "codec": "h264"}]
    return facts


def test_the_metadata_only_judge_sees_a_leak_and_nothing_else():
    truth, families = np.array([0, 1] * 60), [str(number // 2) for number in range(120)]
    for leak, low, high in ((True, 0.7, 1.0), (False, 0.3, 0.65)):
        facts = container_facts(np.random.default_rng(1), leak)
        predictions = robustness.metadata_predictions(facts, truth, families)
        pairs = [
            (fake > real) + 0.5 * (fake == real)
            for fake in predictions[1::2]
            for real in predictions[::2]
        ]
        assert low <= np.mean(pairs) <= high, leak
    with pytest.raises(
        UserError, match="real and fake videos of at least two families"
    ):
        robustness.metadata_predictions(facts[:2], truth[:2], ["a", "a"])


def test_the_table_and_the_chart(tmp_path):
    """Eight videos; synthetic predictions, perfect undisguised, inverted if grey."""
    probabilities, lines = {}, ["filename,label,original,source,disguise,strength"]
    for number in range(8):
        label, family = number % 2, f"{number // 2}.mp4"
        for kind in ("none", "grey"):
            name = f"{number}__{kind}.mp4"
            image = np.full((32, 32, 3), 20 * number, np.uint8)
            write_video(tmp_path / name, film(image, 3))
            probabilities[name] = 0.9 if bool(label) == (kind == "none") else 0.1
            lines.append(f"{name},{label},{family},{number}.mp4,{kind},")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    found = robustness.score_disguises(tmp_path, probabilities, resamples=50)
    assert list(found) == ["none", "grey"]
    assert [found[kind]["networks"].auc for kind in found] == [1, 0]
    assert found["grey"]["networks"].accuracy == 0
    first, second = robustness.results_table(found)
    assert first["AUC"] == "1.000 (1.000–1.000)"
    assert second["disguise"] == "grey" and second["videos"] == 8
    robustness.plot_results(found, tmp_path / "chart.png")
    assert cv2.imread(str(tmp_path / "chart.png")).std() > 10


def test_mistakes_say_what_to_do(dfdc, tmp_path):
    write_video(tmp_path / "a.mp4", film(FRAME, 2))
    arguments = [f"--test-dir={tmp_path}", f"--output-dir={tmp_path / 'out'}"]
    with pytest.raises(
        UserError, match="neither labels.csv nor metadata.json; give --labels"
    ):
        disguise.main(arguments)
    labels = dfdc / "dfdc_train_part_0" / "metadata.json"
    with pytest.raises(UserError, match="names none of the videos"):
        disguise.main([*arguments, f"--labels={labels}"])
