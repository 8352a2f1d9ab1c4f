"""The winner's augmentation list, with what each transform did in his version of albumentations, 1.0.0.

Most of it is albumentations 2.0.8, each setting made to do what it did then. Four transforms did something else then that
no setting brings back, and are written out here. docs/fidelity.md compares all of them with 1.0.0.

albumentations calls home when it is imported unless NO_ALBUMENTATIONS_UPDATE is set, so it is imported in here only,
after setting it.
"""

import math
import os
import random
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np

from preprocessing.crops import pad_to_square, resize_longest_side


class TrainingTransform:
    """Augments a crop (h, w, 3) uint8 RGB and gives (size, size, 3) uint8 RGB. The same seed gives the same image."""

    def __init__(self, size: int):
        self._compose = self._make(size)

    @property
    def steps(self) -> list:
        """The transforms in order, each called with `image=` and holding its probability `p`."""
        return self._compose.transforms

    def seed(self, seed: int) -> None:
        """Let all that is random from here on follow from `seed`."""
        self._rng = np.random.default_rng(seed)
        # not `set_random_seed`: that gives each transform the same stream, and all decisions become one
        self._compose.set_random_state(self._rng, random.Random(seed))

    def __call__(self, image: np.ndarray, seed: int) -> np.ndarray:
        self.seed(seed)
        return self._compose(image=image)["image"]

    def _apply(self, function: Callable, image: np.ndarray, **_: object) -> np.ndarray:
        return function(image, self._rng)

    def _make(self, size: int):
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
        import albumentations as A

        def ours(function: Callable, p: float):
            return A.Lambda(image=partial(self._apply, function), p=p)

        def resize(down: int, up: int):
            return A.Lambda(
                image=partial(resize_longest_side, size=size, down=down, up=up), p=1
            )

        # 1.0.0 left sigma to OpenCV, whose 3-pixel kernel is (1, 2, 1) / 4; this sigma gives that kernel
        sigma = 1 / math.sqrt(2 * math.log(2))
        return A.Compose(
            [
                A.ImageCompression(quality_range=(60, 100), p=0.5),
                ours(gauss_noise, p=0.1),
                A.GaussianBlur(blur_limit=(3, 3), sigma_limit=(sigma, sigma), p=0.05),
                A.HorizontalFlip(p=0.5),
                A.OneOf(
                    [
                        resize(cv2.INTER_AREA, cv2.INTER_CUBIC),
                        resize(cv2.INTER_AREA, cv2.INTER_LINEAR),
                        resize(cv2.INTER_LINEAR, cv2.INTER_LINEAR),
                    ],
                    p=1,
                ),
                A.PadIfNeeded(
                    min_height=size,
                    min_width=size,
                    border_mode=cv2.BORDER_CONSTANT,
                    fill=0,
                ),
                A.OneOf(
                    [
                        A.RandomBrightnessContrast(
                            brightness_limit=0.2, contrast_limit=0.2, p=0.5
                        ),
                        ours(fancy_pca, p=0.5),
                        ours(hue_saturation_value, p=0.5),
                    ],
                    p=0.7,
                ),
                A.ToGray(p=0.2),
                ours(shift_scale_rotate, p=0.5),
            ]
        )


def plain_transform(image: np.ndarray, size: int) -> np.ndarray:
    """What validation and inference do to a crop: resize its longer side, centre on black. (size, size, 3) uint8."""
    return pad_to_square(resize_longest_side(image, size), size)


def gauss_noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise, its variance drawn evenly from 10..50 grey levels squared; the sum is cut to whole levels.

    2.0.8 cuts the noise before it adds it, which makes it weaker and leaves twice as many pixels as they were.
    """
    deviation = math.sqrt(rng.uniform(10, 50))
    return np.clip(image + rng.normal(0, deviation, image.shape), 0, 255).astype(
        np.uint8
    )


def fancy_pca(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shift each channel of an image (h, w, 3) uint8 by a constant that follows from its colours' principal components.

    Method: Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks" (2012), with one draw of
    standard deviation 0.1 for all components, and with an accident of 1.0.0: it took the matrix of components transposed,
    so that a channel is shifted by its component's entries, not by its own. 2.0.8 scales colours instead.
    """
    values, components = np.linalg.eigh(
        np.cov(image.reshape(-1, 3).astype(float) / 255, rowvar=False)
    )
    values, components = values[::-1], components[:, ::-1]
    shift = 255 * rng.normal(0, 0.1) * (components.T @ values)
    return np.clip(image + shift, 0, 255).astype(np.uint8)


def hue_saturation_value(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shift hue by up to 20 (of 180), saturation by up to 30 and value by up to 20 (of 255), grey pixels as all others.

    2.0.8 leaves grey pixels grey; in 2020 the black padding, too, became coloured.
    """
    hue, saturation, value = np.moveaxis(
        cv2.cvtColor(image, cv2.COLOR_RGB2HSV).astype(float), 2, 0
    )
    hue = (hue + rng.uniform(-20, 20)) % 180
    saturation = np.clip(saturation + rng.uniform(-30, 30), 0, 255)
    value = np.clip(value + rng.uniform(-20, 20), 0, 255)
    return cv2.cvtColor(
        np.stack([hue, saturation, value], axis=2).astype(np.uint8), cv2.COLOR_HSV2RGB
    )


def shift_scale_rotate(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Move by up to a tenth of each side, scale by 0.8..1.2, turn by up to 10 degrees around the centre; black beyond.

    2.0.8 moves by whole pixels only.
    """
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(
        (width / 2, height / 2), rng.uniform(-10, 10), rng.uniform(0.8, 1.2)
    )
    matrix[:, 2] += rng.uniform(-0.1, 0.1, 2) * (width, height)
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR)
