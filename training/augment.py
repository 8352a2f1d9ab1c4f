"""The winner's augmentation list, in albumentations 2.0.8, each setting made to do what his version 1.0.0 did.

albumentations calls home when it is imported unless NO_ALBUMENTATIONS_UPDATE is set, so it is imported in here only,
after setting it.
"""

import math
import os
import random
from functools import partial

import cv2
import numpy as np

from preprocessing.crops import pad_to_square, resize_longest_side


class TrainingTransform:
    """Augments a crop (h, w, 3) uint8 RGB and gives (size, size, 3) uint8 RGB. The same seed gives the same image."""

    def __init__(self, size: int):
        self._compose = _compose(size)

    def __call__(self, image: np.ndarray, seed: int) -> np.ndarray:
        # not `set_random_seed`: that gives each transform the same stream, and all decisions become one
        self._compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        return self._compose(image=image)["image"]


def plain_transform(image: np.ndarray, size: int) -> np.ndarray:
    """What validation and inference do to a crop: resize its longer side, centre on black. (size, size, 3) uint8."""
    return pad_to_square(resize_longest_side(image, size), size)


def _compose(size: int):
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations as A

    def resize(down: int, up: int):
        return A.Lambda(image=partial(resize_longest_side, size=size, down=down, up=up), p=1)

    # 1.0.0 drew the variance evenly from 10..50 grey levels squared; 2.0.8 draws the deviation, as a share of 255, and
    # then loses 0.38 grey levels of it by cutting the noise to whole levels toward zero (measured). Eight narrow ranges,
    # one drawn evenly, give the former.
    deviations = [((math.sqrt(v) + 0.38) / 255, (math.sqrt(v + 5) + 0.38) / 255) for v in range(10, 50, 5)]
    # 1.0.0 left sigma to OpenCV, whose 3-pixel kernel is (1, 2, 1) / 4; this sigma gives that kernel
    sigma = 1 / math.sqrt(2 * math.log(2))
    return A.Compose(
        [
            A.ImageCompression(quality_range=(60, 100), p=0.5),
            A.OneOf([A.GaussNoise(std_range=deviation, p=1) for deviation in deviations], p=0.1),
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
            A.PadIfNeeded(min_height=size, min_width=size, border_mode=cv2.BORDER_CONSTANT, fill=0),
            A.OneOf(
                [
                    A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.5),
                    A.FancyPCA(alpha=0.1, p=0.5),
                    A.HueSaturationValue(hue_shift_limit=20, sat_shift_limit=30, val_shift_limit=20, p=0.5),
                ],
                p=0.7,
            ),
            A.ToGray(p=0.2),
            A.Affine(
                translate_percent=(-0.1, 0.1), scale=(0.8, 1.2), rotate=(-10, 10), keep_ratio=True,
                interpolation=cv2.INTER_LINEAR, border_mode=cv2.BORDER_CONSTANT, fill=0, p=0.5,
            ),
        ]
    )  # fmt: skip
