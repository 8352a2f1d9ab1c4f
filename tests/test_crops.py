"""Crop geometry, resizing, padding and PNG files."""

import cv2
import numpy as np
import pytest

from preprocessing.crops import (
    crop_face,
    full_resolution_box,
    pad_to_square,
    read_image,
    resize_longest_side,
    write_image,
)
from runtime.cli import UserError


def slow_crop(frame, box):
    """Double the box, truncate, add a third on each side, clip to the frame."""
    x1, y1, x2, y2 = [int(2 * v) for v in box]
    third_x, third_y = (x2 - x1) // 3, (y2 - y1) // 3
    rows = [y for y in range(frame.shape[0]) if y1 - third_y <= y < y2 + third_y]
    columns = [x for x in range(frame.shape[1]) if x1 - third_x <= x < x2 + third_x]
    return frame[np.ix_(rows, columns)]


def test_crop_equals_the_slow_version():
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
    empty = 0
    for _ in range(300):
        x, y = rng.uniform(-30, 60, 2)
        box = (x, y, x + rng.uniform(1, 40), y + rng.uniform(1, 40))
        expected = slow_crop(frame, box)
        crop = crop_face(frame, box)
        assert crop.size == expected.size
        empty += crop.size == 0
        if crop.size:
            np.testing.assert_array_equal(crop, expected)
    assert 0 < empty < 300


def test_box_is_truncated_toward_zero():
    assert full_resolution_box((10.4, 10.6, -0.4, 20.99)) == (20, 21, 0, 41)


@pytest.mark.parametrize(
    "shape, size, expected",
    [
        ((200, 100), 50, (50, 25)),
        ((100, 200), 50, (25, 50)),
        ((99, 70), 380, (380, 268)),
        ((380, 33), 380, (380, 33)),
        ((1000, 1), 50, (50, 1)),
        ((7, 7), 64, (64, 64)),
    ],
)
def test_longest_side(shape, size, expected):
    image = np.zeros((*shape, 3), np.uint8)
    assert resize_longest_side(image, size).shape == (*expected, 3)


def test_resize_shrinks_by_area_and_enlarges_by_cubic():
    image = np.random.default_rng(1).integers(0, 256, (40, 20, 3), dtype=np.uint8)
    means = image.reshape(20, 2, 10, 2, 3).mean(axis=(1, 3))
    assert np.abs(resize_longest_side(image, 20).astype(float) - means).max() <= 0.5
    enlarged = cv2.resize(image, (40, 80), interpolation=cv2.INTER_CUBIC)
    np.testing.assert_array_equal(resize_longest_side(image, 80), enlarged)


def test_padding_is_black_and_centred():
    image = np.full((4, 7, 3), 9, np.uint8)
    square = pad_to_square(image, 8)
    assert square[2:6, 0:7].min() == 9 and square.sum() == image.sum()


def test_png_keeps_every_pixel_and_bad_files_are_named(tmp_path):
    image = np.random.default_rng(2).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    write_image(tmp_path / "a.png", image)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), image)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "a.png"))[..., ::-1], image)
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no image")
    for name in ("empty.png", "text.png", "none.png"):
        with pytest.raises(UserError, match=name):
            read_image(tmp_path / name)
