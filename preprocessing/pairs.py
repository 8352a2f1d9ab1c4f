"""Whether a fake's frames match those of its original, so that the same boxes fit both.

DFDC's fakes have their original's size, frame rate and start, and sometimes a few
frames more or less at the end. Other data sets and re-encoded copies need not.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from preprocessing.dataset import Video
from preprocessing.video import VideoInfo, probe, read_frames
from runtime.cli import UserError

Size = tuple[int, int]  # width, height in pixels

MAX_RATE_DIFFERENCE = 0.01  # of the frame rate: 29.97 and 30 are the same
MAX_START_DIFFERENCE = 0.25  # seconds: more than the delay of B frames
MAX_SHAPE_DIFFERENCE = 0.02  # of width / height: rounding to even numbers
MAX_LENGTH_DIFFERENCE = 10  # frames more or less at the end that are not looked into
COMPARED_FRAMES = 3
COMPARED_WIDTH = 64  # pixels
# Mean absolute difference of grey levels outside the faces. Strong compression stays
# below 4; other moments of a hand-held shot are above 15.
MAX_CONTENT_DIFFERENCE = 10.0


def match_original(
    video: Video, info: VideoInfo, boxes: dict[int, list[list[float]]]
) -> tuple[Size | None, list[str]]:
    """Compare a fake with its original.

    Args:
        boxes: of the original's faces by frame number, xyxy in half-resolution pixels.

    Returns:
        The size to which the fake's frames must be scaled, None if it is their own, and
        notes for the user.

    Raises:
        UserError: frame rate, start, shape or content differ, so no box would fit.
    """
    if not video.is_fake or video.original_path is None:
        return None, []
    original = _probe_original(video.original_path)
    name = video.original
    if abs(info.fps - original.fps) > MAX_RATE_DIFFERENCE * original.fps:
        raise UserError(
            f"{video.path}: {info.fps:.4g} frames per second, its original {name} has "
            f"{original.fps:.4g}: its boxes do not fit"
        )
    if abs(info.start - original.start) > MAX_START_DIFFERENCE:
        raise UserError(
            f"{video.path}: starts at {info.start:.2f} s, its original {name} at "
            f"{original.start:.2f} s: its boxes do not fit"
        )
    size, notes = None, []
    if (info.width, info.height) != (original.width, original.height):
        width, height = _shown_size(video.path, info)
        size = _shown_size(video.original_path, original)
        own, wanted = f"{width}x{height}", f"{size[0]}x{size[1]}"
        ratio = width / height / (size[0] / size[1])
        if abs(ratio - 1) > MAX_SHAPE_DIFFERENCE:
            raise UserError(
                f"{video.path}: {own}, another shape than its original {name} with "
                f"{wanted}: its boxes do not fit"
            )
        if (width, height) == size:  # one of them is stored rotated
            size = None
        else:
            notes.append(f"{own}, scaled to the {wanted} of its original {name}")
    if abs(info.frames - original.frames) > MAX_LENGTH_DIFFERENCE:
        difference = _content_difference(video, boxes, size)
        lengths = f"{info.frames} frames, its original {name} has {original.frames}"
        if difference > MAX_CONTENT_DIFFERENCE:
            raise UserError(
                f"{video.path}: {lengths}, and they do not show the same moments: "
                "its boxes do not fit"
            )
        notes.append(f"{lengths}; they show the same moments from the start")
    return size, notes


# DFDC has five fakes of each original
_probe_original = lru_cache(maxsize=4096)(probe)


def scale_frame(frame: np.ndarray, size: Size | None) -> np.ndarray:
    """A frame (H, W, 3) uint8 at another size."""
    if size is None:
        return frame
    shrinks = size[0] < frame.shape[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return cv2.resize(frame, size, interpolation=interpolation)


def _shown_size(path: Path, info: VideoInfo) -> Size:
    """Width and height of the first frame, after the display matrix."""
    for _, frame in read_frames(path, [0], info):
        return frame.shape[1], frame.shape[0]
    return info.width, info.height


def _content_difference(
    video: Video, boxes: dict[int, list[list[float]]], size: Size | None
) -> float:
    """The median over some frames of the difference outside the faces."""
    assert video.original_path is not None
    numbers = sorted(boxes)
    places = np.linspace(0, len(numbers) - 1, COMPARED_FRAMES + 2, dtype=int)
    chosen = sorted({numbers[place] for place in places})
    fakes = dict(read_frames(video.path, chosen))
    differences = [
        _frame_difference(scale_frame(fakes[number], size), frame, boxes[number])
        for number, frame in read_frames(video.original_path, chosen)
        if number in fakes
    ]
    return float(np.median(differences)) if differences else 0.0


def _frame_difference(
    fake: np.ndarray, original: np.ndarray, boxes: Sequence[Sequence[float]]
) -> float:
    """Mean absolute difference of grey levels outside the boxes."""
    height, width = original.shape[:2]
    outside = np.ones((height, width), np.uint8)
    for box in boxes:
        x1, y1, x2, y2 = (int(2 * value) for value in box)
        pad_x, pad_y = (x2 - x1) // 3, (y2 - y1) // 3
        outside[max(y1 - pad_y, 0) : y2 + pad_y, max(x1 - pad_x, 0) : x2 + pad_x] = 0
    small = COMPARED_WIDTH, max(1, round(COMPARED_WIDTH * height / width))
    mask = cv2.resize(outside, small, interpolation=cv2.INTER_NEAREST).astype(bool)
    if not mask.any():
        return 0.0
    one, other = (
        cv2.cvtColor(
            cv2.resize(frame, small, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY
        ).astype(float)
        for frame in (fake, original)
    )
    return float(np.abs(one - other)[mask].mean())
