import colorsys
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.augmentation import (
    BLUR,
    GEOMETRY,
    JPEG,
    NOISE,
    SIZE,
    affine,
    apply,
    compare,
    coordinates,
    digests,
    measure,
    portrait_crops,
)
from training.augment import (
    TrainingTransform,
    fancy_pca,
    hue_saturation_value,
    plain_transform,
)


@pytest.fixture(scope="module")
def crop(portrait):
    return np.ascontiguousarray(portrait[25:209, 152:297])


def changed(step, image, seeds=1000):
    """What one transform of the list makes of an image where it is applied: uint8 (N, h, w, 3)."""
    transform = TrainingTransform(96)
    results = apply(transform, transform.steps[step], [image] * seeds)
    return np.array([result for result in results if (result != image).any()])


def test_same_seed_same_image_other_seed_other_image(crop):
    one, two = TrainingTransform(96), TrainingTransform(96)
    for seed in range(20):
        two(crop, seed + 1000)  # what was done before does not matter
        np.testing.assert_array_equal(one(crop, seed), two(crop, seed))
    assert (
        len({one(crop, seed).tobytes() for seed in range(50)}) > 40
    )  # now and then none is applied
    assert one(crop, 0).shape == (96, 96, 3) and one(crop, 0).dtype == np.uint8


def test_transforms_decide_apart_from_each_other(crop):
    """Were all to share one stream, an image that is made grey (p 0.2) would always be turned or shifted too (p 0.5)."""
    transform = TrainingTransform(96)
    images = [transform(crop, seed) for seed in range(400)]
    grey = np.array([np.ptp(image.astype(int), axis=2).max() == 0 for image in images])
    # the crop is taller than wide: without a shift the outer columns are the padding's black
    still = np.array(
        [image[:, :8].max() == 0 and image[0, 20:76].max() > 0 for image in images]
    )
    assert 0.12 < grey.mean() < 0.28
    assert abs(still[grey].mean() - still[~grey].mean()) < 0.2


def test_noise_has_the_standard_deviation_of_2020():
    """Variance drawn evenly from 10..50: deviations from 3.16 to 7.07 grey levels, 5.37 in the mean; cut down: -0.5."""
    flat = np.full((200, 200, 3), 128, np.uint8)
    noise = changed(NOISE, flat, 3000).astype(float) - 128
    deviations = noise.std(axis=(1, 2, 3))
    assert abs(len(noise) / 3000 - 0.1) < 4 * np.sqrt(0.09 / 3000)
    assert deviations.min() > 3.1 and deviations.max() < 7.15
    assert abs(deviations.mean() - 5.37) < 4 * 1.1 / np.sqrt(len(deviations))
    assert abs(noise.mean() + 0.5) < 0.01


def test_blur_is_opencvs_three_pixel_kernel(crop):
    blurred = changed(BLUR, crop)
    assert 20 < len(blurred) < 85  # p 0.05
    assert np.abs(blurred.astype(int) - cv2.GaussianBlur(crop, (3, 3), 0)).max() <= 1


