"""The one face detector: MTCNN with the weights inside facenet-pytorch, on half-resolution frames.

Method: Zhang et al., "Joint Face Detection and Alignment using Multi-task Cascaded Convolutional Networks" (2016),
in facenet-pytorch's implementation, with the winner's thresholds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from runtime.cli import MachineError
from runtime.device import pick_device

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
    right corner, left and right as the viewer shared_path them.
    """

    boxes: np.ndarray
    probabilities: np.ndarray
    landmarks: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)


class FaceDetector:
    """MTCNN on one device. Calling it with images gives one `Faces` for each."""

    def __init__(self, thresholds: Thresholds, device: str = "cpu"):
        from preprocessing.mtcnn import Cascade

        self._thresholds = thresholds
        self._cascade = Cascade(device)

    def __call__(
        self, images: Sequence[np.ndarray], together: bool = False
    ) -> list[Faces]:
        """Detect faces in images (H, W, 3) uint8 RGB, which may differ in size.

        Args:
            together: as facenet-pytorch does with all of them in one batch; otherwise as with each alone. It matters: in a
                batch large float32 offsets keep the frames' boxes apart, so a borderline box can survive there and not alone.
                Each caller does as the winner did in its place.

        Raises:
            MachineError: the GPU failed, or its memory is short even for one image (`together`: for all of them).
        """
        import torch

        try:
            return self._detect(images, together)
        except torch.OutOfMemoryError as error:
            if together or len(images) == 1:
                raise MachineError(
                    f"not enough GPU memory to find faces ({error}); use fewer --workers"
                ) from error
        except RuntimeError as error:
            if self._cascade.device.type == "cpu":
                raise
            raise MachineError(
                f"the GPU failed while faces were searched: {error}"
            ) from error
        torch.cuda.empty_cache()
        half = len(images) // 2
        return self(images[:half]) + self(images[half:])

    def _detect(self, images: Sequence[np.ndarray], together: bool) -> list[Faces]:
        large = [
            number
            for number, image in enumerate(images)
            if min(image.shape[:2]) >= MIN_FACE_SIZE
        ]
        found = [_no_faces() for _ in images]
        if large:
            results = self._cascade(
                [images[number] for number in large],
                self._thresholds,
                MIN_FACE_SIZE,
                together,
            )
            for number, (boxes, landmarks) in zip(large, results):
                found[number] = _largest_first(boxes, landmarks)
        return found


@cache
def load_detector(thresholds: Thresholds, device: str = "auto") -> FaceDetector:
    """One detector for each setting and process, made at first use."""
    return FaceDetector(thresholds, pick_device(device))


def half_size(frame: np.ndarray) -> np.ndarray:
    """A frame (H, W, 3) uint8 at half its resolution, (H // 2, W // 2, 3), by Pillow's bicubic filter as the winner did."""
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
