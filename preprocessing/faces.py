"""The one face detector: MTCNN with the weights inside facenet-pytorch, on half-resolution frames.

Method: Zhang et al., "Joint Face Detection and Alignment using Multi-task Cascaded Convolutional Networks" (2016),
in facenet-pytorch's implementation, with the winner's thresholds.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import Image

Thresholds = tuple[float, float, float]  # one for each of MTCNN's three networks

# The winner's three settings: strict for the boxes that training crops are cut with, lenient for landmarks inside a
# crop that is known to hold a face, in between at inference.
TRAINING_THRESHOLDS: Thresholds = (0.85, 0.95, 0.95)
LANDMARK_THRESHOLDS: Thresholds = (0.65, 0.75, 0.75)
INFERENCE_THRESHOLDS: Thresholds = (0.7, 0.8, 0.8)

MIN_FACE_SIZE = 20  # facenet-pytorch's default, in pixels of the image it is given


@dataclass(frozen=True)
class Faces:
    """The K faces of one image, largest first: boxes_K4 xyxy float32, probabilities_K, landmarks_K52 xy float32.

    Coordinates are pixels of the image that the detector saw. Landmarks: left eye, right eye, nose, mouth's left and
    right corner, left and right as the viewer sees them.
    """

    boxes: np.ndarray
    probabilities: np.ndarray
    landmarks: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)


class FaceDetector:
    """MTCNN on one device. Calling it with images gives one `Faces` for each."""

    def __init__(self, thresholds: Thresholds, device: str = "cpu"):
        from facenet_pytorch import MTCNN

        self._mtcnn = MTCNN(margin=0, min_face_size=MIN_FACE_SIZE, thresholds=list(thresholds), device=torch.device(device))

    def __call__(self, images: Sequence[np.ndarray]) -> list[Faces]:
        """Detect faces in images (H, W, 3) uint8 RGB, all of one size, as one batch.

        The batch matters: facenet-pytorch keeps the frames of a batch apart by adding large offsets to their boxes in
        float32, so a borderline box can survive in a batch and not alone. Each caller batches as the winner did there.
        """
        if not len(images) or min(images[0].shape[:2]) < MIN_FACE_SIZE:
            return [_no_faces() for _ in images]
        results = zip(*self._mtcnn.detect(np.stack(images), landmarks=True))
        return [_no_faces() if boxes is None else _faces(boxes, scores, points) for boxes, scores, points in results]


@cache
def load_detector(thresholds: Thresholds, device: str = "cpu") -> FaceDetector:
    """One detector for each setting and process, made at first use."""
    return FaceDetector(thresholds, device)


def half_size(frame: np.ndarray) -> np.ndarray:
    """A frame (H, W, 3) uint8 at half its resolution, (H // 2, W // 2, 3), by Pillow's bicubic filter as the winner did."""
    height, width = frame.shape[:2]
    size = (max(width // 2, 1), max(height // 2, 1))
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))


def _faces(boxes: np.ndarray, probabilities: np.ndarray, landmarks: np.ndarray) -> Faces:
    # facenet-pytorch gives object arrays under NumPy 2
    return Faces(*(np.asarray(part, dtype=np.float32) for part in (boxes, probabilities, landmarks)))


def _no_faces() -> Faces:
    return Faces(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros((0, 5, 2), np.float32))


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """`--device`, by default the GPU where there is one."""
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, help="cpu, cuda or cuda:N; the default is what this machine has")
