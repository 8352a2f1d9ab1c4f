r"""Compare each augmentation with that of albumentations 1.0.0, which the winner used.

    python3.10 -m venv OLD     # 1.0.0 needs the NumPy and OpenCV of its time
    OLD/bin/pip install albumentations==1.0.0 numpy==1.23.5 scikit-image==0.19.3 \
        opencv-python-headless==4.5.5.64 "scipy<1.11"
    OLD/bin/python benchmarks/augmentation.py --crops DATA/crops --output 2020.json
    python -m benchmarks.augmentation --crops DATA/crops --output ours.json \
        --against 2020.json

Reads  the first --count PNG crops under --crops, sorted; without --crops, random cuts
       of scikit-image's public-domain portrait
Writes every measured value as JSON; with --against, prints a Markdown table of both

Method: each figure is a distribution over many crops. Two distributions agree if the
        two-sided p-value is at least 0.001. For shares it is that of a test of two
        proportions, otherwise the smaller of a Kolmogorov-Smirnov test and a test of
        the extremes.
"""

import argparse
import hashlib
import json
import math
import os
import random
import sys
import warnings
from pathlib import Path

import cv2
import numpy as np

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
SIZE = 380
MIN_P_VALUE = 0.001

# Positions in the winner's list of transforms, and in the OneOf at COLOUR.
JPEG, NOISE, BLUR, FLIP, RESIZE, PAD, COLOUR, GREY, GEOMETRY = range(9)
BRIGHTNESS, PCA, HUE = range(3)

STEP_NAMES = (
    "JPEG",
    "noise",
    "blur",
    "flip",
    "resize",
    "padding",
    "colour",
    "grey",
    "shift/scale/turn",
)
RESIZES = [
    (cv2.INTER_AREA, cv2.INTER_CUBIC),
    (cv2.INTER_AREA, cv2.INTER_LINEAR),
    (cv2.INTER_LINEAR, cv2.INTER_LINEAR),
]


class WinnerTransform:
    """The winner's transforms in albumentations 1.0.0, with his arguments."""

    def __init__(self, size):
        import albumentations as A

        class Resize(A.ImageOnlyTransform):
            def __init__(self, down, up):
                super().__init__(p=1)
                self.down, self.up = down, up

            def apply(self, image, **_):
                return resize(image, size, self.down, self.up)

        self.steps = [
            A.ImageCompression(quality_lower=60, quality_upper=100, p=0.5),
            A.GaussNoise(p=0.1),
            A.GaussianBlur(blur_limit=3, p=0.05),
            A.HorizontalFlip(),
            A.OneOf([Resize(*flags) for flags in RESIZES], p=1),
            A.PadIfNeeded(
                min_height=size, min_width=size, border_mode=cv2.BORDER_CONSTANT
            ),
            A.OneOf(
                [A.RandomBrightnessContrast(), A.FancyPCA(), A.HueSaturationValue()],
                p=0.7,
            ),
            A.ToGray(p=0.2),
            A.ShiftScaleRotate(
                shift_limit=0.1,
                scale_limit=0.2,
                rotate_limit=10,
                border_mode=cv2.BORDER_CONSTANT,
                p=0.5,
            ),
        ]

    def seed(self, seed):
        # Seeds other than ours: equal seeds would make the same decisions in both.
        random.seed(seed + 10**6)
        np.random.seed(seed + 10**6)


def resize(image, size, down, up):
    """Resize the longer side to `size`; `down` and `up` are OpenCV interpolations."""
    height, width = image.shape[:2]
    scale = size / max(height, width)
    if width > height:
        shape = (size, int(height * scale))
    else:
        shape = (int(width * scale), size)
    return cv2.resize(image, shape, interpolation=up if scale > 1 else down)


def folder_crops(folder, count):
    """Read the first `count` crops of a folder, uint8 (h, w, 3) RGB."""
    paths = sorted(folder.rglob("*.png"))[:count]
    if len(paths) < count:
        sys.exit(f"{folder}: holds {len(paths)} crops, fewer than --count {count}")
    return [cv2.imread(str(path))[..., ::-1].copy() for path in paths]


def portrait_crops(count):
    """Cut scikit-image's portrait at random around the face, 150 to 420 pixels a side.

    Returns: list of uint8 (h, w, 3) RGB.
    """
    import skimage.data

    portrait, rng = skimage.data.astronaut(), np.random.RandomState(0)
    crops = []
    for _ in range(count):
        (height, width), (top, left) = rng.randint(150, 421, 2), rng.randint(0, 60, 2)
        left = min(left + 80, 512 - width)
        crop = portrait[top : top + height, left : left + width]
        crops.append(np.ascontiguousarray(crop))
    return crops


