"""Fakes whose size, rate, start or length is not that of their original."""

import csv
import json

import cv2
import numpy as np
import pytest

from preprocessing import __main__ as all_steps
from preprocessing.crops import read_image
from runtime.files import open_csv
from tests.media import REAL, remux, write_video

FAKE = "fake"


@pytest.fixture
def pair(dfdc, tmp_path):
    """Write a real video of a moving face and a fake made of its frames.

    The background moves as a hand-held camera's does.
    """
    folder = tmp_path / "dfdc_train_part_0"
    folder.mkdir()
    entries = {
        "real.mp4": {"label": "REAL"},
        "fake.mp4": {"label": "FAKE", "original": "real.mp4"},
    }
    (folder / "metadata.json").write_text(json.dumps(entries))
    capture, frames = cv2.VideoCapture(str(dfdc / folder.name / f"{REAL}.mp4")), []
    while (got := capture.read())[0]:
        frames.append(cv2.cvtColor(got[1], cv2.COLOR_BGR2RGB))
    height, width = frames[0].shape[:2]
    texture = np.random.default_rng(0).integers(0, 256, (20, 60, 3), np.uint8)
    texture = cv2.resize(texture, (width * 3, height))
    shown = [
        cv2.hconcat([frame, np.ascontiguousarray(texture[:, 20 * n : 20 * n + width])])
        for n, frame in enumerate(frames)
    ]
    write_video(folder / "real.mp4", shown, crf="10", g="6", bf="0")
    return tmp_path, folder / "fake.mp4", shown


def run(root):
    """Exit status of all steps, and the skip reasons of the fake."""
    arguments = ["--root-dir", str(root), "--workers", "0", "--device", "cpu"]
    status = all_steps.main([*arguments, "--max-failures", "0.6"])
    if not (root / "failures.csv").exists():
        return status, []
    with open_csv(root / "failures.csv") as file:
        rows = list(csv.DictReader(file))
    return status, [row["reason"] for row in rows if row["file"].endswith("fake.mp4")]


def difference(root):
    """The mean difference of the fake's crops from the original's."""
    real, fake = root / "crops" / "real", root / "crops" / "fake"
    names = sorted(path.name for path in fake.glob("*.png"))
    assert names and names == sorted(path.name for path in real.glob("*.png"))
    pairs = [(read_image(real / name), read_image(fake / name)) for name in names]
    return np.mean([np.abs(one.astype(float) - two).mean() for one, two in pairs])


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.5, 0.75, 1.5])
def test_another_size_is_scaled(pair, scale):
    root, path, frames = pair
    size = [round(side * scale / 2) * 2 for side in frames[0].shape[1::-1]]
    write_video(path, [cv2.resize(frame, size) for frame in frames], crf="10")
    status, reasons = run(root)
    height, width = frames[0].shape[:2]
    assert reasons == [
        f"{size[0]}x{size[1]}, scaled to the {width}x{height} of its original real"
    ]
    assert status == 0 and difference(root) < 10
    assert len(list((root / "diffs" / "fake").glob("*.png"))) == 3


@pytest.mark.slow
@pytest.mark.parametrize("border", [(22, 0), (0, 16), (30, 20)])
def test_the_middle_of_a_frame_keeps_its_place(pair, border):
    """As FaceForensics++'s Face2Face: 832 of 854 columns."""
    root, path, frames = pair
    height, width = frames[0].shape[:2]
    x, y = (side // 2 for side in border)
    inner = [
        frame[y : height - border[1] + y, x : width - border[0] + x] for frame in frames
    ]
    write_video(path, inner, crf="10")
    status, reasons = run(root)
    size = f"{width - border[0]}x{height - border[1]}"
    assert reasons == [
        f"{size}, the middle of the {width}x{height} of its original real"
    ]
    assert status == 0 and difference(root) < 6


@pytest.mark.parametrize(
    "change, words",
    [
        ("rate", "12 frames per second, its original real has 25"),
        ("shape", "another shape than its original real"),
        ("start", "starts at 1.00 s, its original real at 0.00 s"),
        ("front cut", "they do not show the same moments"),
        ("other film", "they do not show the same moments"),
    ],
)
def test_what_does_not_fit_is_skipped(pair, change, words):
    root, path, frames = pair
    if change == "rate":
        write_video(path, frames[::2], rate=12)
    elif change == "shape":
        write_video(path, [frame[:, : frame.shape[1] // 2] for frame in frames])
    elif change == "start":
        write_video(path, frames, times=range(25, 25 + len(frames)))
    elif change == "front cut":  # without re-encoding: an edit list hides frames
        remux(root / "dfdc_train_part_0" / "real.mp4", path, shift=12)
    else:
        write_video(path, frames[::-1] + frames)
    status, reasons = run(root)
    assert status == 0 and len(reasons) == 1 and words in reasons[0]
    assert reasons[0].endswith("its boxes do not fit")
    assert not (root / "crops" / "fake").exists()


@pytest.mark.parametrize("left, note", [(22, False), (11, True)])
def test_frames_that_are_missing_at_the_end_are_no_fault(pair, left, note):
    root, path, frames = pair
    write_video(path, frames[:left], crf="10")
    _, reasons = run(root)
    assert len(list((root / "crops" / "fake").glob("*.png"))) == -(-left // 10)
    said = f"{left} frames, its original real has 24; they show the same moments"
    assert any(said in reason for reason in reasons) == note


@pytest.mark.parametrize("change", ["middle enlarged", "padded"])
def test_another_size_that_is_more_than_scaled_is_skipped(pair, change):
    root, path, frames = pair
    height, width = frames[0].shape[:2]
    if change == "padded":
        changed = [
            cv2.copyMakeBorder(each, 60, 60, 80, 80, cv2.BORDER_CONSTANT)
            for each in frames
        ]
        size = (width + 160) // 2 * 2, round((width + 160) * height / width / 2) * 2
        changed = [cv2.resize(each, size) for each in changed]
    else:
        inner = np.s_[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4]
        changed = [np.ascontiguousarray(each[inner]) for each in frames]
        changed = [each[: height // 4 * 2, : width // 4 * 2] for each in changed]
    write_video(path, changed, crf="10")
    status, reasons = run(root)
    assert status == 0 and len(reasons) == 1
    assert "its boxes do not fit" in reasons[0]
    assert not (root / "crops" / "fake").exists()
