"""Face detection on a portrait: boxes, landmarks, order, empty results."""

import numpy as np
import pytest
from PIL import Image

from preprocessing.faces import (
    INFERENCE_THRESHOLDS,
    LANDMARK_THRESHOLDS,
    TRAINING_THRESHOLDS,
    FaceDetector,
    half_size,
)


@pytest.fixture(scope="module")
def detector():
    return FaceDetector(INFERENCE_THRESHOLDS)


def test_the_winners_thresholds():
    assert TRAINING_THRESHOLDS == (0.85, 0.95, 0.95)
    assert LANDMARK_THRESHOLDS == (0.65, 0.75, 0.75)
    assert INFERENCE_THRESHOLDS == (0.7, 0.8, 0.8)


def test_the_portraits_face_is_where_eyes_see_it(detector, portrait):
    (faces,) = detector([portrait])
    assert len(faces) == 1 and faces.probabilities[0] > 0.99
    x1, y1, x2, y2 = faces.boxes[0]
    # pupils, tip of the nose, corners of the mouth, annotated by hand
    expected = [(205, 102), (247, 103), (224, 128), (203, 140), (245, 141)]
    np.testing.assert_allclose(faces.landmarks[0], expected, atol=4)
    assert x1 < 195 and x2 > 255 and y1 < 90 and y2 > 155
    assert faces.boxes.dtype == faces.landmarks.dtype == np.float32


def test_larger_faces_come_first_and_mirroring_mirrors(detector, portrait):
    small = np.asarray(Image.fromarray(portrait).resize((256, 256)))
    both = np.zeros((512, 768, 3), np.uint8)
    both[:256, :256], both[:, 256:] = small, portrait
    (faces,) = detector([both])
    assert len(faces) == 2 and faces.boxes[0, 0] > 256 > faces.boxes[1, 2]
    (mirrored,) = detector([np.ascontiguousarray(portrait[:, ::-1])])
    (plain,) = detector([portrait])
    np.testing.assert_allclose(
        511 - mirrored.boxes[0, [2, 0]], plain.boxes[0, [0, 2]], atol=5
    )


def test_no_face_is_an_empty_answer(detector):
    black, tiny = np.zeros((120, 160, 3), np.uint8), np.zeros((19, 160, 3), np.uint8)
    for image in (black, tiny):
        (faces,) = detector([image])
        assert len(faces) == 0 and faces.boxes.shape == (0, 4)
        assert faces.landmarks.shape == (0, 5, 2)
    assert detector([]) == []


def test_half_size_is_pillows_bicubic(portrait):
    image = portrait[:101, :77]  # odd height and width
    resized = Image.fromarray(image).resize((38, 50), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(half_size(image), np.asarray(resized))