def test_jpeg_quality_runs_from_60_to_100(crop):
    """Each compressed image equals the crop at one quality, all of them between 60 and 100; half are compressed."""

    def compressed(quality):  # 1.0.0 gave the encoder RGB for BGR, and so does 2.0.8
        data = cv2.imencode(".jpg", crop, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        return cv2.imdecode(data, cv2.IMREAD_COLOR).tobytes()

    qualities = {compressed(quality): quality for quality in range(40, 101)}
    seen = [qualities.get(image.tobytes(), -1) for image in changed(JPEG, crop)]
    assert 420 < len(seen) < 580
    assert (
        min(seen) in (60, 61)
        and max(seen) in (99, 100)
        and abs(np.mean(seen) - 80) < 4 * 12 / np.sqrt(500)
    )


def test_pca_shifts_by_hand():
    """Red alone varies, with variance v: the first component is (1, 0, 0), so red shifts by 255 a v and nothing else does."""
    image = np.full((4, 4, 3), 100, np.uint8)
    image[::2, :, 0] = 200
    variance = ((50 / 255) ** 2) * 16 / 15
    draws = np.random.default_rng(3).normal(0, 0.1)
    shift = fancy_pca(image, np.random.default_rng(3)).astype(int) - image
    assert (
        (shift[..., 0] == np.floor(255 * draws * variance)).all()
        and not shift[..., 1:].any()
        and shift.any()
    )


def test_hue_shifts_by_hand():
    """One draw each for hue, saturation and value; black becomes coloured as well, as it did in 1.0.0."""
    image = np.zeros((2, 2, 3), np.uint8)
    image[0] = 200, 100, 100  # hue 0, saturation 127.5, value 200
    rng = np.random.default_rng(4)
    hue, saturation, value = (
        rng.uniform(-20, 20),
        rng.uniform(-30, 30),
        rng.uniform(-20, 20),
    )
    result = hue_saturation_value(image, np.random.default_rng(4)).astype(float)
    for pixel, (s, v) in ((result[0, 0], (127.5, 200)), (result[1, 0], (0, 0))):
        red, green, blue = colorsys.hsv_to_rgb(
            hue % 180 / 180, max(s + saturation, 0) / 255, max(v + value, 0) / 255
        )
        np.testing.assert_allclose(
            pixel, np.multiply(255, (red, green, blue)), atol=2.5
        )


def test_shift_scale_and_turn_stay_in_their_ranges():
    """Read back from an image of its own coordinates: shift by a tenth, scale by a fifth, turn by 10 degrees; black."""
    moves = np.array(
        [affine(image) for image in changed(GEOMETRY, coordinates())], float
    )
    assert 420 < len(moves) < 580  # p 0.5
    for values, low, high in zip(moves.T, (0.8, -10, -0.1, -0.1), (1.2, 10, 0.1, 0.1)):
        margin = (high - low) / 50
        assert (
            low - margin / 10 < values.min() < low + margin
            and high - margin < values.max() < high + margin / 10
        )
        assert abs(values.mean() - (low + high) / 2) < 4 * (high - low) / np.sqrt(
            12 * len(moves)
        )
    assert np.nanmax(moves[:, 4]) == 0


@pytest.mark.slow
def test_every_figure_agrees_with_albumentations_1_0_0():
    """Against what 1.0.0 did to the same cuts of the portrait; benchmarks/augmentation.py says how it was recorded."""
    recorded = json.loads(
        (Path(__file__).parent / "augmentation_2020.json").read_text()
    )
    assert recorded["albumentations"] == "1.0.0"
    transform, crops = TrainingTransform(SIZE), portrait_crops(recorded["crops"])
    figures = measure(transform, crops)
    assert figures.keys() == recorded["figures"].keys()
    rows = {
        name: compare(name, recorded["figures"][name], values)
        for name, values in figures.items()
    }
    assert not [row for row, agrees in rows.values() if not agrees]
    assert digests(transform, crops) == recorded["digests"]


def test_plain_transform_is_resize_and_padding(crop):
    image = plain_transform(crop, 64)
    assert image.shape == (64, 64, 3) and image[:, :7].max() == 0
    expected = cv2.resize(crop, (50, 64), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(image[:, 7:57], expected)


def test_importing_does_not_call_home():
    """The library is imported only when a transform is made, and with its version check switched off."""
    code = "import sys, os, training.augment as a; assert 'albumentations' not in sys.modules; a.TrainingTransform(64); print(os.environ['NO_ALBUMENTATIONS_UPDATE'])"
    environment = {
        key: value
        for key, value in os.environ.items()
        if key != "NO_ALBUMENTATIONS_UPDATE"
    }
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert result.stdout.strip() == "1", result.stderr
