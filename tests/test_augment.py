"""Training and validation transforms: randomness, parameter ranges, albumentations."""

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
    """Apply one transform of the list with many seeds.

    Returns: the results that differ from the image, uint8 (N, h, w, 3).
    """
    transform = TrainingTransform(96)
    results = apply(transform, transform.steps[step], [image] * seeds)
    return np.array([result for result in results if (result != image).any()])


def test_same_seed_same_image_other_seed_other_image(crop):
    one, two = TrainingTransform(96), TrainingTransform(96)
    for seed in range(20):
        two(crop, seed + 1000)  # earlier calls do not matter
        np.testing.assert_array_equal(one(crop, seed), two(crop, seed))
    # sometimes no transform is applied
    assert len({one(crop, seed).tobytes() for seed in range(50)}) > 40
    assert one(crop, 0).shape == (96, 96, 3) and one(crop, 0).dtype == np.uint8


def test_transforms_decide_apart_from_each_other(crop):
    """Each transform has a random stream of its own.

    With one common stream, every grey image (p 0.2) would also be shifted, scaled and
    rotated (p 0.5).
    """
    transform = TrainingTransform(96)
    images = [transform(crop, seed) for seed in range(400)]
    grey = np.array([np.ptp(image.astype(int), axis=2).max() == 0 for image in images])
    # the crop is taller than wide: without a shift the outer columns are black padding
    still = np.array(
        [image[:, :8].max() == 0 and image[0, 20:76].max() > 0 for image in images]
    )
    assert 0.12 < grey.mean() < 0.28
    assert abs(still[grey].mean() - still[~grey].mean()) < 0.2


def test_noise_has_the_standard_deviation_of_2020():
    """Variance uniform in 10..50 grey levels squared, so deviations 3.16 to 7.07.

    The mean deviation is 5.37. Truncation shifts the mean of the noise by -0.5.
    """
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
    """Half of the images are compressed, each at a single quality from 60 to 100."""

    # albumentations 1.0.0 and 2.0.8 pass RGB to the encoder, which expects BGR
    def compressed(quality):
        data = cv2.imencode(".jpg", crop, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        return cv2.imdecode(data, cv2.IMREAD_COLOR).tobytes()

    qualities = {compressed(quality): quality for quality in range(40, 101)}
    found = [qualities.get(image.tobytes(), -1) for image in changed(JPEG, crop)]
    assert 420 < len(found) < 580
    assert min(found) in (60, 61) and max(found) in (99, 100)
    assert abs(np.mean(found) - 80) < 4 * 12 / np.sqrt(500)


def test_pca_shifts_by_hand():
    """Only red varies, with variance v, so the first component is (1, 0, 0).

    Red is shifted by 255 a v, the other channels not at all.
    """
    image = np.full((4, 4, 3), 100, np.uint8)
    image[::2, :, 0] = 200
    variance = ((50 / 255) ** 2) * 16 / 15
    draws = np.random.default_rng(3).normal(0, 0.1)
    shift = fancy_pca(image, np.random.default_rng(3)).astype(int) - image
    assert (shift[..., 0] == np.floor(255 * draws * variance)).all()
    assert not shift[..., 1:].any() and shift.any()


def test_the_frames_of_a_clip_shift_by_the_same_colour():
    """Also where the principal components of a frame are others."""
    frames = [np.full((20, 20, 3), 125, np.uint8) for _ in range(2)]
    for channel, frame in enumerate(frames):
        frame[::2, :, channel], frame[1::2, :, channel] = 40, 210
    seed = next(n for n in range(99) if np.random.default_rng(n).normal() > 1.5)
    own, shifted = (
        fancy_pca(frames[1], np.random.default_rng(seed), coloured).astype(int)
        for coloured in (None, frames[0])
    )
    first = fancy_pca(frames[0], np.random.default_rng(seed)).astype(int)
    np.testing.assert_array_equal(shifted - frames[1], first - frames[0])
    assert (own != shifted).any()
    transform, differ = TrainingTransform(96), 0
    for number in range(60):
        one, two = transform.clip(frames, number)
        np.testing.assert_array_equal(one, transform(frames[0], number))
        differ += (two != transform(frames[1], number)).any()
    assert 0 < differ < 30  # PCA has a probability of 0.7 / 6


def test_hue_shifts_by_hand():
    """One draw each for hue, saturation and value.

    Black becomes coloured as well, as in albumentations 1.0.0.
    """
    image = np.zeros((2, 2, 3), np.uint8)
    image[0] = 200, 100, 100  # hue 0, saturation 127.5, value 200
    rng = np.random.default_rng(4)
    hue, saturation = rng.uniform(-20, 20), rng.uniform(-30, 30)
    value = rng.uniform(-20, 20)
    result = hue_saturation_value(image, np.random.default_rng(4)).astype(float)
    for pixel, (s, v) in ((result[0, 0], (127.5, 200)), (result[1, 0], (0, 0))):
        rgb = colorsys.hsv_to_rgb(
            hue % 180 / 180, max(s + saturation, 0) / 255, max(v + value, 0) / 255
        )
        np.testing.assert_allclose(pixel, np.multiply(255, rgb), atol=2.5)


def test_shift_scale_and_turn_stay_in_their_ranges():
    """Shift by a tenth, scale by a fifth, rotation by 10 degrees; the border is black.

    The parameters are recovered from an image of its own coordinates.
    """
    moves = np.array(
        [affine(image) for image in changed(GEOMETRY, coordinates())], float
    )
    assert 420 < len(moves) < 580  # p 0.5
    for values, low, high in zip(moves.T, (0.8, -10, -0.1, -0.1), (1.2, 10, 0.1, 0.1)):
        margin = (high - low) / 50
        assert low - margin / 10 < values.min() < low + margin
        assert high - margin < values.max() < high + margin / 10
        tolerance = 4 * (high - low) / np.sqrt(12 * len(moves))
        assert abs(values.mean() - (low + high) / 2) < tolerance
    assert np.nanmax(moves[:, 4]) == 0


@pytest.mark.slow
def test_every_figure_agrees_with_albumentations_1_0_0():
    """Against a recording of albumentations 1.0.0 on the same crops of the portrait.

    benchmarks/augmentation.py documents how it was recorded.
    """
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
    """albumentations is imported by the first transform, without its version check."""
    code = (
        "import sys, os, training.augment as a\n"
        "assert 'albumentations' not in sys.modules\n"
        "a.TrainingTransform(64)\n"
        "print(os.environ['NO_ALBUMENTATIONS_UPDATE'])"
    )
    environment = dict(os.environ)
    environment.pop("NO_ALBUMENTATIONS_UPDATE", None)
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert result.stdout.strip() == "1", result.stderr
