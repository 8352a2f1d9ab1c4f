"""Face crops: cropping, resizing, padding and image files.

Shared by preprocessing, training and inference.

Method: the winner's. Boxes come from half-resolution frames. They are doubled,
       truncated to whole pixels, enlarged by a third of the box on each side and
       clipped to the frame.
"""

import io
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from runtime.cli import UserError

# OpenCV upsamples with Intel's IPP, which selects a code path (SSE4.2, AVX2, AVX-512)
# by processor. The paths round a few pixels in a million differently, which changed
# scores by up to 0.0008. So all machines use one path, that of the recordings. OpenCV
# reads this variable at its first use of IPP, after this module is imported.
os.environ.setdefault("OPENCV_IPP", "avx2")

# The winner's setting: a margin of 1/3 of the box's width and height on each side
MARGIN_PARTS = 3


def full_resolution_box(box: Sequence[float]) -> tuple[int, int, int, int]:
    """Scale a half-resolution box (x1, y1, x2, y2) to full-resolution pixels.

    Coordinates are truncated toward zero.
    """
    x1, y1, x2, y2 = (int(value * 2) for value in box)
    return x1, y1, x2, y2


def crop_face(
    frame: np.ndarray, box: Sequence[float], margin_parts: int = MARGIN_PARTS
) -> np.ndarray:
    """Crop a face with its margin from a full-resolution frame.

    Args:
        frame: (H, W, 3) uint8, any colour order.
        box: x1, y1, x2, y2 in half-resolution pixels, not truncated.
        margin_parts: n for a margin of 1/n of the box on each side.

    Returns:
        A view (h, w, 3) of the frame, clipped to it; h or w is 0 where the box lies
        outside.
    """
    x1, y1, x2, y2 = full_resolution_box(box)
    pad_x, pad_y = (x2 - x1) // margin_parts, (y2 - y1) // margin_parts
    rows = slice(max(y1 - pad_y, 0), max(y2 + pad_y, 0))
    columns = slice(max(x1 - pad_x, 0), max(x2 + pad_x, 0))
    return frame[rows, columns]


def resize_longest_side(
    image: np.ndarray,
    size: int,
    down: int = cv2.INTER_AREA,
    up: int = cv2.INTER_CUBIC,
    **_: object,
) -> np.ndarray:
    """Resize an image so that its longer side is `size` pixels.

    The shorter side is truncated to whole pixels, and at least 1. `down` and `up` are
    OpenCV interpolation flags for downscaling and upscaling. Other keywords, which
    albumentations passes, are ignored.
    """
    height, width = image.shape[:2]
    longest = max(height, width)
    if longest == size:
        return image
    # The longer side is not computed: size / longest * longest may round below size.
    scale = size / longest
    new_width = size if width > height else max(int(width * scale), 1)
    new_height = max(int(height * scale), 1) if width > height else size
    return cv2.resize(
        image, (new_width, new_height), interpolation=up if scale > 1 else down
    )


def pad_to_square(image: np.ndarray, size: int) -> np.ndarray:
    """Centre an image (h, w, 3), h, w <= `size`, on a black (size, size, 3) square."""
    height, width = image.shape[:2]
    top, left = (size - height) // 2, (size - width) // 2
    square = np.zeros((size, size, 3), image.dtype)
    square[top : top + height, left : left + width] = image
    return square


def read_image(path: Path, flags: int = cv2.IMREAD_COLOR_RGB) -> np.ndarray:
    """Read an image as uint8 (H, W, 3) RGB, or (H, W) with `cv2.IMREAD_GRAYSCALE`.

    Raises:
        UserError: the file is missing, empty or not an image.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); run the preprocessing again"
        ) from error
    remedy = f"delete the folder {Path(path).parent}"
    return decode_image(data, f"{path}", remedy, flags)


def decode_image(
    data: bytes, name: str, remedy: str, flags: int = cv2.IMREAD_COLOR_RGB
) -> np.ndarray:
    """Decode the bytes of an image file, as `read_image` does.

    Args:
        name: the file's name, for the error message.
        remedy: what the user should do, for the error message.

    Raises:
        UserError: the bytes are empty or not an image.
    """
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    if image is None:
        raise UserError(
            f"{name}: not an image; {remedy} and run the preprocessing again"
        )
    return image


def write_image(path: Path, image: np.ndarray) -> None:
    """Write uint8 (H, W, 3) RGB or (H, W) grey as PNG.

    Not atomic: the caller writes into an `atomic_folder`.
    """
    bgr = image[..., ::-1] if image.ndim == 3 else image
    ok, data = cv2.imencode(".png", bgr)
    assert ok, f"cannot encode {path}"
    path.write_bytes(data.data)


def write_crops(
    folder: Path, number: int, frame: np.ndarray, boxes: Sequence[Sequence[float]]
) -> list[str]:
    """Write the crops of one frame, {number}_{actor}.png, as `write_image` does.

    Args:
        boxes: of its faces, as for `crop_face`.

    Returns:
        skip reasons of those that are missing.
    """
    skipped = []
    for actor, box in enumerate(boxes):
        crop = crop_face(frame, box)
        if crop.size:
            write_image(folder / f"{number}_{actor}.png", crop)
        else:
            height, width = frame.shape[:2]
            skipped.append(
                f"frame {number}, face {actor}: "
                f"outside the {width}x{height} frame, no crop"
            )
    return skipped


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an array as a .npy file. Not atomic either.

    `np.save` to a path would report a full disk without the system's error code.
    """
    buffer = io.BytesIO()
    np.save(buffer, array)
    path.write_bytes(buffer.getbuffer())
