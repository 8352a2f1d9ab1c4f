"""The vectorised cascade against facenet-pytorch's, which is slow and simple."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from facenet_pytorch import MTCNN

from preprocessing.faces import (
    INFERENCE_THRESHOLDS,
    LANDMARK_THRESHOLDS,
    MIN_FACE_SIZE,
    TRAINING_THRESHOLDS,
)
from preprocessing.mtcnn import Cascade, IntegralImages, MaxPool, PReLU, _pyramid_scales


@pytest.fixture(scope="module")
def cascade():
    return Cascade("cpu")


@pytest.fixture(scope="module")
def frames(portrait):
    """Six frames (256, 448, 3): two faces that move, shrink and darken; noise."""
    rng, frames = np.random.default_rng(0), []
    for step in range(5):
        frame = rng.integers(0, 60, (256, 448, 3), dtype=np.uint8)
        large = portrait[step * 9 : step * 9 + 256, 90 + step : 346 + step]
        frame[:, :256] = large // (1 + step // 3)
        small = portrait[: 512 - step * 20 : 2, :360:2]
        frame[: len(small), 268 : 268 + small.shape[1]] = small
        frames.append(frame)
    return [*frames, rng.integers(0, 255, (256, 448, 3), dtype=np.uint8)]


def theirs(images, thresholds):
    """facenet-pytorch's boxes, probabilities and landmarks, (K, 15) for each image.

    The images are one batch.
    """
    mtcnn = MTCNN(
        margin=0, min_face_size=MIN_FACE_SIZE, thresholds=list(thresholds), device="cpu"
    )
    rows = []
    for boxes, scores, points in zip(*mtcnn.detect(np.stack(images), landmarks=True)):
        if boxes is None:
            rows.append(np.zeros((0, 15)))
        else:
            scores, points = np.reshape(scores, (-1, 1)), np.reshape(points, (-1, 10))
            rows.append(np.hstack([boxes, scores, points]))
    return rows


def assert_same(found, expected):
    for (boxes, points), rows in zip(found, expected, strict=True):
        ours, theirs = np.hstack([boxes, points.reshape(-1, 10)]), rows.astype(float)
        assert len(ours) == len(theirs)
        np.testing.assert_allclose(
            ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)], atol=2e-3
        )


@pytest.mark.parametrize(
    "thresholds",
    [TRAINING_THRESHOLDS, INFERENCE_THRESHOLDS, LANDMARK_THRESHOLDS, (0.4, 0.4, 0.4)],
)
def test_boxes_equal_facenet_alone_and_together(cascade, frames, thresholds):
    alone = [theirs([frame], thresholds)[0] for frame in frames]
    assert sum(map(len, alone)) >= 8
    assert_same(cascade(frames, thresholds, MIN_FACE_SIZE, batched_nms=False), alone)
    assert_same(
        cascade(frames, thresholds, MIN_FACE_SIZE, batched_nms=True),
        theirs(frames, thresholds),
    )


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_nothing_left_after_any_stage_is_an_empty_answer(cascade, frames, stage):
    thresholds = [0.6, 0.7, 0.7]
    thresholds[stage] = 1 - 1e-9
    assert_same(
        cascade(frames[:2], thresholds, MIN_FACE_SIZE, batched_nms=False),
        [np.zeros((0, 15))] * 2,
    )


def test_images_of_different_sizes_are_as_each_alone(cascade, frames, portrait):
    images = [
        frames[0],
        portrait[:301, 100:333],
        frames[1][:40, :30],
        portrait[::3, ::3],
    ]
    images = [np.ascontiguousarray(image) for image in images]
    expected = [theirs([image], LANDMARK_THRESHOLDS)[0] for image in images]
    assert_same(
        cascade(images, LANDMARK_THRESHOLDS, MIN_FACE_SIZE, batched_nms=False), expected
    )


def test_shrinking_equals_area_interpolation_bit_for_bit(portrait):
    images = [
        np.ascontiguousarray(portrait[:301, :233]),
        np.ascontiguousarray(portrait[100:401, 100:333]),
    ]
    integral_images = IntegralImages(images, torch.device("cpu"))
    plain = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()
    for scale in _pyramid_scales(301, 233, MIN_FACE_SIZE):
        expected = F.interpolate(
            plain, (int(301 * scale + 1), int(233 * scale + 1)), mode="area"
        )
        assert torch.equal(
            integral_images.downscale([0, 1], scale), (expected - 127.5) * 0.0078125
        )
    boxes = torch.tensor(
        [
            (1.0, 1, 24, 24),
            (10.7, 20.2, 95.9, 120.1),
            (-9, 250, 60, 330),
            (5, 5, 6, 6),
            (99, 9, 98, 20),  # is empty
        ]
    )
    owners = torch.tensor([0, 1, 0, 1, 1])
    kept, kept_owners, chunks = integral_images.crop_and_resize(
        boxes, owners, 24, chunk_size=2
    )
    assert len(kept) == 4 and kept_owners.tolist() == [0, 1, 0, 1]
    for (x1, y1, x2, y2), owner, crop in zip(
        boxes.int().tolist(), kept_owners, torch.cat(chunks)
    ):
        rows = slice(max(y1, 1) - 1, min(y2, 301))
        columns = slice(max(x1, 1) - 1, min(x2, 233))
        window = plain[owner : owner + 1, :, rows, columns]
        resized = F.interpolate(window, (24, 24), mode="area")[0]
        assert torch.equal(crop, (resized - 127.5) * 0.0078125)


def test_sums_that_wrap_around_are_right():
    white = np.full((2100, 4100, 3), 255, np.uint8)  # more than 2^31 in sum
    integral_images = IntegralImages([white], torch.device("cpu"))
    assert (integral_images.downscale([0], 0.02) == (255 - 127.5) * 0.0078125).all()


@pytest.mark.parametrize(
    "size, height, width", [(2, 7, 9), (2, 8, 4), (3, 22, 9), (3, 21, 46), (3, 4, 4)]
)
def test_pooling_and_prelu_equal_pytorchs(size, height, width):
    images = torch.randn(
        2, 5, height, width, generator=torch.Generator().manual_seed(size)
    )
    slopes = torch.tensor([-1.2, 0.3, 0, 1.5, 1])
    assert torch.equal(
        MaxPool(size)(images), F.max_pool2d(images, size, 2, ceil_mode=True)
    )
    assert torch.equal(PReLU(slopes)(images), F.prelu(images, slopes))
