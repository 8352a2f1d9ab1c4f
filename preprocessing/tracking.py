"""Face tracking: link the faces of a video over time by the IoU of their boxes."""

from collections.abc import Sequence

import numpy as np

MIN_IOU = 0.1  # between a track's last box and its next one


def track_faces(frames: Sequence[int], boxes: Sequence[Sequence[int]]) -> list[int]:
    """Assign each face to a track: the one whose last box overlaps most, or a new one.

    Two faces of one frame are never in the same track.

    Args:
        frames: ascending frame number of each face.
        boxes: x1, y1, x2, y2 of each face in pixels.

    Returns:
        track number of each face, from 0.
    """
    last_boxes: list[Sequence[int]] = []
    tracks: list[int] = []
    taken: set[int] = set()
    current_frame = None
    for frame, box in zip(frames, boxes):
        if frame != current_frame:
            taken, current_frame = set(), frame
        overlaps = [
            0.0 if track in taken else _iou(box, last_box)
            for track, last_box in enumerate(last_boxes)
        ]
        if overlaps and max(overlaps) >= MIN_IOU:
            track = int(np.argmax(overlaps))
            last_boxes[track] = box
        else:
            track = len(last_boxes)
            last_boxes.append(box)
        taken.add(track)
        tracks.append(track)
    return tracks


def _iou(box: Sequence[int], other: Sequence[int]) -> float:
    """Intersection over union of two boxes."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (box, other)]
    return width * height / (sum(areas) - width * height)
