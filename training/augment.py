"""The winner's augmentations, as albumentations 1.0.0 (his version) applied them.

Most of them are transforms of albumentations 2.0.8, configured to match 1.0.0. Four
behave differently in 2.0.8 whatever their arguments, and are implemented here.
docs/fidelity.md compares all of them with 1.0.0.

albumentations contacts a server when it is imported, to check for a newer version,
unless NO_ALBUMENTATIONS_UPDATE is set. It is therefore imported only in this module,
after setting that variable.
"""

import math
import os
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import cv2
import numpy as np

from preprocessing.crops import pad_to_square, resize_longest_side

if TYPE_CHECKING:
    import albumentations

ImageFunction = Callable[[np.ndarray, np.random.Generator], np.ndarray]


class TrainingTransform:
    """Augments a crop (h, w, 3) uint8 RGB and returns (size, size, 3) uint8 RGB.

    The same seed gives the same image.
    """

    def __init__(self, size: int):
        self._compose = self._make(size)

    @property
    def steps(self) -> list:
        """The transforms in order.

        Each is called with `image=` and has its probability as attribute `p`.
        """
        return self._compose.transforms

    def seed(self, seed: int) -> None:
        """Seed every random number generator of the transforms."""
        self._coloured: np.ndarray | None = None
        self._rng = np.random.default_rng(seed)
        # Not `set_random_seed`: it gives each transform the same stream of random
        # numbers, so that their decisions are correlated.
        self._compose.set_random_state(self._rng, random.Random(seed))

    def __call__(self, image: np.ndarray, seed: int) -> np.ndarray:
        return self.clip([image], seed)[0]

    def clip(self, images: Sequence[np.ndarray], seed: int) -> list[np.ndarray]:
        """Augment the frames of a clip alike."""
        augmented, coloured = [], None
        for image in images:
            self.seed(seed)
            self._coloured = coloured
            augmented.append(self._compose(image=image)["image"])
            coloured = self._coloured
        return augmented

    def _fancy_pca(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """With the components of a clip's first frame: signs may differ in the next."""
        self._coloured = image if self._coloured is None else self._coloured
        return fancy_pca(image, rng, self._coloured)

    def _apply(
        self, function: ImageFunction, image: np.ndarray, **_: object
    ) -> np.ndarray:
        return function(image, self._rng)

    def _make(self, size: int) -> "albumentations.Compose":
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
        import albumentations as A

        def custom(function: ImageFunction, p: float) -> A.Lambda:
            return A.Lambda(image=partial(self._apply, function), p=p)

        def resize(down: int, up: int) -> A.Lambda:
            function = partial(resize_longest_side, size=size, down=down, up=up)
            return A.Lambda(image=function, p=1)

        # 1.0.0 left sigma to OpenCV, whose 3-pixel kernel is (1, 2, 1) / 4; this sigma
        # gives that kernel.
        sigma = 1 / math.sqrt(2 * math.log(2))
        resize_variants = [
            resize(cv2.INTER_AREA, cv2.INTER_CUBIC),
            resize(cv2.INTER_AREA, cv2.INTER_LINEAR),
            resize(cv2.INTER_LINEAR, cv2.INTER_LINEAR),
        ]
        pad = A.PadIfNeeded(
            min_height=size, min_width=size, border_mode=cv2.BORDER_CONSTANT, fill=0
        )
        colour_variants = [
            A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.5),
            custom(self._fancy_pca, p=0.5),
            custom(hue_saturation_value, p=0.5),
        ]
        return A.Compose(
            [
                A.ImageCompression(quality_range=(60, 100), p=0.5),
                custom(gauss_noise, p=0.1),
                A.GaussianBlur(blur_limit=(3, 3), sigma_limit=(sigma, sigma), p=0.05),
                A.HorizontalFlip(p=0.5),
                A.OneOf(resize_variants, p=1),
                pad,
                A.OneOf(colour_variants, p=0.7),
                A.ToGray(p=0.2),
                custom(shift_scale_rotate, p=0.5),
            ]
        )


def plain_transform(image: np.ndarray, size: int) -> np.ndarray:
    """Resize the longer side to `size` and pad to a square, centred on black.

    The preprocessing of validation and inference. Returns (size, size, 3) uint8.
    """
    return pad_to_square(resize_longest_side(image, size), size)


def gauss_noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add Gaussian noise of random variance.

    The variance is drawn uniformly from 10..50 grey levels squared. The sum is
    truncated to integers. 2.0.8 truncates the noise before adding it, which makes it
    weaker and leaves twice as many pixels unchanged.
    """
    noise = rng.normal(0, math.sqrt(rng.uniform(10, 50)), image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def fancy_pca(
    image: np.ndarray, rng: np.random.Generator, coloured: np.ndarray | None = None
) -> np.ndarray:
    """Shift each channel by a constant along the colours' principal components.

    Method: Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural
    Networks" (2012), with one draw of standard deviation 0.1 for all components, and
    with a bug of 1.0.0: it transposed the matrix of components, so that a channel is
    shifted by the entries of one component instead of its own entry in each. 2.0.8
    scales colours instead.

    Args:
        image: (h, w, 3) uint8.
        coloured: the image whose components are used; none: its own.
    """
    colours = (image if coloured is None else coloured).reshape(-1, 3).astype(float)
    values, components = np.linalg.eigh(np.cov(colours / 255, rowvar=False))
    values, components = values[::-1], components[:, ::-1]
    shift = 255 * rng.normal(0, 0.1) * (components.T @ values)
    return np.clip(image + shift, 0, 255).astype(np.uint8)


def hue_saturation_value(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shift hue, saturation and value by random amounts.

    Hue by up to 20 (of 180), saturation by up to 30 and value by up to 20 (of 255). As
    in 1.0.0, grey pixels are shifted too, the black padding included. 2.0.8 leaves grey
    pixels grey.
    """
    hue, saturation, value = np.moveaxis(
        cv2.cvtColor(image, cv2.COLOR_RGB2HSV).astype(float), 2, 0
    )
    hue = (hue + rng.uniform(-20, 20)) % 180
    saturation = np.clip(saturation + rng.uniform(-30, 30), 0, 255)
    value = np.clip(value + rng.uniform(-20, 20), 0, 255)
    shifted = np.stack([hue, saturation, value], axis=2).astype(np.uint8)
    return cv2.cvtColor(shifted, cv2.COLOR_HSV2RGB)


def shift_scale_rotate(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shift, scale and rotate the image; pixels from outside of it are black.

    The shift is up to a tenth of each side, the scale 0.8..1.2, the rotation up to 10
    degrees around the centre. 2.0.8 shifts by whole pixels only.
    """
    height, width = image.shape[:2]
    angle, scale = rng.uniform(-10, 10), rng.uniform(0.8, 1.2)
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle, scale)
    shift = rng.uniform(-0.1, 0.1, 2) * (width, height)
    matrix[:, 2] = matrix[:, 2] + shift
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR)
