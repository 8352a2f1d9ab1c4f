"""Cutouts: hide a part of the face, so that the network does not rely on a single cue.

Method: the winner's three cutouts. Eyes, nose or mouth by five landmarks; half of the
face's outline; half of the image, checked against the diff mask so that a fake keeps
some of its changed pixels. Two small differences:
- He derived the outline from dlib's 68 landmarks, as is done here where step 3 made
  them. Otherwise it is an ellipse in the coordinates that the two eyes and the mouth
  span, from brows to chin and cheek to cheek; without landmarks, an ellipse in the
  face's bounding box, which follows from the crop rule.
- He split the image's height at half of its width, by mistake; here it is split at half
  of the height.
All functions take and return uint8 (H, W, 3) and leave their arguments unchanged.
"""

import random

import cv2
import numpy as np
from skimage.draw import polygon

# A fake must keep more changed pixels than this; the winner's setting.
MIN_CHANGED_PIXELS = 20
MAX_DRAWS = 5
OUTLINE_POINTS = 40
# of dlib's 68: ear to ear along the jaw, back over the brows
JAW_AND_BROWS = [*range(17), *range(26, 16, -1)]


def landmark_cutout(
    image: np.ndarray, landmarks: np.ndarray, rng: random.Random
) -> np.ndarray:
    """Black out the eyes (p 1/2), the mouth (1/4), the nose (1/8) or nothing (1/8).

    Args:
        landmarks: (5, 2), x and y in pixels.
    """
    left_eye, right_eye, nose, mouth_left, mouth_right = landmarks.astype(float)
    eye_distance = np.linalg.norm(left_eye - right_eye)
    if rng.random() > 0.5:
        return _black_line(image, left_eye, right_eye, int(eye_distance // 4))
    if rng.random() > 0.5:
        mouth_width = np.linalg.norm(mouth_left - mouth_right)
        return _black_line(image, mouth_left, mouth_right, int(mouth_width // 3))
    if rng.random() > 0.5:
        between_eyes = (left_eye + right_eye) / 2
        return _black_line(image, nose, between_eyes, int(eye_distance // 4))
    return image


def hull_cutout(
    image: np.ndarray, landmarks: np.ndarray | None, rng: random.Random
) -> np.ndarray:
    """Black out the upper, lower, left or right half of the face's outline.

    Args:
        landmarks: (68, 2), (5, 2), x and y in pixels, or None.
    """
    height, width = image.shape[:2]
    mask = np.zeros((height, width), np.uint8)
    outline = face_outline(landmarks, height, width)
    if landmarks is not None and len(landmarks) == 68:
        inside = polygon(outline[:, 1], outline[:, 0], mask.shape)
        mask[inside] = 1
        y, x = (int(each.mean()) if len(each) else 0 for each in inside)
    else:
        cv2.fillPoly(mask, [np.round(outline).astype(np.int32)], 1)
        x, y = np.clip(outline.mean(axis=0).astype(int), 0, (width, height))
    half = rng.choice((np.s_[:y, :], np.s_[y:, :], np.s_[:, :x], np.s_[:, x:]))
    mask[half] = 0
    return image * (mask == 0)[..., None]


def half_cutout(
    image: np.ndarray, diff: np.ndarray, is_fake: bool, rng: random.Random
) -> np.ndarray:
    """Black out half of the image: top, bottom, left, right or two opposite quarters.

    In a fake, more than `MIN_CHANGED_PIXELS` changed pixels must remain visible. If
    none of `MAX_DRAWS` random halves allows that, the image is returned unchanged.

    Args:
        diff: (H, W) uint8, the diff mask of preprocessing step 4.
    """
    masks = half_masks(*image.shape[:2])
    for _ in range(MAX_DRAWS):
        mask = rng.choice(masks)
        if not is_fake or np.count_nonzero(diff * mask) > MIN_CHANGED_PIXELS:
            return image * mask[..., None]
    return image


def half_masks(height: int, width: int) -> list[np.ndarray]:
    """Six masks (H, W) uint8, 1 where the image is kept."""
    upper = np.zeros((height, width), bool)
    left = upper.copy()
    upper[: height // 2], left[:, : width // 2] = True, True
    quarters = upper == left
    return [
        mask.astype(np.uint8)
        for mask in (upper, ~upper, left, ~left, quarters, ~quarters)
    ]


def face_outline(landmarks: np.ndarray | None, height: int, width: int) -> np.ndarray:
    """The face's outline (N, 2), x and y in pixels of its crop.

    With 68 landmarks: the jaw and the brows. With five: an ellipse in the coordinates of
    two vectors, from eye to eye and from the eyes to the mouth. On the demo's portrait
    the brows lie 0.4 of the latter above the eyes, the chin 2.25 below, and each cheek
    1.05 of the former from the middle; these three numbers define the ellipse.
    """
    angles = np.linspace(0, 2 * np.pi, OUTLINE_POINTS, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    if landmarks is not None and len(landmarks) == 68:
        return landmarks[JAW_AND_BROWS].astype(float)
    if landmarks is None:
        # the crop rule cuts 1 + 2/3 times the face's bounding box
        return np.array([width, height]) * (0.5 + 0.3 * circle)
    points = landmarks.astype(float)
    eyes, mouth = points[:2].mean(axis=0), points[3:].mean(axis=0)
    across, down = points[1] - points[0], mouth - eyes
    return (
        eyes
        + 0.925 * down
        + circle[:, :1] * 1.05 * across
        + circle[:, 1:] * 1.325 * down
    )


def _black_line(
    image: np.ndarray, start: np.ndarray, end: np.ndarray, radius: int
) -> np.ndarray:
    """Black out a line of thickness 2, dilated by `radius` in city-block distance."""
    mask = np.zeros(image.shape[:2], np.uint8)
    start_xy, end_xy = (tuple(int(value) for value in point) for point in (start, end))
    cv2.line(mask, start_xy, end_xy, 1, thickness=2)
    if radius > 0:
        offsets = np.abs(np.arange(-radius, radius + 1))
        diamond = (offsets[:, None] + offsets <= radius).astype(np.uint8)
        mask = cv2.dilate(mask, diamond, borderValue=0)
    return image * (mask == 0)[..., None]
