"""The disguises against slow versions and known answers; the table and the metadata-only judge on made answers."""

import csv
import json
import random

import cv2
import numpy as np
import pytest

from evaluation import disguise, robustness
from evaluation.score import read_labels
from preprocessing.video import open_video, probe, read_frames
from runtime.cli import UserError
from tests.corpus import film, portrait
from tests.media import FAKE, REAL, write_video

FRAME = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def mean(path):
    return np.mean(
        [frame.astype(float) for _, frame in read_frames(path, range(99))], axis=0
    )


@pytest.fixture(scope="module")
def disguised(dfdc, tmp_path_factory):
    """All disguises of the small data set's real video and its fake."""
    out = tmp_path_factory.mktemp("disguised") / "out"
    assert (
        disguise.main(
            [
                "--test-dir",
                str(dfdc / "dfdc_train_part_0"),
                "--labels",
                str(dfdc / "dfdc_train_part_0/metadata.json"),
                "--output-dir",
                str(out),
                "--workers",
                "0",
            ]
        )
        == 0
    )
    return out


def test_the_sheet_names_every_copy(disguised):
    rows = read(disguised / "labels.csv")
    assert {row["filename"] for row in rows} == {
        path.name for path in disguised.glob("*.mp4")
    }
    assert {(row["source"], row["disguise"]) for row in rows} == {
        (f"{name}.mp4", kind)
        for name in (REAL, FAKE)
        for kind in [disguise.NONE, *disguise.KINDS]
    }
    assert all(row["label"] == str(int(row["source"].startswith(FAKE))) for row in rows)
    assert {row["original"] for row in rows if row["label"] == "1"} == {f"{REAL}.mp4"}
    for row in rows:
        drawn = disguise.draw_strength(row["disguise"], row["source"], 0)
        assert row["disguise"] == disguise.NONE or json.loads(row["strength"]) == drawn
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
            disguise.draw_strength(kind, f"{number}.mp4", 3)[name]
            for number in range(200)
        ]
        assert (
            low <= min(drawn) < low + 0.1 * (high - low)
            and high - 0.1 * (high - low) < max(drawn) <= high
        ), kind
    for kind in disguise.KINDS:
        assert disguise.draw_strength(kind, "a.mp4", 1) == disguise.draw_strength(
            kind, "a.mp4", 1
        )
    for kind, name, low, high in (
        ("brightness", "level", 0.15, 0.35),
        ("rotation", "degrees", 5, 15),
    ):
        drawn = np.array(
            [
                disguise.KINDS[kind].draw(random.Random(number))[name]
                for number in range(200)
            ]
        )
        assert (
            (drawn < 0).any()
            and (drawn > 0).any()
            and low <= np.abs(drawn).min()
            and np.abs(drawn).max() <= high
        )


