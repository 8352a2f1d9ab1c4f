"""Cutouts that hide a part of the face, so that a network cannot lean on one trace alone.

Method: the winner's three. Eyes, nose or mouth by five landmarks; half of the face's outline; half of the image, checked
against the diff mask so that a fake keeps something that was changed. Two differences, both small:
- He found the outline with dlib's 68 landmarks. Here it is an ellipse in the coordinates that the two eyes and the mouth
  span, from brows to chin and cheek to cheek; without landmarks, the ellipse in the face's box, which the crop rule fixes.
- He split the image's height at half of its width, an accident; here at half of the height.
All functions take and return uint8 (H, W, 3); none changes its argument.
"""

import random

import cv2
import numpy as np

CHANGED = 20  # pixels of the diff mask that a fake must keep, the winner's setting
TRIES = 5
OUTLINE_POINTS = 40


def landmark_cutout(
    image: np.ndarray, landmarks: np.ndarray, rng: random.Random
) -> np.ndarray:
    """Black out the eyes (p 1/2), the mouth (1/4), the nose (1/8) or nothing (1/8). landmarks: (5, 2) x, y in pixels."""
    left_eye, right_eye, nose, mouth_left, mouth_right = landmarks.astype(float)
    eyes_apart = np.linalg.norm(left_eye - right_eye)
    if rng.random() > 0.5:
        return _black_line(image, left_eye, right_eye, int(eyes_apart // 4))
    if rng.random() > 0.5:
        return _black_line(
            image,
            mouth_left,
            mouth_right,
            int(np.linalg.norm(mouth_left - mouth_right) // 3),
        )
    if rng.random() > 0.5:
        return _black_line(
            image, nose, (left_eye + right_eye) / 2, int(eyes_apart // 4)
        )
    return image


def hull_cutout(
    image: np.ndarray, landmarks: np.ndarray | None, rng: random.Random
) -> np.ndarray:
    """Black out the upper, lower, left or right half of the face's outline."""
    height, width = image.shape[:2]
    mask = np.zeros((height, width), np.uint8)
    outline = face_outline(landmarks, height, width)
    cv2.fillPoly(mask, [np.round(outline).astype(np.int32)], 1)
    x, y = np.clip(outline.mean(axis=0).astype(int), 0, (width, height))
    half = rng.choice((np.s_[:y, :], np.s_[y:, :], np.s_[:, :x], np.s_[:, x:]))
    mask[half] = 0
    return image * (mask == 0)[..., None]


def half_cutout(
    image: np.ndarray, diff: np.ndarray, is_fake: bool, rng: random.Random
) -> np.ndarray:
    """Black out half of the image: top, bottom, left, right or two opposite quarters.

    diff: (H, W) uint8, what step 4 wrote. For a fake a half is taken only where more than `CHANGED` changed pixels
    stay; after `TRIES` draws the image is left as it is.
    """
    masks = half_masks(*image.shape[:2])
    for _ in range(TRIES):
        mask = rng.choice(masks)
        if not is_fake or np.count_nonzero(diff * mask) > CHANGED:
            return image * mask[..., None]
    return image


def half_masks(height: int, width: int) -> list[np.ndarray]:
    """Six masks (H, W) uint8, 1 where the image stays."""
    upper = np.zeros((height, width), bool)
    left = upper.copy()
    upper[: height // 2], left[:, : width // 2] = True, True
    quarters = upper == left
    return [
        mask.astype(np.uint8)
        for mask in (upper, ~upper, left, ~left, quarters, ~quarters)
    ]


def face_outline(landmarks: np.ndarray | None, height: int, width: int) -> np.ndarray:
    """The face's outline (OUTLINE_POINTS, 2) in pixels of its crop.

    With landmarks: an ellipse in the coordinates of the vector from eye to eye and the vector from the eyes to the mouth.
    On the demo's portrait the brows lie 0.4 of the latter above the eyes, the chin 2.25 below, and each cheek 1.05 of
    the former from the middle; these three numbers set the ellipse.
    """
    angles = np.linspace(0, 2 * np.pi, OUTLINE_POINTS, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    if landmarks is None:  # the face's box is 1 of the 1 + 2/3 that the crop rule cuts
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
    """Black out a line of thickness 2 widened by `radius` pixels in city-block distance."""
    mask = np.zeros(image.shape[:2], np.uint8)
    cv2.line(
        mask, tuple(int(v) for v in start), tuple(int(v) for v in end), 1, thickness=2
    )
    if radius > 0:
        reach = np.abs(np.arange(-radius, radius + 1))
        mask = cv2.dilate(
            mask, (reach[:, None] + reach <= radius).astype(np.uint8), borderValue=0
        )
    return image * (mask == 0)[..., None]
