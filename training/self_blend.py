"""Self-blended images: a fake made of one real crop, blended with itself.

A part of the face comes from a slightly changed copy: another place, size, colour or
sharpness. What a network can learn from it is what all techniques leave, the traces of
blending, and nothing of a certain generator.

Method: K. Shiohara and T. Yamasaki, "Detecting Deepfakes with Self-Blended Images"
(2022); numbers as published. The hull is that of 68 landmarks where there are any, else
the outline of `training.cutout`, whose radius varies at random, in place of the
published choice of hulls.
"""

import cv2
import numpy as np

from training.cutout import face_outline

RATIOS = (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)  # of the blend, each as likely
RGB_SHIFT, RGB_SHIFT_P = 20, 0.3  # grey levels
BRIGHTNESS = CONTRAST = 0.1
DOWN_SCALES = (2, 4)
SHARPEN_ALPHA, SHARPEN_LIGHTNESS = (0.2, 0.5), (0.5, 1.0)
SHIFT_X, SHIFT_Y = 0.03, 0.015  # of width and height
MIN_SCALE = 0.95
ELASTIC_ALPHA, ELASTIC_SIGMA = 50, 7  # pixels
MASK_SIZES = (192, 256)  # pixels, at which the mask is blurred
KERNELS = (5, 25)  # odd sizes of the Gaussian kernels
SECOND_SIGMA = (5, 45)
HULL_SCALES = (0.8, 1.15)  # of the outline's radius
HULL_WAVES = 3


def self_blend(
    image: np.ndarray, landmarks: np.ndarray | None, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Blend a real crop with a changed copy of itself.

    Args:
        image: (H, W, 3) uint8 RGB.
        landmarks: (5, 2) or (68, 2), x and y in pixels, or None.

    Returns:
        The blend (H, W, 3) uint8, and how much of each pixel comes from the copy, (H, W)
        float32 in 0..1.
    """
    mask = hull_mask(image.shape[:2], landmarks, rng)
    source, target = image, image
    if rng.random() < 0.5:
        source = change_look(image, rng)
    else:
        target = change_look(image, rng)
    source, mask = move(source, mask, rng)
    mask = blur_mask(deform(mask, rng), rng) * rng.choice(RATIOS)
    return blend(source, target, mask), mask


def blend(source: np.ndarray, target: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """mask * source + (1 - mask) * target, rounded; mask (H, W) float32 in 0..1."""
    share = mask[..., None]
    mixed = source.astype(np.float32) * share + target.astype(np.float32) * (1 - share)
    return np.rint(mixed).astype(np.uint8)


def hull_mask(
    shape: tuple[int, ...], landmarks: np.ndarray | None, rng: np.random.Generator
) -> np.ndarray:
    """The face's hull as a mask (H, W) float32, 0 or 1, its radius varied smoothly."""
    height, width = shape[:2]
    if landmarks is not None and len(landmarks) > 5:
        points = cv2.convexHull(landmarks.astype(np.float32))[:, 0].astype(float)
    else:
        points = face_outline(landmarks, height, width)
    centre = points.mean(axis=0)
    angles = np.arctan2(*(points - centre).T[::-1])
    low, high = HULL_SCALES
    waves = np.arange(1, HULL_WAVES + 1)
    phases, sizes = rng.uniform(0, 2 * np.pi, HULL_WAVES), rng.random(HULL_WAVES)
    wave = (np.sin(angles[:, None] * waves + phases) * sizes).sum(axis=1)
    scales = (low + high) / 2 + (high - low) / 2 * wave / max(sizes.sum(), 1e-6)
    outline = centre + (points - centre) * scales[:, None]
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [np.round(outline).astype(np.int32)], 1)
    return mask.astype(np.float32)


def change_look(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change colour, brightness and contrast a little, then blur or sharpen."""
    shift: np.ndarray = np.zeros(3)
    if rng.random() < RGB_SHIFT_P:
        shift = rng.uniform(-RGB_SHIFT, RGB_SHIFT, 3)
    gain = 1 + rng.uniform(-CONTRAST, CONTRAST)
    offset = 255 * rng.uniform(-BRIGHTNESS, BRIGHTNESS)
    changed: np.ndarray = (image.astype(np.float32) + shift) * gain + offset
    changed = np.clip(np.rint(changed), 0, 255).astype(np.uint8)
    if rng.random() < 0.5:
        height, width = image.shape[:2]
        factor = int(rng.choice(DOWN_SCALES))
        small = (max(1, width // factor), max(1, height // factor))
        changed = cv2.resize(changed, small, interpolation=cv2.INTER_NEAREST)
        return cv2.resize(changed, (width, height), interpolation=cv2.INTER_LINEAR)
    return sharpen(
        changed, rng.uniform(*SHARPEN_ALPHA), rng.uniform(*SHARPEN_LIGHTNESS)
    )


def sharpen(image: np.ndarray, alpha: float, lightness: float) -> np.ndarray:
    """Mix an image with a sharpened one: a 3 x 3 kernel of -1 around 8 + lightness."""
    kernel = np.full((3, 3), -1, np.float32)
    kernel[1, 1] = 8 + lightness
    identity = np.zeros((3, 3), np.float32)
    identity[1, 1] = 1
    return cv2.filter2D(image, -1, (1 - alpha) * identity + alpha * kernel)


def move(
    image: np.ndarray, mask: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Shift and scale an image and its mask by the same random amounts."""
    height, width = mask.shape
    scale = rng.uniform(MIN_SCALE, 1 / MIN_SCALE)
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), 0, scale)
    shift = (
        rng.uniform(-SHIFT_X, SHIFT_X) * width,
        rng.uniform(-SHIFT_Y, SHIFT_Y) * height,
    )
    matrix[:, 2] = matrix[:, 2] + shift
    moved = cv2.warpAffine(
        image, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101
    )
    return moved, cv2.warpAffine(mask, matrix, (width, height))


def deform(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Elastic deformation: each pixel is taken from a place that is smoothly displaced.

    Method: P. Simard et al. (2003): uniform noise, blurred by `ELASTIC_SIGMA`, times
    `ELASTIC_ALPHA`.
    """
    y, x = np.indices(mask.shape, np.float32)
    return cv2.remap(
        mask,
        x + _smooth_noise(mask, rng),
        y + _smooth_noise(mask, rng),
        cv2.INTER_LINEAR,
    )


def _smooth_noise(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    noise = rng.uniform(-1, 1, mask.shape).astype(np.float32)
    return ELASTIC_ALPHA * cv2.GaussianBlur(noise, (0, 0), ELASTIC_SIGMA)


def blur_mask(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shrink a mask softly: blurred twice, zero below 1 after the first time."""
    height, width = mask.shape
    size = int(rng.integers(MASK_SIZES[0], MASK_SIZES[1] + 1))
    small = cv2.resize(mask, (size, size))
    small = _blur(small, rng, 0)
    small[small < 1] = 0
    small = _blur(small, rng, rng.uniform(*SECOND_SIGMA))
    return np.clip(cv2.resize(small, (width, height)), 0, 1)


def _blur(mask: np.ndarray, rng: np.random.Generator, sigma: float) -> np.ndarray:
    """A Gaussian of random kernel size, then divided by the maximum."""
    low, high = KERNELS
    x, y = (2 * rng.integers(low // 2, high // 2 + 1, 2) + 1).tolist()
    blurred = cv2.GaussianBlur(mask, (x, y), sigma)
    highest = blurred.max()
    return blurred / highest if highest > 0 else blurred
