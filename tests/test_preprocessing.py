"""Steps 1 to 5 on a small DFDC folder, each against a slow reference version."""

import csv
import importlib
import json
import shutil
from unittest.mock import Mock

import cv2
import numpy as np
import pytest

from preprocessing import __main__ as all_steps
from preprocessing.dataset import Video
from preprocessing.datasets.dfdc import fold_of_part
from preprocessing.faces import (
    LANDMARK_THRESHOLDS,
    TRAINING_THRESHOLDS,
    FaceDetector,
    half_size,
)
from preprocessing.video import probe
from tests.media import FAKE, LONE, REAL
from tests.test_crops import slow_crop
from tests.test_video import opencv_frames

STEPS = {
    number: importlib.import_module(f"preprocessing.{name}")
    for number, name in enumerate(all_steps.STEPS, start=1)
}


def run(number, root, *options):
    return STEPS[number].main(["--root-dir", str(root), "--workers", "0", *options])


def read_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def tree(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def test_boxes_and_crops_equal_the_slow_way(preprocessed):
    """OpenCV decodes, the detector gets all frames in one batch, slow_crop crops."""
    for video, part, source in ((REAL, 0, REAL), (FAKE, 0, REAL), (LONE, 3, LONE)):
        boxes = json.loads((preprocessed / "boxes" / f"{source}.json").read_text())
        videos = preprocessed / f"dfdc_train_part_{part}"
        original = opencv_frames(videos / f"{source}.mp4")
        found = FaceDetector(TRAINING_THRESHOLDS)(
            [half_size(frame) for frame in original[::10]], batched_nms=True
        )
        assert list(boxes) == ["0", "10", "20"]
        frames = opencv_frames(videos / f"{video}.mp4")
        expected = {}
        for number, faces in zip((0, 10, 20), found):
            np.testing.assert_allclose(boxes[str(number)], faces.boxes, atol=0.01)
            expected |= {
                f"{number}_{actor}.png": slow_crop(frames[number], box)
                for actor, box in enumerate(faces.boxes)
            }
        folder = preprocessed / "crops" / video
        assert tree(folder) == sorted(expected)
        assert len(expected) == (6 if video == LONE else 3)  # LONE shows two people
        for name, crop in expected.items():
            image = cv2.imread(str(folder / name))[..., ::-1]
            np.testing.assert_array_equal(image, crop)


def test_step_1_crops_what_it_has_decoded_unless_it_is_too_large(
    preprocessed, tmp_path, monkeypatch
):
    """Of REAL, and of FAKE without its original, which is searched itself."""
    folder = preprocessed / "dfdc_train_part_0"
    videos = [
        Video(folder / f"{REAL}.mp4", REAL, False, REAL),
        Video(folder / f"{FAKE}.mp4", FAKE, True, FAKE),
    ]
    roots = [tmp_path / name for name in ("once", "announced", "decoded")]
    for root, fits in zip(roots, ([True] * 4, [False], [True, True, False, True])):
        for video in videos:
            # of the announced size, then of each frame
            monkeypatch.setattr(STEPS[1], "_fits", Mock(side_effect=fits))
            STEPS[1].detect_faces(video, root, "cpu", with_crops=True)
            is_cropped = (root / "crops" / video.name).exists()
            assert is_cropped == all(fits)
            if not is_cropped:
                STEPS[2].extract_crops(video, root)
    contents = [
        {path.relative_to(root): path.read_bytes() for path in root.glob("*/*.*")}
        | {path.relative_to(root): path.read_bytes() for path in root.glob("*/*/*")}
        for root in roots
    ]
    assert contents[0] == contents[1] == contents[2] and len(contents[0]) == 2 + 6


def test_landmarks_are_those_of_the_largest_face_rounded(preprocessed):
    files = [
        f"{video}/{frame}_{actor}.npy"
        for video, actors in ((REAL, 1), (LONE, 2))
        for frame in (0, 10, 20)
        for actor in range(actors)
    ]
    assert tree(preprocessed / "landmarks") == sorted([REAL, LONE, *files])
    detector = FaceDetector(LANDMARK_THRESHOLDS)
    for path in (preprocessed / "landmarks").glob("*/*.npy"):
        landmarks = np.load(path)
        assert landmarks.shape == (5, 2) and landmarks.dtype == np.int16
        crop = preprocessed / "crops" / path.parent.name / f"{path.stem}.png"
        image = np.ascontiguousarray(cv2.imread(str(crop))[..., ::-1])
        expected = np.round(detector([image])[0].landmarks[0])
        np.testing.assert_array_equal(landmarks, expected)


def slow_ssim(a, b, y, x):
    """SSIM of one channel in the 7 x 7 window around (y, x).

    Sample variances, the constants of Wang et al. for 8 bits.
    """
    window = np.s_[y - 3 : y + 4, x - 3 : x + 4]
    p, q = (image[window].astype(float).ravel() for image in (a, b))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    (var_p, cov), (_, var_q) = np.cov(p, q)
    numerator = (2 * p.mean() * q.mean() + c1) * (2 * cov + c2)
    return numerator / ((p.mean() ** 2 + q.mean() ** 2 + c1) * (var_p + var_q + c2))


def test_diffs_equal_ssim_worked_out_at_single_pixels(preprocessed):
    rng = np.random.default_rng(0)
    for name in ("0_0", "10_0", "20_0"):
        real, fake = (
            cv2.imread(str(preprocessed / "crops" / video / f"{name}.png"))
            for video in (REAL, FAKE)
        )
        path = preprocessed / "diffs" / FAKE / f"{name}_diff.png"
        diff = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        height, width = real.shape[:2]
        assert diff.shape == (height, width) and diff.max() > 100
        rows, columns = rng.integers(3, height - 3, 60), rng.integers(3, width - 3, 60)
        for y, x in zip(rows, columns):
            blue, green, red = levels = [
                int((1 - slow_ssim(real[..., c], fake[..., c], y, x)) * 255)
                for c in range(3)
            ]
            if min(levels) >= 0 and max(levels) <= 255:
                grey = 0.114 * blue + 0.587 * green + 0.299 * red
                assert abs(int(diff[y, x]) - grey) <= 1.5
    same = STEPS[4].difference(real, real)
    assert same.max() == 0


def test_folds(preprocessed):
    rows = read_rows(preprocessed / "folds.csv")
    assert list(rows[0]) == ["video", "file", "label", "original", "frame", "fold"]
    expected = [(REAL, "0", REAL, "0"), (FAKE, "1", REAL, "0"), (LONE, "0", LONE, "1")]
    columns = ("video", "label", "original", "fold")
    videos = {tuple(row[column] for column in columns) for row in rows}
    assert videos == set(expected)
    crops = [name for name in tree(preprocessed / "crops") if "/" in name]
    assert sorted(f"{row['video']}/{row['file']}" for row in rows) == crops
    assert all(row["file"].startswith(f"{row['frame']}_") for row in rows)


def test_folds_are_the_winners():
    """50 parts in 16 folds of three; the last fold has five."""
    folds = [fold_of_part(part) for part in range(50)]
    assert folds == [fold for fold in range(15) for _ in range(3)] + [15] * 5


def test_a_second_run_changes_nothing(preprocessed, tmp_path, capsys):
    root = shutil.copytree(preprocessed, tmp_path / "data")
    before = {
        path: path.stat().st_mtime_ns
        for path in root.rglob("*.[pjn]*")
        if path.name != "folds.csv"
    }
    folds = (root / "folds.csv").read_text()
    for number in STEPS:
        assert run(number, root) == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert (root / "folds.csv").read_text() == folds
    assert "0 videos done, 2 were there, 0 failed" in capsys.readouterr().out


def test_bad_videos_are_listed_and_the_others_done(preprocessed, tmp_path, capsys):
    root = shutil.copytree(preprocessed, tmp_path / "data")
    for folder in ("boxes", "crops"):
        shutil.rmtree(root / folder)
    (root / "dfdc_train_part_3" / f"{LONE}.mp4").write_text("no video")
    assert run(1, root) == 1
    assert run(2, root) == 1
    skipped = {
        (row["step"], row["file"].split("/")[-1]): row["reason"]
        for row in read_rows(root / "failures.csv")
    }
    assert "not a readable video" in skipped["1 detect faces", f"{LONE}.mp4"]
    assert "see why step 1 failed" in skipped["2 extract crops", f"{LONE}.mp4"]
    assert len(tree(root / "crops" / REAL)) == len(tree(root / "crops" / FAKE)) == 3
    assert f"{LONE}.mp4" in capsys.readouterr().err


def test_a_box_outside_the_frame_makes_no_crop(preprocessed, tmp_path):
    root = shutil.copytree(preprocessed, tmp_path / "data")
    shutil.rmtree(root / "crops")
    path = root / "boxes" / f"{REAL}.json"
    boxes = json.loads(path.read_text())
    boxes["10"].append([900.0, 900.0, 950.0, 950.0])
    # the winner's files hold the boxes of every frame; only every 10th frame is cropped
    boxes["5"] = boxes["10"]
    path.write_text(json.dumps(boxes))
    assert run(2, root) == 0
    crops = tree(root / "crops" / REAL)
    assert crops == [".left_out", "0_0.png", "10_0.png", "20_0.png"]
    reasons = [row["reason"] for row in read_rows(root / "failures.csv")]
    assert reasons == ["frame 10, face 1: outside the 320x240 frame, no crop"] * 2


def test_crops_too_small_or_unlike_make_no_diff(preprocessed, tmp_path):
    root = shutil.copytree(preprocessed, tmp_path / "data")
    shutil.rmtree(root / "diffs")
    cv2.imwrite(str(root / "crops" / FAKE / "10_0.png"), np.zeros((5, 5, 3), np.uint8))
    (root / "crops" / REAL / "20_0.png").unlink()
    assert run(4, root) == 0
    assert tree(root / "diffs" / FAKE) == [".left_out", "0_0_diff.png"]
    assert len(read_rows(root / "failures.csv")) == 2


def test_compressed_videos_keep_their_frames(dfdc, tmp_path):
    from preprocessing import compress_videos

    out = tmp_path / "compressed"
    arguments = [f"--root-dir={dfdc}", f"--output-dir={out}", "--workers=0"]
    assert compress_videos.main(arguments) == 0
    sources = sorted(dfdc.glob("dfdc_train_part_*/*"))
    assert tree(out) == [name for name in tree(dfdc) if not name.startswith("failures")]
    for source in sources:
        target = out / source.relative_to(dfdc)
        if source.suffix == ".json":
            assert target.read_text() == source.read_text()
            continue
        assert probe(target).frames == probe(source).frames == 24
        frames = zip(opencv_frames(source), opencv_frames(target))
        for number, (before, after) in enumerate(frames):
            error = np.mean((before.astype(float) - after) ** 2)
            assert 0 < error < 60, f"frame {number}"  # a PSNR above 30 dB


@pytest.mark.parametrize("number", STEPS)
def test_help_names_the_options(number, capsys):
    with pytest.raises(SystemExit) as end:
        STEPS[number].main(["--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0 and "--root-dir" in text and "default: 0.02" in text


@pytest.mark.slow
def test_the_five_steps_in_one_program_equal_them_one_by_one(
    preprocessed, dfdc, tmp_path
):
    """With two worker processes that all steps share."""
    root = tmp_path / "data"
    shutil.copytree(dfdc, root)
    arguments = [f"--root-dir={root}", "--workers=2", "--device=cpu"]
    assert all_steps.main(arguments) == 0
    files = [name for name in tree(preprocessed) if (preprocessed / name).is_file()]
    assert files == [name for name in tree(root) if (root / name).is_file()]
    for name in files:
        assert (root / name).read_bytes() == (preprocessed / name).read_bytes(), name


def test_skipped_entries_count_as_failures(preprocessed, tmp_path, capsys):
    """One of two fakes has no original: in a step, and once in the whole program."""
    root = shutil.copytree(preprocessed, tmp_path / "data")
    folder = root / "dfdc_train_part_0"
    entries = json.loads((folder / "metadata.json").read_text())
    entries["lost.mp4"] = {"label": "FAKE", "original": "gone.mp4"}
    (folder / "metadata.json").write_text(json.dumps(entries))
    (folder / "lost.mp4").touch()
    (folder / "extra.mp4").touch()  # without an entry: said, but no failure
    assert run(1, root) == 1
    printed = capsys.readouterr().err
    assert "1 of 3 failed or were skipped, more than --max-failures 0.02" in printed
    assert "1 not used (extra.mp4): no entry in metadata.json" in printed
    arguments = ["--root-dir", str(root), "--workers", "0", "--device", "cpu"]
    assert all_steps.main(arguments) == 1
    printed = capsys.readouterr().err
    assert "preprocessing: 1 of 4 failed or were skipped" in printed
    assert all_steps.main([*arguments, "--max-failures", "0.3"]) == 0


def test_a_step_that_fails_ends_the_program(tmp_path, capsys):
    part = tmp_path / "dfdc_train_part_0"
    part.mkdir()
    (part / "a.mp4").write_text("no video")
    (part / "metadata.json").write_text('{"a.mp4": {"label": "REAL"}}')
    assert all_steps.main(["--root-dir", str(tmp_path), "--workers", "0"]) == 1
    assert "01_detect_faces: too many videos failed" in capsys.readouterr().err
    assert not (tmp_path / "crops").exists()
