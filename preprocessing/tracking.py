"""Link the faces of a video over time by the overlap of their boxes (IoU tracking)."""

from collections.abc import Sequence

import numpy as np

MIN_IOU = 0.1  # of the boxes of one person in two successive frames


def track_faces(frames: Sequence[int], boxes: Sequence[Sequence[int]]) -> list[int]:
    """The number of the person that each face belongs to, from 0: the one whose last box it overlaps most, or a new one.

    frames ascend; boxes are x1, y1, x2, y2 in pixels. Two faces of one frame are two people.
    """
    last: list[Sequence[int]] = []
    people, taken, now = [], set(), None
    for frame, box in zip(frames, boxes):
        if frame != now:
            taken, now = set(), frame
        overlaps = [
            0.0 if person in taken else _iou(box, other)
            for person, other in enumerate(last)
        ]
        person = (
            int(np.argmax(overlaps))
            if overlaps and max(overlaps) >= MIN_IOU
            else len(last)
        )
        last[person : person + 1] = [box]
        taken.add(person)
        people.append(person)
    return people


def _iou(one: Sequence[int], other: Sequence[int]) -> float:
    """Intersection over union."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (one, other)]
    return width * height / (sum(areas) - width * height)