def measure(transform, crops):
    """Measure every figure of a list of transforms.

    Returns: figure name → one value for each crop for which it is defined.
    """
    squares = [to_square(crop) for crop in crops]
    figures = changed_shares(transform, crops, squares)
    figures |= colour_shares(transform, squares)
    for name, step, images, functions in measurements(transform, crops, squares):
        results = apply(transform, step, images, p=1)
        for figure, function in functions.items():
            values = [function(a, b) for a, b in zip(images, results)]
            figures[f"{name}: {figure}"] = [
                float(f"{value:.4g}") for value in values if value is not None
            ]
    return figures


def changed_shares(transform, crops, squares):
    """For each random step, whether each image is changed by it (1) or not (0)."""
    figures = {}
    for number, name in enumerate(STEP_NAMES):
        if number in (RESIZE, PAD):
            continue
        images = crops if number < PAD else squares
        results = apply(transform, transform.steps[number], images)
        changed = [int((a != b).any()) for a, b in zip(images, results)]
        figures[f"{name}: share changed"] = changed
    return figures


def measurements(transform, crops, squares):
    """List what to measure of each step.

    Returns: list of (name, step, images, figures); `figures` maps a figure's name to
    a function of an image before and after the step.
    """
    steps, colours = transform.steps, choices(transform.steps[COLOUR])
    jpeg = {"quality": jpeg_quality, "mean absolute change": mean_change}
    noises = {
        "standard deviation": lambda a, b: noise(a, b).std(),
        "mean": lambda a, b: noise(a, b).mean(),
        "share of pixels unchanged": lambda a, b: (noise(a, b) == 0).mean(),
    }
    blur = {"high frequencies left": high_frequencies_left}
    smaller, larger = range(1, SIZE), range(SIZE + 1, 9999)
    resizes = {
        "share enlarged by cubic, not linear": (
            lambda a, b: resized_as_first(a, b, 1, smaller)
        ),
        "share shrunk by area, not linear": (
            lambda a, b: resized_as_first(a, b, 2, larger)
        ),
    }
    brightness = {
        "gain": lambda a, b: gain_and_offset(a, b)[0],
        "offset": lambda a, b: gain_and_offset(a, b)[1],
    }
    pca = {
        f"shift of {name}": lambda a, b, n=n: channel_shift(a, b, n)
        for n, name in enumerate(("red", "green", "blue"))
    }
    hue = {
        f"shift of {name}": lambda a, b, n=n: hsv_shift(a, b)[n]
        for n, name in enumerate(("hue", "saturation", "value"))
    }
    hue["padding's largest value"] = padding_maximum
    geometry = {
        name: lambda a, b, n=n: affine(b)[n] for n, name in enumerate(AFFINE_NAMES)
    }
    grids = [coordinates()] * len(crops)
    return [
        ("JPEG", steps[JPEG], crops, jpeg),
        ("noise", steps[NOISE], crops, noises),
        ("blur", steps[BLUR], crops, blur),
        ("resize", steps[RESIZE], crops, resizes),
        ("brightness/contrast", colours[BRIGHTNESS], squares, brightness),
        ("PCA", colours[PCA], squares, pca),
        ("hue", colours[HUE], squares, hue),
        ("shift/scale/turn", steps[GEOMETRY], grids, geometry),
    ]


def digests(transform, crops):
    """Hash the results of the transforms that are not random.

    Returns: name → the first eight hexadecimal digits of each result's SHA-256.
    """
    small = [np.ascontiguousarray(crop[:SIZE, :SIZE]) for crop in crops]
    return {
        name: [
            hashlib.sha256(image.tobytes()).hexdigest()[:8]
            for image in apply(transform, transform.steps[step], images, p=1)
        ]
        for name, step, images in (
            ("flip", FLIP, crops),
            ("padding", PAD, small),
            ("grey", GREY, crops),
        )
    }


def apply(transform, step, images, p=None):
    """Apply one step to each image, the first with seed 1, the second with seed 2, ...

    Args:
        p: probability of the step; its own if not given.
    """
    before, step.p = step.p, step.p if p is None else p
    results = []
    for number, image in enumerate(images):
        transform.seed(number + 1)
        results.append(step(image=image.copy())["image"])
    step.p = before
    return results


def choices(one_of):
    """The transforms of a OneOf; albumentations 1.0.0 nests them one level deeper."""
    return getattr(one_of.transforms, "transforms", one_of.transforms)


