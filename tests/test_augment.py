import os
import random
import subprocess
import sys

import cv2
import numpy as np
import pytest

from training.augment import TrainingTransform, plain_transform


@pytest.fixture(scope="module")
def crop(portrait):
    return np.ascontiguousarray(portrait[25:209, 152:297])


def apply_only(transform, kind, image, seeds=range(300)):
    """What one transform of the list, or one kind inside a OneOf, does to an image, when it is applied."""
    step = next(
        step
        for step in transform._compose.transforms
        if kind in (type(step).__name__, type(getattr(step, "transforms", [0])[0]).__name__)
    )
    images = []
    for seed in seeds:
        step.set_random_state(np.random.default_rng(seed), random.Random(seed))
        images.append(step(image=image)["image"])
    return images


def test_same_seed_same_image_other_seed_other_image(crop):
    one, two = TrainingTransform(96), TrainingTransform(96)
    for seed in range(20):
        two(crop, seed + 1000)  # what was done before does not matter
        np.testing.assert_array_equal(one(crop, seed), two(crop, seed))
    assert len({one(crop, seed).tobytes() for seed in range(50)}) > 40  # now and then none is applied
    assert one(crop, 0).shape == (96, 96, 3) and one(crop, 0).dtype == np.uint8


def test_transforms_decide_apart_from_each_other(crop):
    """Were all to share one stream, an image that is made grey (p 0.2) would always be turned or shifted too (p 0.5)."""
    transform = TrainingTransform(96)
    images = [transform(crop, seed) for seed in range(400)]
    grey = np.array([np.ptp(image.astype(int), axis=2).max() == 0 for image in images])
    # the crop is taller than wide: without a shift the outer columns are the padding's black
    still = np.array([image[:, :8].max() == 0 and image[0, 20:76].max() > 0 for image in images])
    assert 0.12 < grey.mean() < 0.28
    assert abs(still[grey].mean() - still[~grey].mean()) < 0.2


def test_noise_has_the_standard_deviation_of_2020(crop):
    """Variance drawn evenly from 10..50: deviations from 3.16 to 7.07 grey levels, 5.37 in the mean; p 0.1."""
    flat = np.full((200, 200, 3), 128, np.uint8)
    images = apply_only(TrainingTransform(96), "GaussNoise", flat, range(3000))
    deviations = np.array([(image.astype(float) - 128).std() for image in images if (image != flat).any()])
    assert abs(len(deviations) / 3000 - 0.1) < 4 * np.sqrt(0.09 / 3000)
    assert deviations.min() > 3.1 and deviations.max() < 7.15
    assert abs(deviations.mean() - 5.37) < 4 * 1.1 / np.sqrt(len(deviations))


def test_blur_is_opencvs_three_pixel_kernel(crop):
    images = apply_only(TrainingTransform(96), "GaussianBlur", crop, range(1000))
    blurred = [image for image in images if (image != crop).any()]
    assert 20 < len(blurred) < 85  # p 0.05
    expected = cv2.GaussianBlur(crop, (3, 3), 0).astype(int)
    assert max(np.abs(image - expected).max() for image in blurred) <= 1


def test_jpeg_quality_runs_from_60_to_100(crop):
    """Each compressed image equals the crop at one quality, all of them between 60 and 100; half are compressed."""

    def compressed(quality):  # 1.0.0 gave the encoder RGB for BGR, and so does 2.0.8
        data = cv2.imencode(".jpg", crop, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        return cv2.imdecode(data, cv2.IMREAD_COLOR).tobytes()

    qualities = {compressed(quality): quality for quality in range(40, 101)}
    images = apply_only(TrainingTransform(96), "ImageCompression", crop, range(1000))
    seen = [qualities.get(image.tobytes(), -1) for image in images if (image != crop).any()]
    assert 420 < len(seen) < 580
    assert min(seen) in (60, 61) and max(seen) in (99, 100) and abs(np.mean(seen) - 80) < 4 * 12 / np.sqrt(500)


def test_shift_scale_and_turn_stay_in_their_ranges():
    """A white square on black, 96 px: its centre moves by at most a tenth, its side by a fifth, its turn by 10 degrees."""
    image = np.zeros((96, 96, 3), np.uint8)
    image[38:58, 38:58] = 255
    moved, sides, turns = [], [], []
    for result in apply_only(TrainingTransform(96), "Affine", image, range(1000)):
        if (result == image).all():
            continue
        points = np.argwhere(result[..., 0] > 127)[:, ::-1].astype(np.float32)
        (centre, size, angle) = cv2.minAreaRect(points)
        moved.append(np.array(centre) - 47.5)
        sides.append(np.sqrt(size[0] * size[1]) + 1)
        turns.append((angle + 45) % 90 - 45)
    assert 420 < len(moved) < 580  # p 0.5
    assert np.abs(moved).max() < 10.6 and np.abs(moved).max() > 8.5
    assert 15 < min(sides) < 17.5 and 22.5 < max(sides) < 25.5
    assert np.abs(turns).max() < 14 and np.std(turns) > 3


def test_plain_transform_is_resize_and_padding(crop):
    image = plain_transform(crop, 64)
    assert image.shape == (64, 64, 3) and image[:, :7].max() == 0
    expected = cv2.resize(crop, (50, 64), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(image[:, 7:57], expected)


def test_importing_does_not_call_home():
    """The library is imported only when a transform is made, and with its version check switched off."""
    code = "import sys, os, training.augment as a; assert 'albumentations' not in sys.modules; a.TrainingTransform(64); print(os.environ['NO_ALBUMENTATIONS_UPDATE'])"
    environment = {key: value for key, value in os.environ.items() if key != "NO_ALBUMENTATIONS_UPDATE"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert result.stdout.strip() == "1", result.stderr
