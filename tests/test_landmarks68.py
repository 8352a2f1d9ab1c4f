"""dlib's 68 landmarks: with dlib where it is installed, else what the user is told."""

import importlib.util
import shutil

import numpy as np
import pytest

from preprocessing import landmarks68
from preprocessing.crop_table import read_crop_table
from runtime.cli import UserError
from tests.media import REAL
from tests.test_preprocessing import STEPS, run
from training.samples import Sample

with_dlib = pytest.mark.skipif(
    not (
        importlib.util.find_spec("dlib")
        and importlib.util.find_spec("face_recognition_models")
    ),
    reason="requirements-landmarks.txt is not installed",
)


def test_what_is_not_installed_is_said_at_once(preprocessed, tmp_path, monkeypatch):
    monkeypatch.setattr(landmarks68, "MODEL_PACKAGE", "no_such_package")
    landmarks68.load_predictor.cache_clear()
    with pytest.raises(
        UserError, match="pip install --no-deps -r requirements-landmarks"
    ):
        run(3, preprocessed, "--points", "68", "--output-dir", str(tmp_path))
    landmarks68.load_predictor.cache_clear()


def test_both_kinds_are_written_and_read(preprocessed, tmp_path, monkeypatch):
    """With a stub in place of dlib; a crop without a face has five or none."""
    data = shutil.copytree(preprocessed, tmp_path / "data")
    points = np.arange(136, dtype=np.int16).reshape(68, 2)
    seen = []

    def stub(image):
        seen.append(image.shape)
        return None if len(seen) == 1 else points

    monkeypatch.setattr(STEPS[3], "load_predictor", lambda: None)
    monkeypatch.setattr(STEPS[3], "detect_landmarks", stub)
    assert run(3, data, "--points", "68") == 0
    crops = read_crop_table(data)
    rows = [row for row in range(len(crops)) if crops.name("original", row) == REAL]
    outlines = [Sample(crops, row).outline_landmarks() for row in rows]
    assert any(each is not None and len(each) == 68 for each in outlines)
    files = [*(data / "landmarks68").rglob("*.npy")]
    assert len(files) == len(seen) - 1
    for row, outline in zip(rows, outlines):
        assert (
            Sample(crops, row).landmarks() is None
            or len(Sample(crops, row).landmarks()) == 5
        )
        if crops.files(row).npy68.exists():
            np.testing.assert_array_equal(outline, points)
    count = len(seen)
    assert run(3, data, "--points", "68") == 0 and len(seen) == count  # resumed


@with_dlib
def test_the_landmarks_of_the_portrait(portrait):
    crop = np.ascontiguousarray(portrait[20:280, 120:330])
    points = landmarks68.detect_landmarks(crop)
    assert points.shape == (68, 2) and points.dtype == np.int16
    left_eye, right_eye = points[36:42].mean(axis=0), points[42:48].mean(axis=0)
    mouth, chin = points[48:].mean(axis=0), points[8]
    assert left_eye[0] < mouth[0] < right_eye[0]
    assert left_eye[1] < points[30][1] < mouth[1] < chin[1]
    assert landmarks68.detect_landmarks(np.zeros_like(crop)) is None