def colour_shares(transform, squares):
    """For each of the three colour transforms, whether it was chosen (1) or not (0)."""
    step, chosen = transform.steps[COLOUR], []

    class Recorder:
        def __init__(self, number, inner):
            self.number, self.inner = number, inner

        def __call__(self, *args, **options):
            chosen.append(self.number)
            return self.inner(*args, **options)

        def __getattr__(self, name):
            return getattr(self.inner, name)

    inner = choices(step)
    before = inner[:]
    inner[:] = [Recorder(*pair) for pair in enumerate(before)]
    apply(transform, step, squares, p=1)
    inner[:] = before
    names = ("brightness/contrast", "PCA", "hue")
    return {
        f"colour: share of {name}": [int(number == n) for number in chosen]
        for n, name in enumerate(names)
    }


def to_square(crop):
    """Cut or pad a crop to (380, 380, 3), centred on black.

    It is not resized, because that depends on the version of OpenCV.
    """
    crop = crop[:SIZE, :SIZE]
    square = np.zeros((SIZE, SIZE, 3), np.uint8)
    top, left = (SIZE - crop.shape[0]) // 2, (SIZE - crop.shape[1]) // 2
    square[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
    return square


def jpeg_quality(before, after):
    """The quality that gives exactly these pixels; None if none of 50 to 100 does."""
    for quality in range(100, 49, -1):
        data = cv2.imencode(".jpg", before, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        if (cv2.imdecode(data, cv2.IMREAD_COLOR) == after).all():
            return quality
    return None


def mean_change(before, after):
    """Mean absolute difference in grey levels."""
    return np.abs(after.astype(int) - before).mean()


def noise(before, after):
    """Differences of the values too far from 0 and 255 to be clipped."""
    middle = (before >= 30) & (before <= 225)
    return after[middle].astype(int) - before[middle]


def high_frequencies_left(before, after):
    """Energy of the second differences after the step, divided by that before it."""

    def energy(image):
        values = image.astype(float)
        return sum((np.diff(values, 2, axis) ** 2).mean() for axis in (0, 1))

    return energy(after) / energy(before)


def resized_as_first(before, after, other, sides):
    """Whether a crop was resized more like RESIZES[0] than like RESIZES[other].

    Returns: 1 or 0; None if the longer side of the crop is not in `sides`.
    """
    if max(before.shape[:2]) not in sides:
        return None
    first, second = (
        np.abs(resize(before, SIZE, *RESIZES[n]).astype(int) - after).mean()
        for n in (0, other)
    )
    return int(first < second)


def channel_shift(before, after, channel):
    """Median shift of a channel where a square is neither padding nor near 0 or 255."""
    inside = (before.min(axis=2) >= 40) & (before.max(axis=2) <= 215)
    shift = after[..., channel].astype(int)[inside] - before[..., channel][inside]
    return np.median(shift)


def gain_and_offset(before, after):
    """Least squares over values that were not clipped; offset in grey levels."""
    kept = (after > 0) & (after < 255) & (before > 0)
    return np.polyfit(
        before[kept][::7].astype(float), after[kept][::7].astype(float), 1
    )


def hsv_shift(before, after):
    """Median shift of hue (in half degrees), saturation and value.

    Only pixels are counted whose saturation and value are not clipped; three times
    None if there are fewer than 500.
    """
    one, two = (
        cv2.cvtColor(image, cv2.COLOR_RGB2HSV).astype(int) for image in (before, after)
    )
    valid = (one[..., 1:] > 60).all(axis=2) & (one[..., 1:] < 195).all(axis=2)
    if valid.sum() < 500:
        return None, None, None
    shift = two[valid] - one[valid]
    shift[:, 0] = (shift[:, 0] + 90) % 180 - 90
    return np.median(shift, axis=0)


def padding_maximum(before, after):
    """The largest value of the first row after the step; None if it is not padding."""
    return None if before[0].any() else after[0].max()


def coordinates():
    """An image of its own coordinates: red x // 2, green y // 2, blue 255."""
    y, x = np.mgrid[:SIZE, :SIZE]
    return np.stack([x // 2, y // 2, np.full_like(x, 255)], axis=2).astype(np.uint8)


AFFINE_NAMES = (
    "scale",
    "turn, degrees",
    "shift x, share of the side",
    "shift y",
    "border value",
)


def affine(after):
    """Recover the affine map from a transformed image of `coordinates`.

    Returns: the values of AFFINE_NAMES; shifts as shares of the side; the border's
    largest value, None without a border.
    """
    y, x = np.nonzero(
        (after[..., 2] == 255) & (np.add(*np.mgrid[:SIZE, :SIZE]) % 5 == 0)
    )
    source = after[y, x, :2] * 2.0 + 0.5
    target = np.stack([x, y, np.ones_like(x)], axis=1)
    # (2, 3), from pixels of the result to pixels of the source
    matrix = np.linalg.lstsq(target, source, rcond=None)[0].T
    centre = np.array([SIZE / 2, SIZE / 2])
    shift = (np.linalg.solve(matrix[:, :2], centre - matrix[:, 2]) - centre) / SIZE
    scale = 1 / math.sqrt(np.linalg.det(matrix[:, :2]))
    angle = math.degrees(math.atan2(matrix[0, 1], matrix[0, 0]))
    border = after[after[..., 2] == 0]
    return scale, angle, *shift, border.max() if len(border) else None


def compare(name, theirs, ours):
    """Compare one figure. Returns a row of the table, and whether the figures agree."""
    one, two = np.asarray(theirs, float), np.asarray(ours, float)
    texts = [f"{x.mean():.3f} ± {x.std() / math.sqrt(len(x)):.3f}" for x in (one, two)]
    if "share" in name.split(":")[1] and set(one) | set(two) <= {0, 1}:
        p = share_p_value(one, two)
    else:
        p = distribution_p_value(one, two)
        ranges = [f"({x.min():.3g} … {x.max():.3g})" for x in (one, two)]
        texts = [" ".join(pair) for pair in zip(texts, ranges)]
    return f"| {name} | {texts[0]} | {texts[1]} | {p:.3f} |", p >= MIN_P_VALUE


def share_p_value(one, two):
    """Two-sided p-value of a z-test of two proportions; the samples hold 0 and 1."""
    from scipy import stats

    pooled = np.concatenate([one, two]).mean()
    error = math.sqrt(pooled * (1 - pooled) * (1 / len(one) + 1 / len(two)))
    if error == 0:
        return 1.0
    return 2 * stats.norm.sf(abs(one.mean() - two.mean()) / error)


def distribution_p_value(one, two):
    """The smaller p-value of a Kolmogorov-Smirnov test and a test of the extremes.

    The former is insensitive to the ends of a range. If both samples have the same
    distribution, the k largest values all come from one of the two samples with
    probability 2 * 0.5^k, and likewise the k smallest.
    """
    from scipy import stats

    beyond = max(
        (a > b.max()).sum()
        for a, b in ((one, two), (two, one), (-one, -two), (-two, -one))
    )
    return min(stats.ks_2samp(one, two).pvalue, 4 * 0.5**beyond)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--crops",
        type=Path,
        help="folder of PNG crops, such as DATA/crops; default: cuts of a portrait",
    )
    parser.add_argument(
        "--count", type=int, default=2000, help="crops to measure on (default: 2000)"
    )
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument(
        "--against", type=Path, help="JSON file of the other version, to compare with"
    )
    options = parser.parse_args()
    import albumentations

    warnings.filterwarnings("ignore")
    if albumentations.__version__ == "1.0.0":
        transform = WinnerTransform(SIZE)
    else:
        from training.augment import TrainingTransform

        transform = TrainingTransform(SIZE)
    if options.crops:
        crops = folder_crops(options.crops, options.count)
    else:
        crops = portrait_crops(options.count)
    result = {
        "albumentations": albumentations.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "crops": len(crops),
        "figures": measure(transform, crops),
        "digests": digests(transform, crops),
    }
    options.output.write_text(json.dumps(result, separators=(",", ":")))
    if not options.against:
        return 0
    other = json.loads(options.against.read_text())
    differing = print_comparison(other, result)
    names = ", ".join(differing) or "none"
    print(f"\n{len(crops)} crops; differing (p < {MIN_P_VALUE}): {names}")
    return bool(differing)


def print_comparison(other, result):
    """Print the table of both versions. Returns the names of the differing figures."""
    versions = (other["albumentations"], result["albumentations"])
    print("| figure | albumentations {} | ours ({}) | p |".format(*versions))
    print("|---|---|---|---|")
    differing = []
    for name, theirs in other["figures"].items():
        row, agrees = compare(name, theirs, result["figures"][name])
        differing += [] if agrees else [name]
        print(row)
    for name, theirs in other["digests"].items():
        same = sum(one == two for one, two in zip(theirs, result["digests"][name]))
        print(f"| {name}: crops equal byte for byte | | {same} of {len(theirs)} | |")
    return differing


if __name__ == "__main__":
    sys.exit(main())
