"""Self-blended images: a fake made of one real crop, blended with itself.

A part of the face comes from a slightly changed copy: another place, size, colour or
sharpness. What a network can learn from it is what all techniques leave, the traces of
blending, and nothing of a certain generator.

Method: K. Shiohara and T. Yamasaki, "Detecting Deepfakes with Self-Blended Images"
(2022); numbers as published. The hull is that of the outline of `training.cutout` (jaw
and brows of 68 landmarks where there are any), whose radius varies at random, in place of
the published choice of hulls.

`part_blend` is ours: one part of the face from a copy that is moved further, half of the
time from the mirrored face. Features that do not fit, or twice, are what techniques
leave that insert a rendered face or move its mouth.
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

# Parts of a face, by the number of landmarks: dlib's 68, or eyes, nose, mouth corners.
PARTS: dict[int, list[list[int]]] = {
    68: [
        [*range(17, 27), *range(31, 36), *range(48, 60)],  # brows to mouth
        [*range(17, 68)],
        [*range(17, 68), *range(5, 12)],  # brows to chin
        [*range(27, 36), *range(48, 68), *range(3, 14)],  # nose to jaw
        [*range(48, 68)],  # mouth
        [*range(48, 68), *range(5, 12)],  # mouth and chin
        [*range(29, 36), *range(48, 68)],  # mouth and nose
        [*range(17, 27), *range(36, 48)],  # eyes and brows
        [*range(27, 36)],  # nose
    ],
    5: [[0, 1, 2, 3, 4], [2, 3, 4], [3, 4], [0, 1], [0, 1, 2], [2]],
}
# The part's hull is grown by this much, in distances between the eyes.
PART_GROWTH = {68: (0.0, 0.08), 5: (0.15, 0.5)}
# The landmark on the other side of the face.
MIRRORED: dict[int, list[int]] = {
    68: [
        *range(16, -1, -1),
        *range(26, 16, -1),
        *range(27, 31),
        *range(35, 30, -1),
        *(45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40),
        *range(54, 47, -1),
        *range(59, 54, -1),
        *range(64, 59, -1),
        *range(67, 64, -1),
    ],
    5: [1, 0, 2, 4, 3],
}
PART_SHIFT = (0.06, 0.04)  # of width and height
PART_SCALE, PART_ANGLE = 0.1, 6  # ±, degrees
PART_BLUR = (0.005, 0.04)  # standard deviation, in distances between the eyes
PART_LOOK_P = 0.7  # of another colour or sharpness
PART_RATIOS = (0.5, 0.75, 1.0, 1.0, 1.0, 1.0)


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


def part_blend(
    image: np.ndarray, landmarks: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Blend a real crop with a changed copy in one part of the face.

    Args:
        image: (H, W, 3) uint8 RGB.
        landmarks: (5, 2) or (68, 2), x and y in pixels.

    Returns:
        as `self_blend`.
    """
    count = len(landmarks)
    parts = PARTS[count]
    points = landmarks[parts[rng.integers(len(parts))]].astype(float)
    distance = _eye_distance(landmarks)
    mask = varied_hull(image.shape[:2], points, rng)
    growth = round(distance * rng.uniform(*PART_GROWTH[count]))
    if growth:
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * growth + 1,) * 2)
        mask = cv2.dilate(mask, disc)
    source, target = image, image
    if rng.random() < 0.5:
        source = mirrored(image, landmarks)
    if rng.random() < PART_LOOK_P:
        if rng.random() < 0.5:
            source = change_look(source, rng)
        else:
            target = change_look(target, rng)
    source = move_part(source, points.mean(axis=0), rng)
    if rng.random() < 0.5:
        mask = deform(mask, rng)
    mask = cv2.GaussianBlur(mask, (0, 0), max(distance, 1) * rng.uniform(*PART_BLUR))
    mask = np.minimum(mask, 1) * np.float32(rng.choice(PART_RATIOS))
    return blend(source, target, mask), mask


def mirrored(image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """The mirrored image, its landmarks laid on the image's by a similarity transform.

    Args:
        image: (H, W, 3) uint8.
        landmarks: (5, 2) or (68, 2).
    """
    height, width = image.shape[:2]
    target = landmarks.astype(np.float32)
    source = target[MIRRORED[len(landmarks)]]
    source[:, 0] = width - 1 - source[:, 0]
    matrix, _ = cv2.estimateAffinePartial2D(source, target, method=cv2.LMEDS)
    if matrix is None:  # all landmarks in one place
        return image
    return cv2.warpAffine(
        image[:, ::-1], matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101
    )


def move_part(
    image: np.ndarray, centre: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Rotate and scale an image about a centre (2,), x and y, and shift it."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(
        centre.tolist(),
        rng.uniform(-PART_ANGLE, PART_ANGLE),
        rng.uniform(1 - PART_SCALE, 1 + PART_SCALE),
    )
    shift = rng.uniform(-1, 1, 2) * PART_SHIFT * (width, height)
    matrix[:, 2] = matrix[:, 2] + shift
    return cv2.warpAffine(
        image, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101
    )


def _eye_distance(landmarks: np.ndarray) -> float:
    if len(landmarks) == 68:
        eyes = landmarks[36:42].mean(axis=0), landmarks[42:48].mean(axis=0)
    else:
        eyes = landmarks[0], landmarks[1]
    return float(np.linalg.norm(np.subtract(*eyes, dtype=float)))


def blend(source: np.ndarray, target: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """mask * source + (1 - mask) * target, rounded; mask (H, W) float32 in 0..1."""
    share = mask[..., None]
    mixed = source.astype(np.float32) * share + target.astype(np.float32) * (1 - share)
    return np.rint(mixed).astype(np.uint8)


def hull_mask(
    shape: tuple[int, ...], landmarks: np.ndarray | None, rng: np.random.Generator
) -> np.ndarray:
    """The face's hull as a mask (H, W) float32, 0 or 1, its radius varied smoothly."""
    return varied_hull(shape, face_outline(landmarks, *shape[:2]), rng)


def varied_hull(
    shape: tuple[int, ...], points: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """The convex hull of points (K, 2) as a mask (H, W), its radius varied smoothly."""
    height, width = shape[:2]
    points = cv2.convexHull(points.astype(np.float32))[:, 0].astype(float)
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
