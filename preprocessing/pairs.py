"""Whether a fake's frames match those of its original, so that the same boxes fit both.

DFDC's fakes have their original's size, frame rate and start, and sometimes a few
frames more or less at the end. Other data sets and re-encoded copies need not. In
FaceForensics++, Face2Face and NeuralTextures leave out the borders of frames whose width
is no multiple of 16.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from preprocessing.dataset import Video
from preprocessing.layout import boxes_path
from preprocessing.video import VideoInfo, probe, read_frames
from runtime.cli import UserError

Size = tuple[int, int]  # width, height in pixels

# Step 1 searches every 10th frame; boxes from the winner's own script cover all.
FRAME_STEP = 10
MAX_RATE_DIFFERENCE = 0.01  # of the frame rate: 29.97 and 30 are the same
MAX_START_DIFFERENCE = 0.25  # seconds: more than the delay of B frames
MAX_SHAPE_DIFFERENCE = 0.02  # of width / height: rounding to even numbers
MAX_BORDER = 32  # pixels of the width or height that a fake may leave out
MAX_LENGTH_DIFFERENCE = 10  # frames more or less at the end that are not looked into
COMPARED_FRAMES = 3
COMPARED_WIDTH = 64  # pixels
# Mean absolute difference of grey levels outside the faces. Strong compression stays
# below 4; other moments of a hand-held shot are above 15.
MAX_CONTENT_DIFFERENCE = 10.0


class Fit(NamedTuple):
    """How a fake's frames become as large as its original's.

    size: of the original.
    is_middle: the fake shows the middle of the original, so its borders are repeated
        outwards; otherwise its frames are scaled.
    """

    size: Size
    is_middle: bool = False


def read_boxes(root: Path, video: Video) -> dict[int, list[list[float]] | None]:
    """Read the boxes of a video's original, of every 10th frame.

    Returns:
        frame number to boxes (x1, y1, x2, y2) in half-resolution pixels, or None.

    Raises:
        UserError: step 1 has written no boxes for it, or the file is damaged.
    """
    path = boxes_path(root, video.original)
    try:
        entries = json.loads(path.read_text()).items()
        boxes = {int(number): each for number, each in entries}
    except OSError as error:
        raise UserError(
            f"{video.path}: there is no {path}; see why step 1 failed on that video"
        ) from error
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"{video.path}: {path} is damaged; delete it and run step 1 again"
        ) from error
    return {number: each for number, each in boxes.items() if number % FRAME_STEP == 0}


def no_face(searched: int) -> str:
    """The skip reason of a video without a face in so many frames."""
    return f"no face found in {searched} frames"


def match_original(
    video: Video, info: VideoInfo, boxes: dict[int, list[list[float]]]
) -> tuple[Fit | None, list[str]]:
    """Compare a fake with its original.

    Args:
        boxes: of the original's faces by frame number, xyxy in half-resolution pixels.

    Returns:
        How the fake's frames must be changed for the boxes, None if not at all, and
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
    fit, notes = None, []
    if (info.width, info.height) != (original.width, original.height):
        fit, note = _fit_size(video, info, original, boxes)
        notes += note
    if abs(info.frames - original.frames) > MAX_LENGTH_DIFFERENCE:
        difference = _content_difference(video, boxes, fit)
        lengths = f"{info.frames} frames, its original {name} has {original.frames}"
        if difference > MAX_CONTENT_DIFFERENCE:
            raise UserError(
                f"{video.path}: {lengths}, and they do not show the same moments: "
                "its boxes do not fit"
            )
        notes.append(f"{lengths}; they show the same moments from the start")
    return fit, notes


def _fit_size(
    video: Video,
    info: VideoInfo,
    original: VideoInfo,
    boxes: dict[int, list[list[float]]],
) -> tuple[Fit | None, list[str]]:
    """The fit of a fake of another size than its original's, and a note."""
    assert video.original_path is not None
    own = _shown_size(video.path, info)
    wanted = _shown_size(video.original_path, original)
    if own == wanted:  # one of them is stored rotated
        return None, []
    sizes = [f"{width}x{height}" for width, height in (own, wanted)]
    has_shape = _ratio(own, wanted) <= MAX_SHAPE_DIFFERENCE
    fits = []
    if all(0 <= w - o <= MAX_BORDER for o, w in zip(own, wanted)):
        fits.append(Fit(wanted, is_middle=True))
    if has_shape:
        fits.append(Fit(wanted))
    differences = {fit: _content_difference(video, boxes, fit) for fit in fits}
    best = min(fits, key=lambda fit: differences[fit], default=None)
    if best is None or differences[best] > MAX_CONTENT_DIFFERENCE:
        why = (
            f"and not what its original {video.original} with {sizes[1]} shows at that "
            "size"
            if has_shape
            else f"another shape than its original {video.original} with {sizes[1]}"
        )
        raise UserError(f"{video.path}: {sizes[0]}, {why}: its boxes do not fit")
    how = "the middle of" if best.is_middle else "scaled to"
    note = f"{sizes[0]}, {how} the {sizes[1]} of its original {video.original}"
    return best, [note]


def _ratio(one: Size, other: Size) -> float:
    """By how much the width to height of two sizes differs, as a fraction."""
    return abs(one[0] / one[1] / (other[0] / other[1]) - 1)


# DFDC has five fakes of each original
_probe_original = lru_cache(maxsize=4096)(probe)


def probe_original(video: Video) -> VideoInfo | None:
    """What the packets of a fake's original say; None of a real video."""
    is_fake = video.is_fake and video.original_path is not None
    return _probe_original(video.original_path) if is_fake else None


def fit_frame(frame: np.ndarray, fit: Fit | None) -> np.ndarray:
    """A fake's frame (H, W, 3) uint8 as large as its original's."""
    if fit is None:
        return frame
    (width, height), (own_height, own_width) = fit.size, frame.shape[:2]
    if fit.is_middle:
        left, top = (width - own_width) // 2, (height - own_height) // 2
        right, bottom = width - own_width - left, height - own_height - top
        return cv2.copyMakeBorder(frame, top, bottom, left, right, cv2.BORDER_REPLICATE)
    interpolation = cv2.INTER_AREA if width < own_width else cv2.INTER_CUBIC
    return cv2.resize(frame, fit.size, interpolation=interpolation)


def _shown_size(path: Path, info: VideoInfo) -> Size:
    """Width and height of the first frame, after the display matrix."""
    for _, frame in read_frames(path, [0], info):
        return frame.shape[1], frame.shape[0]
    return info.width, info.height


def _content_difference(
    video: Video, boxes: dict[int, list[list[float]]], fit: Fit | None
) -> float:
    """The median over some frames of the difference outside the faces."""
    assert video.original_path is not None
    numbers = sorted(boxes)
    places = np.linspace(0, len(numbers) - 1, COMPARED_FRAMES + 2, dtype=int)
    chosen = sorted({numbers[place] for place in places})
    fakes = dict(read_frames(video.path, chosen))
    differences = [
        _frame_difference(fit_frame(fakes[number], fit), frame, boxes[number])
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
