"""Face detection: MTCNN with facenet-pytorch's weights, on half-resolution frames.

Method: Zhang et al., "Joint Face Detection and Alignment using Multi-task Cascaded
       Convolutional Networks" (2016), in facenet-pytorch's implementation, with the
       winner's thresholds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from runtime.cli import MachineError
from runtime.device import pick_device

Thresholds = tuple[float, float, float]  # one for each of MTCNN's three networks

# The winner's three settings: strict for the boxes of training crops, lenient for
# landmarks in a crop that is known to show a face, and in between at inference.
TRAINING_THRESHOLDS: Thresholds = (0.85, 0.95, 0.95)
LANDMARK_THRESHOLDS: Thresholds = (0.65, 0.75, 0.75)
INFERENCE_THRESHOLDS: Thresholds = (0.7, 0.8, 0.8)

DETECTOR_IMPORTS = ("preprocessing.mtcnn",)  # slow: PyTorch and torchvision
MIN_FACE_SIZE = 20  # facenet-pytorch's default, in pixels of the detector's input


@dataclass(frozen=True)
class Faces:
    """The K faces of one image, largest first.

    boxes (K, 4) xyxy, probabilities (K,) and landmarks (K, 5, 2) xy, all float32, in
    pixels of the detector's input. Landmarks: left eye, right eye, nose, left and right
    corner of the mouth. Left and right are the viewer's.
    """

    boxes: np.ndarray
    probabilities: np.ndarray
    landmarks: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)


class FaceDetector:
    """MTCNN on one device. A call returns one `Faces` for each image."""

    def __init__(self, thresholds: Thresholds, device: str = "cpu"):
        from preprocessing.mtcnn import Cascade

        self._thresholds = thresholds
        self._cascade = Cascade(device)

    def __call__(
        self, images: Sequence[np.ndarray], batched_nms: bool = False
    ) -> list[Faces]:
        """Detect faces in images (H, W, 3) uint8 RGB, which may differ in size.

        Args:
            batched_nms: reproduce facenet-pytorch's results for all images in one batch
                instead of one image at a time. They differ: in a batch, large float32
                offsets separate the images' boxes in non-maximum suppression, so a
                borderline box may survive there and not alone. Each caller does what
                the winner did at that point.

        Raises:
            MachineError: the GPU failed, or has too little memory even for one image
                (with `batched_nms`: for all images).
        """
        import torch

        try:
            return self._detect(images, batched_nms)
        except torch.OutOfMemoryError as error:
            if batched_nms or len(images) == 1:
                raise MachineError(
                    f"{self._cascade.device}: not enough GPU memory to detect faces "
                    f"({error}); use fewer --workers"
                ) from error
        except RuntimeError as error:
            if self._cascade.device.type == "cpu":
                raise
            raise MachineError(
                f"{self._cascade.device}: the GPU failed during face detection: {error}"
            ) from error
        torch.cuda.empty_cache()
        half = len(images) // 2
        return self(images[:half]) + self(images[half:])

    def _detect(self, images: Sequence[np.ndarray], batched_nms: bool) -> list[Faces]:
        large_enough = [
            index
            for index, image in enumerate(images)
            if min(image.shape[:2]) >= MIN_FACE_SIZE
        ]
        faces = [_no_faces() for _ in images]
        if large_enough:
            results = self._cascade(
                [images[index] for index in large_enough],
                self._thresholds,
                MIN_FACE_SIZE,
                batched_nms,
            )
            for index, (boxes, landmarks) in zip(large_enough, results):
                faces[index] = _largest_first(boxes, landmarks)
        return faces


@cache
def load_detector(thresholds: Thresholds, device: str = "auto") -> FaceDetector:
    """The detector with these settings, created once per process."""
    return FaceDetector(thresholds, pick_device(device))


def half_size(frame: np.ndarray) -> np.ndarray:
    """Resize a frame (H, W, 3) uint8 to half its resolution, (H // 2, W // 2, 3).

    Uses Pillow's bicubic filter, as the winner did.
    """
    height, width = frame.shape[:2]
    size = (max(width // 2, 1), max(height // 2, 1))
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))


def _largest_first(boxes: np.ndarray, landmarks: np.ndarray) -> Faces:
    order = np.argsort((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))[::-1]
    return Faces(boxes[order, :4], boxes[order, 4], landmarks[order])


def _no_faces() -> Faces:
    return Faces(
        np.zeros((0, 4), np.float32),
        np.zeros(0, np.float32),
        np.zeros((0, 5, 2), np.float32),
    )