def test_frames_by_hand():
    assert (disguise.mirror(FRAME, {}, 0) == FRAME[:, ::-1]).all()
    grey = disguise.grey(FRAME, {}, 0).astype(float)
    np.testing.assert_allclose(
        grey, np.repeat((FRAME @ [0.299, 0.587, 0.114])[..., None], 3, 2), atol=1
    )
    np.testing.assert_array_equal(
        disguise.brightness(FRAME, {"level": 0.2}, 0), np.minimum(FRAME + 51.0, 255)
    )
    expected = np.clip((FRAME - 127.5) * 2 + 127.5, 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(disguise.contrast(FRAME, {"factor": 2}, 0), expected)
    noisy = disguise.noise(
        np.full((200, 200, 3), 128, np.uint8), {"deviation": 20, "seed": 1}, 0
    ).astype(float)
    assert noisy.std() == pytest.approx(20, rel=0.03) and noisy.mean() == pytest.approx(
        127.5, abs=0.5
    )
    assert disguise.resolution(FRAME, {"scale": 0.25}, 0).shape == (12, 16, 3)
    # half a turn, the end of what a rotation can do: each pixel on the other side of the middle
    turned = disguise.rotation(FRAME, {"degrees": 180}, 0)
    np.testing.assert_array_equal(turned[1:, 1:], FRAME[1:, 1:][::-1, ::-1])
    blurred = disguise.blur(FRAME, {"sigma": 1080 / 48}, 0)  # one pixel at 48 lines
    np.testing.assert_array_equal(blurred, cv2.GaussianBlur(FRAME, (0, 0), 1.001))


@pytest.mark.parametrize(
    "movement, places", [("still", 1), ("rolling", 17), ("jumping", 2)]
)
def test_what_is_pasted_moves_as_it_should(movement, places):
    """In twenty frames: nowhere, 19/60 of its way of 52 pixels, or once."""
    strength = {"size": 0.25, "movement": movement, "x": 0.1, "y": 0.4, "seed": 5}
    seen = set()
    for number in range(20):
        changed = np.argwhere(
            (disguise.picture(FRAME, strength, number) != FRAME).any(axis=2)
        )
        assert 0.02 < len(changed) / (48 * 64) < 0.1
        seen.add(tuple(changed.mean(axis=0).round(1)))
    assert len(seen) == places


def test_masks_cover_their_part_of_the_face():
    image = portrait(300, 300)
    (points,) = [each[4] for each in disguise._faces(image)]
    dog = (disguise.dog_mask(image, {}, 0) != image).any(axis=2)
    crown = (disguise.flower_crown(image, {}, 0) != image).any(axis=2)
    nose, eyes = points[2].astype(int), points[:2].mean(axis=0)
    assert dog[nose[1], nose[0]] and not crown[nose[1], nose[0]]
    assert (
        np.argwhere(crown)[:, 0].max() < eyes[1]
        and crown.sum() > 300
        and dog.sum() > 300
    )
    blank = np.zeros_like(image)
    assert (disguise.dog_mask(blank, {}, 0) == blank).all()  # no face, no mask


def test_time_and_sound(disguised):
    """24 frames at 25 a second."""
    slow, fewer = (
        probe(disguised / f"{REAL}__{kind}.mp4")
        for kind in ("slow_motion", "frame_rate")
    )
    strengths = {
        row["disguise"]: row["strength"]
        for row in read(disguised / "labels.csv")
        if row["source"] == f"{REAL}.mp4"
    }
    assert slow.frames == 24 and slow.fps == pytest.approx(
        25 * json.loads(strengths["slow_motion"])["speed"], rel=0.01
    )
    rate = json.loads(strengths["frame_rate"])["frames_a_second"]
    assert (
        fewer.fps == pytest.approx(rate, rel=0.01)
        and abs(fewer.frames - 24 * rate / 25) <= 1
    )
    for kind, sounds in (("none", 1), ("blur", 1), ("silent", 0), ("slow_motion", 0)):
        with open_video(disguised / f"{REAL}__{kind}.mp4") as container:
            assert len(container.streams.audio) == sounds, kind
    sizes = {
        kind: (disguised / f"{REAL}__{kind}.mp4").stat().st_size
        for kind in ("silent", "quality")
    }
    assert sizes["quality"] < 0.7 * sizes["silent"]


def test_a_disguise_that_changes_no_pixel_changes_none(disguised):
    """Without sound, and in slow motion: the undisguised frames but for one encoding."""
    for kind in ("silent", "slow_motion"):
        assert (
            np.abs(
                mean(disguised / f"{REAL}__{kind}.mp4")
                - mean(disguised / f"{REAL}__none.mp4")
            ).mean()
            < 2
        )
    assert (disguised / f"{REAL}__none.mp4").stat().st_size > 0


def test_some_disguises_for_each_video(dfdc, tmp_path, capsys):
    folder = dfdc / "dfdc_train_part_0"
    arguments = [
        "--test-dir",
        str(folder),
        "--output-dir",
        str(tmp_path),
        "--workers",
        "0",
        "--kinds",
        "grey",
        "mirror",
        "silent",
        "--per-video",
        "1",
    ]
    assert disguise.main(arguments) == 0
    rows = read(tmp_path / "labels.csv")
    assert len(rows) == 4 and sorted(
        row["source"] for row in rows if row["disguise"] != "none"
    ) == [
        f"{REAL}.mp4",
        f"{FAKE}.mp4",
    ]
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.mp4")}
    assert disguise.main(arguments) == 0 and before == {
        path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.mp4")
    }


def facts(rng, leak):
    """Containers of 60 families of a real video and its fake; with a leak, fakes are a little larger."""
    found = []
    for _ in range(60):
        size = rng.uniform(1e6, 2e6)
        found += [
            {"bytes": size, "codec": "h264"},
            {
                "bytes": size * (1.5 if leak else 1) + rng.normal(0, 1e5),
                "codec": "h264",
            },
        ]
    return found


def test_the_metadata_only_judge_sees_a_leak_and_nothing_else():
    truth, families = np.array([0, 1] * 60), [str(number // 2) for number in range(120)]
    for leak, low, high in ((True, 0.7, 1.0), (False, 0.3, 0.65)):
        guesses = robustness.metadata_predictions(
            facts(np.random.default_rng(1), leak), truth, families
        )
        pairs = [
            (fake > real) + 0.5 * (fake == real)
            for fake in guesses[1::2]
            for real in guesses[::2]
        ]
        assert low <= np.mean(pairs) <= high, leak
    with pytest.raises(
        UserError, match="real and fake videos of at least two families"
    ):
        robustness.metadata_predictions(
            facts(np.random.default_rng(1), True)[:2], truth[:2], ["a", "a"]
        )


def test_the_table_and_the_chart(tmp_path):
    """Eight small videos, made answers: perfect undisguised, reversed under grey."""
    probabilities, lines = {}, ["filename,label,original,source,disguise,strength"]
    for number in range(8):
        label, family = number % 2, f"{number // 2}.mp4"
        for kind in ("none", "grey"):
            name = f"{number}__{kind}.mp4"
            write_video(
                tmp_path / name, film(np.full((32, 32, 3), 20 * number, np.uint8), 3)
            )
            probabilities[name] = 0.9 if bool(label) == (kind == "none") else 0.1
            lines.append(f"{name},{label},{family},{number}.mp4,{kind},")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    found = robustness.score_kinds(tmp_path, probabilities, resamples=50)
    assert list(found) == ["none", "grey"]
    assert [found[kind]["networks"].auc for kind in found] == [1, 0] and found["grey"][
        "networks"
    ].accuracy == 0
    first, second = robustness.table(found)
    assert (
        first["AUC"] == "1.000 (1.000–1.000)"
        and second["disguise"] == "grey"
        and second["videos"] == 8
    )
    robustness.draw(found, tmp_path / "chart.png")
    assert cv2.imread(str(tmp_path / "chart.png")).std() > 10


def test_mistakes_say_what_to_do(dfdc, tmp_path):
    write_video(tmp_path / "a.mp4", film(FRAME, 2))
    with pytest.raises(
        UserError, match="neither labels.csv nor metadata.json; give --labels"
    ):
        disguise.main(
            ["--test-dir", str(tmp_path), "--output-dir", str(tmp_path / "out")]
        )
    labels = str(dfdc / "dfdc_train_part_0" / "metadata.json")
    with pytest.raises(UserError, match="names none of the videos"):
        disguise.main(
            [
                "--test-dir",
                str(tmp_path),
                "--output-dir",
                str(tmp_path / "out"),
                "--labels",
                labels,
            ]
        )
