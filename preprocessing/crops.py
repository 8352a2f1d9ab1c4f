"""Geometry of a face crop: the box rule, the resize and the padding that preprocessing, training and inference share.

Method: the winner's. Boxes come from half-resolution frames; they are doubled, truncated to whole pixels, widened by a
third of the box on each side and clipped to the frame.
"""

import io
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from runtime.cli import UserError

# OpenCV leaves enlarging to Intel's IPP, which rounds a few pixels in a million differently with each of its code paths
# (SSE4.2, AVX2, AVX-512) and chooses by processor; that moved scores by up to 0.0008. One path for all machines, the one
# the recordings were made with. OpenCV reads this at its first use of IPP, after this module is imported.
os.environ.setdefault("OPENCV_IPP", "avx2")

MARGIN_PARTS = 3  # a crop has 1/3 of the box's width and height added on each side (the winner's setting)


def full_resolution_box(box: Sequence[float]) -> tuple[int, int, int, int]:
    """A half-resolution box (x1, y1, x2, y2) in whole full-resolution pixels, truncated toward zero."""
    x1, y1, x2, y2 = (int(value * 2) for value in box)
    return x1, y1, x2, y2


def crop_face(
    frame: np.ndarray, box: Sequence[float], margin_parts: int = MARGIN_PARTS
) -> np.ndarray:
    """Cut a face with its margin out of a full-resolution frame.

    Args:
        frame: (H, W, 3) uint8, any colour order.
        box: x1, y1, x2, y2 in half-resolution pixels, not truncated.
        margin_parts: n for a margin of 1/n of the box on each side.

    Returns:
        A view (h, w, 3) into the frame, clipped to it; h or w is 0 where the box lies outside.
    """
    x1, y1, x2, y2 = full_resolution_box(box)
    pad_x, pad_y = (x2 - x1) // margin_parts, (y2 - y1) // margin_parts
    return frame[
        max(y1 - pad_y, 0) : max(y2 + pad_y, 0), max(x1 - pad_x, 0) : max(x2 + pad_x, 0)
    ]


def resize_longest_side(
    image: np.ndarray,
    size: int,
    down: int = cv2.INTER_AREA,
    up: int = cv2.INTER_CUBIC,
    **_: object,
) -> np.ndarray:
    """Scale an image so that its longer side is `size` pixels; the shorter side is truncated, and at least 1.

    `down` and `up` are OpenCV interpolation flags for shrinking and enlarging. Further keywords are ignored, so that
    albumentations can call this with its own.
    """
    height, width = image.shape[:2]
    longest = max(height, width)
    if longest == size:
        return image
    # The longer side is set, not computed: size / longest * longest may fall short of size by one rounding.
    scale = size / longest
    new_width = size if width > height else max(int(width * scale), 1)
    new_height = max(int(height * scale), 1) if width > height else size
    return cv2.resize(
        image, (new_width, new_height), interpolation=up if scale > 1 else down
    )


def pad_to_square(image: np.ndarray, size: int) -> np.ndarray:
    """Centre an image (h, w, 3) of at most `size` pixels a side on a black (size, size, 3) square."""
    height, width = image.shape[:2]
    top, left = (size - height) // 2, (size - width) // 2
    square = np.zeros((size, size, 3), image.dtype)
    square[top : top + height, left : left + width] = image
    return square


def read_image(path: Path, flags: int = cv2.IMREAD_COLOR_RGB) -> np.ndarray:
    """An image file as uint8 (H, W, 3) RGB, or (H, W) with `cv2.IMREAD_GRAYSCALE`.

    Raises:
        UserError: the file is missing, empty or no image.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); run the preprocessing again"
        ) from error
    return decode_image(
        data, f"{path}", f"delete the folder {Path(path).parent}", flags
    )


def decode_image(
    data: bytes, name: str, remedy: str, flags: int = cv2.IMREAD_COLOR_RGB
) -> np.ndarray:
    """The same of a file's bytes. `name` and `remedy` are for the error."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    if image is None:
        raise UserError(
            f"{name}: not an image; {remedy} and run the preprocessing again"
        )
    return image


def write_image(path: Path, image: np.ndarray) -> None:
    """Write uint8 (H, W, 3) RGB or (H, W) grey as PNG. Not atomic: the caller writes whole folders and renames them."""
    bgr = image[..., ::-1] if image.ndim == 3 else image
    ok, data = cv2.imencode(".png", bgr)
    assert ok, f"cannot encode {path}"
    path.write_bytes(data)


def write_array(path: Path, array: np.ndarray) -> None:
    """Write a NumPy file. Not atomic either. NumPy's own writing to a full disk ends without the system's reason."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    path.write_bytes(buffer.getbuffer())
