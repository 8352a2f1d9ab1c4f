"""Cutouts against slow versions and by hand."""

import random

import cv2
import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from training.cutout import (
    MIN_CHANGED_PIXELS,
    face_outline,
    half_cutout,
    half_masks,
    hull_cutout,
    landmark_cutout,
)

LANDMARKS = np.array([(41, 74), (75, 72), (58, 91), (46, 111), (75, 109)], np.int16)
WHITE = np.full((166, 121, 3), 255, np.uint8)


def black(image):
    return (image == 0).all(axis=-1)


def slow_line(start, end, radius):
    """The winner's method: a line, dilated `radius` times with a 4-neighbourhood."""
    line = cv2.line(np.zeros(WHITE.shape[:2], np.uint8), start, end, 1, thickness=2)
    return binary_dilation(line, iterations=radius)


def test_landmarks_are_cut_as_the_slow_way_cuts_them_and_as_often():
    eyes = slow_line((41, 74), (75, 72), 34 // 4)
    mouth = slow_line((46, 111), (75, 109), 29 // 3)
    nose = slow_line((58, 91), (58, 73), 34 // 4)
    masks = (eyes, mouth, nose, np.zeros_like(eyes))
    counts = [0, 0, 0, 0]
    for seed in range(4000):
        cut = black(landmark_cutout(WHITE, LANDMARKS, random.Random(seed)))
        (which,) = [i for i, mask in enumerate(masks) if np.array_equal(cut, mask)]
        counts[which] += 1
    # 1/2, 1/4, 1/8, 1/8 of 4000, within four standard deviations
    differences = np.abs(np.array(counts) - (2000, 1000, 500, 500))
    assert differences.max() < 4 * np.sqrt(4000 * 0.25)


def test_the_hulls_halves_make_up_the_outline():
    outline = face_outline(LANDMARKS, *WHITE.shape[:2])
    filled = np.zeros(WHITE.shape[:2], np.uint8)
    cv2.fillPoly(filled, [np.round(outline).astype(np.int32)], 1)
    filled = filled > 0
    masks = {
        black(hull_cutout(WHITE, LANDMARKS, random.Random(seed))).tobytes()
        for seed in range(50)
    }
    halves = [np.frombuffer(mask, bool).reshape(filled.shape) for mask in masks]
    assert len(halves) == 4
    for half in halves:
        assert 0.3 < half.sum() / filled.sum() < 0.7 and not (half & ~filled).any()
    np.testing.assert_array_equal(np.sum(halves, axis=0), 2 * filled)


@pytest.mark.parametrize("turn", [0, 20, -35])
def test_the_outline_holds_the_face_and_turns_with_it(turn):
    matrix = cv2.getRotationMatrix2D((60, 83), turn, 1.0)
    turned = LANDMARKS @ matrix[:, :2].T + matrix[:, 2]
    outline = face_outline(turned, 166, 121).astype(np.float32)
    assert all(
        cv2.pointPolygonTest(outline, tuple(point), False) > 0
        for point in turned.astype(float)
    )
    expected = face_outline(LANDMARKS, 166, 121) @ matrix[:, :2].T + matrix[:, 2]
    np.testing.assert_allclose(outline, expected, atol=1e-3)


def test_without_landmarks_the_outline_is_the_middle_three_fifths():
    outline = face_outline(None, 200, 100)
    np.testing.assert_allclose(
        [outline.min(axis=0), outline.max(axis=0)], [(20, 40), (80, 160)]
    )


def test_half_masks_by_hand():
    masks = [mask.tolist() for mask in half_masks(2, 4)]
    assert masks == [
        [[1, 1, 1, 1], [0, 0, 0, 0]],
        [[0, 0, 0, 0], [1, 1, 1, 1]],
        [[1, 1, 0, 0], [1, 1, 0, 0]],
        [[0, 0, 1, 1], [0, 0, 1, 1]],
        [[1, 1, 0, 0], [0, 0, 1, 1]],
        [[0, 0, 1, 1], [1, 1, 0, 0]],
    ]


def test_a_fake_keeps_what_was_changed():
    diff = np.zeros(WHITE.shape[:2], np.uint8)
    diff[:5, :5] = 200  # 25 changed pixels, all in the upper left quarter
    for seed in range(200):
        kept = ~black(half_cutout(WHITE, diff, True, random.Random(seed)))
        assert kept[:5, :5].all() and (diff[kept] > 0).sum() > MIN_CHANGED_PIXELS
    # without a changed pixel a fake is not cut, a real crop is
    unchanged = np.zeros_like(diff)
    assert not black(half_cutout(WHITE, unchanged, True, random.Random(0))).any()
    assert all(
        black(half_cutout(WHITE, unchanged, False, random.Random(seed))).any()
        for seed in range(50)
    )
    assert WHITE.min() == 255  # no function modified its argument


def test_the_winners_hull_of_68_landmarks_by_hand():
    """Jaw and brows as a polygon, halves split at the centroid of its pixels."""
    points = np.zeros((68, 2), np.int16)
    points[:17] = [(20 + 5 * n, 40 + 30 * np.sin(np.pi * n / 16)) for n in range(17)]
    points[17:27] = [(100 - 8 * (9 - n), 30) for n in range(10)]
    points[27:] = (60, 20)  # inside or not, the others do not count
    jaw_and_brows = [*points[:17], *points[26:16:-1]]
    inside = np.zeros((100, 120), bool)
    for y in range(100):
        for x in range(120):
            for (x1, y1), (x2, y2) in zip(
                jaw_and_brows, jaw_and_brows[1:] + jaw_and_brows[:1]
            ):
                if (y1 > y) != (y2 > y) and x < (x2 - x1) * (y - y1) / (y2 - y1) + x1:
                    inside[y, x] = not inside[y, x]
    centre_y, centre_x = (int(axis.mean()) for axis in np.nonzero(inside))
    image = np.full((100, 120, 3), 255, np.uint8)
    found = set()
    for seed in range(60):
        dark = hull_cutout(image, points, random.Random(seed))[..., 0] == 0
        halves = {
            "top": np.s_[:centre_y, :],
            "bottom": np.s_[centre_y:, :],
            "left": np.s_[:, :centre_x],
            "right": np.s_[:, centre_x:],
        }
        for name, half in halves.items():
            expected = np.zeros_like(inside)
            expected[half] = inside[half]
            # skimage's polygon has its border's pixels too
            if (dark != expected).sum() < 120:
                found.add(name)
                break
        else:
            raise AssertionError(f"seed {seed} is no half")
    assert found == {"top", "bottom", "left", "right"}
