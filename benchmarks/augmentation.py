"""Each augmentation against the one of albumentations 1.0.0, which the winner used, as distributions over many crops.

    python3.10 -m venv OLD                    # 1.0.0 needs the NumPy and OpenCV of its time
    OLD/bin/pip install albumentations==1.0.0 numpy==1.23.5 opencv-python-headless==4.5.5.64 "scipy<1.11" scikit-image==0.19.3
    OLD/bin/python benchmarks/augmentation.py --crops DATA/crops --output 2020.json
    python -m benchmarks.augmentation --crops DATA/crops --output ours.json --against 2020.json

Reads  the first --count PNG crops under --crops, sorted; without it, random cuts of scikit-image's public-domain portrait
Writes every measured value as JSON; with --against prints a Markdown table of both. A figure agrees where the two-sided
       p-value (the smaller of Kolmogorov-Smirnov's and one for the ends; of two proportions for shares) is at least 0.001
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
JPEG, NOISE, BLUR, FLIP, RESIZE, PAD, COLOUR, GREY, GEOMETRY = range(
    9
)  # the winner's list, in its order
BRIGHTNESS, PCA, HUE = range(3)  # inside COLOUR
LEAST_P = 0.001


class Transform2020:
    """The winner's list in albumentations 1.0.0, with his arguments."""

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
        random.seed(
            seed + 10**6
        )  # other seeds than ours, or both would make the same decisions
        np.random.seed(seed + 10**6)


RESIZES = [
    (cv2.INTER_AREA, cv2.INTER_CUBIC),
    (cv2.INTER_AREA, cv2.INTER_LINEAR),
    (cv2.INTER_LINEAR, cv2.INTER_LINEAR),
]


def resize(image, size, down, up):
    """The longer side to `size`."""
    height, width = image.shape[:2]
    scale = size / max(height, width)
    shape = (
        (size, int(height * scale)) if width > height else (int(width * scale), size)
    )
    return cv2.resize(image, shape, interpolation=up if scale > 1 else down)


def folder_crops(folder, count):
    """The first `count` crops of a folder, uint8 (h, w, 3) RGB."""
    paths = sorted(folder.rglob("*.png"))[:count]
    if len(paths) < count:
        sys.exit(f"{folder}: holds {len(paths)} crops, fewer than --count {count}")
    return [cv2.imread(str(path))[..., ::-1].copy() for path in paths]


def portrait_crops(count):
    """Random cuts around the face of scikit-image's portrait, 150 to 420 pixels a side."""
    import skimage.data

    portrait, draw = skimage.data.astronaut(), np.random.RandomState(0)
    cuts = []
    for _ in range(count):
        (height, width), (top, left) = draw.randint(150, 421, 2), draw.randint(0, 60, 2)
        left = min(left + 80, 512 - width)
        cuts.append(
            np.ascontiguousarray(portrait[top : top + height, left : left + width])
        )
    return cuts


def measure(transform, crops):
    """Every figure of a list of transforms: name → one value for each crop that has one."""
    figures = {}
    squares = [to_square(crop) for crop in crops]
    names = [
        "JPEG",
        "noise",
        "blur",
        "flip",
        "resize",
        "padding",
        "colour",
        "grey",
        "shift/scale/turn",
    ]
    for number, name in enumerate(names):
        step, images = transform.steps[number], crops if number < PAD else squares
        if number not in (RESIZE, PAD):
            results = apply(transform, step, images)
            figures[f"{name}: share changed"] = [
                int((a != b).any()) for a, b in zip(images, results)
            ]
    figures |= colour_shares(transform, squares)
    always = lambda step, images: apply(transform, step, images, p=1)
    colours = choices(transform.steps[COLOUR])
    for name, step, images, measures in (
        (
            "JPEG",
            transform.steps[JPEG],
            crops,
            {"quality": jpeg_quality, "mean absolute change": mean_change},
        ),
        (
            "noise",
            transform.steps[NOISE],
            crops,
            {
                "standard deviation": lambda a, b: noise(a, b).std(),
                "mean": lambda a, b: noise(a, b).mean(),
                "share of pixels unchanged": lambda a, b: (noise(a, b) == 0).mean(),
            },
        ),
        (
            "blur",
            transform.steps[BLUR],
            crops,
            {"high frequencies left": high_frequencies_left},
        ),
        (
            "resize",
            transform.steps[RESIZE],
            crops,
            {
                "share enlarged by cubic, not linear": lambda a, b: resized_as_first(
                    a, b, 1, range(1, SIZE)
                ),
                "share shrunk by area, not linear": lambda a, b: resized_as_first(
                    a, b, 2, range(SIZE + 1, 9999)
                ),
            },
        ),
        (
            "brightness/contrast",
            colours[BRIGHTNESS],
            squares,
            {
                "gain": lambda a, b: gain_and_offset(a, b)[0],
                "offset": lambda a, b: gain_and_offset(a, b)[1],
            },
        ),
        (
            "PCA",
            colours[PCA],
            squares,
            {
                f"shift of {c}": lambda a, b, n=n: np.median(
                    b[..., n].astype(int)[inside(a)] - a[..., n][inside(a)]
                )
                for n, c in enumerate(("red", "green", "blue"))
            },
        ),
        (
            "hue",
            colours[HUE],
            squares,
            {
                **{
                    f"shift of {c}": lambda a, b, n=n: hsv_shift(a, b)[n]
                    for n, c in enumerate(("hue", "saturation", "value"))
                },
                "padding's largest value": lambda a, b: (
                    None if a[0].any() else b[0].max()
                ),
            },
        ),
        (
            "shift/scale/turn",
            transform.steps[GEOMETRY],
            [coordinates()] * len(crops),
            {
                c: lambda a, b, n=n: affine(b)[n]
                for n, c in enumerate(
                    (
                        "scale",
                        "turn, degrees",
                        "shift x, share of the side",
                        "shift y",
                        "border value",
                    )
                )
            },
        ),
    ):
        results = always(step, images)
        for figure, function in measures.items():
            values = [function(a, b) for a, b in zip(images, results)]
            figures[f"{name}: {figure}"] = [
                float(f"{value:.4g}") for value in values if value is not None
            ]
    return figures


def digests(transform, crops):
    """Transforms without a random part: name → the first eight digits of each result's SHA-256."""
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
    """What one step gives for each image, image i with seed i; `p` in place of the step's own."""
    before, step.p = step.p, step.p if p is None else p
    results = []
    for number, image in enumerate(images):
        transform.seed(number + 1)
        results.append(step(image=image.copy())["image"])
    step.p = before
    return results


def choices(one_of):
    """The list of a OneOf's transforms, which 1.0.0 holds a level deeper."""
    return getattr(one_of.transforms, "transforms", one_of.transforms)


def colour_shares(transform, squares):
    """Which of the three colour changes is taken, where one is."""
    step, taken = transform.steps[COLOUR], []

    class Recorder:
        def __init__(self, number, inner):
            self.number, self.inner = number, inner

        def __call__(self, *args, **options):
            taken.append(self.number)
            return self.inner(*args, **options)

        def __getattr__(self, name):
            return getattr(self.inner, name)

    inner = choices(step)
    before = inner[:]
    inner[:] = [Recorder(*each) for each in enumerate(inner)]
    apply(transform, step, squares, p=1)
    inner[:] = before
    names = ("brightness/contrast", "PCA", "hue")
    return {
        f"colour: share of {name}": [int(number == n) for number in taken]
        for n, name in enumerate(names)
    }


def to_square(crop):
    """(380, 380, 3): what fits of a crop, centred on black. No resize, which depends on OpenCV's version."""
    crop = crop[:SIZE, :SIZE]
    square = np.zeros((SIZE, SIZE, 3), np.uint8)
    top, left = (SIZE - crop.shape[0]) // 2, (SIZE - crop.shape[1]) // 2
    square[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
    return square


def jpeg_quality(before, after):
    """The quality that gives these very pixels; None where none of 50 to 100 does."""
    for quality in range(100, 49, -1):
        data = cv2.imencode(".jpg", before, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        if (cv2.imdecode(data, cv2.IMREAD_COLOR) == after).all():
            return quality
    return None


def mean_change(before, after):
    return np.abs(after.astype(int) - before).mean()


def noise(before, after):
    """The change of values far enough from 0 and 255 not to be clipped."""
    middle = (before >= 30) & (before <= 225)
    return after[middle].astype(int) - before[middle]


def high_frequencies_left(before, after):
    """Energy of the second differences, after by before."""

    def energy(image):
        values = image.astype(float)
        return sum((np.diff(values, 2, axis) ** 2).mean() for axis in (0, 1))

    return energy(after) / energy(before)


def resized_as_first(before, after, other, longest):
    """Whether a crop whose longest side is in the range was resized as RESIZES[0] does rather than RESIZES[other]."""
    if max(before.shape[:2]) not in longest:
        return None
    apart = [
        np.abs(resize(before, SIZE, *RESIZES[n]).astype(int) - after).mean()
        for n in (0, other)
    ]
    return int(apart[0] < apart[1])


def inside(square):
    """Where a square is neither padding nor near 0 or 255."""
    return (square.min(axis=2) >= 40) & (square.max(axis=2) <= 215)


def gain_and_offset(before, after):
    """Least squares over values that were not clipped; offset in grey levels."""
    kept = (after > 0) & (after < 255) & (before > 0)
    return np.polyfit(
        before[kept][::7].astype(float), after[kept][::7].astype(float), 1
    )


def hsv_shift(before, after):
    """Median shift of hue (in half degrees), saturation and value where all three can be told."""
    one, two = (
        cv2.cvtColor(image, cv2.COLOR_RGB2HSV).astype(int) for image in (before, after)
    )
    told = (one[..., 1:] > 60).all(axis=2) & (one[..., 1:] < 195).all(axis=2)
    if told.sum() < 500:
        return None, None, None
    apart = two[told] - one[told]
    apart[:, 0] = (apart[:, 0] + 90) % 180 - 90
    return np.median(apart, axis=0)


def coordinates():
    """An image whose red is half of x, whose green is half of y, and whose blue says that this is the image."""
    y, x = np.mgrid[:SIZE, :SIZE]
    return np.stack([x // 2, y // 2, np.full_like(x, 255)], axis=2).astype(np.uint8)


def affine(after):
    """Scale, turn in degrees, shifts as shares of the side, and the border's largest value, read from `coordinates`."""
    y, x = np.nonzero(
        (after[..., 2] == 255) & (np.add(*np.mgrid[:SIZE, :SIZE]) % 5 == 0)
    )
    source = after[y, x, :2] * 2.0 + 0.5
    target = np.stack([x, y, np.ones_like(x)], axis=1)
    matrix = np.linalg.lstsq(target, source, rcond=None)[
        0
    ].T  # (2, 3): from the result's pixels to the image's
    centre = np.array([SIZE / 2, SIZE / 2])
    shift = (np.linalg.solve(matrix[:, :2], centre - matrix[:, 2]) - centre) / SIZE
    scale = 1 / math.sqrt(np.linalg.det(matrix[:, :2]))
    border = after[after[..., 2] == 0]
    return (
        scale,
        math.degrees(math.atan2(matrix[0, 1], matrix[0, 0])),
        *shift,
        border.max() if len(border) else None,
    )


def compare(name, theirs, ours):
    """A row of the table, and whether the figures agree."""
    from scipy import stats

    one, two = np.asarray(theirs, float), np.asarray(ours, float)
    if "share" in name.split(":")[1] and set(one) | set(two) <= {0, 1}:
        pooled = np.concatenate([one, two]).mean()
        error = math.sqrt(pooled * (1 - pooled) * (1 / len(one) + 1 / len(two)))
        p = (
            1.0
            if error == 0
            else 2 * stats.norm.sf(abs(one.mean() - two.mean()) / error)
        )
        texts = [
            f"{x.mean():.3f} ± {x.std() / math.sqrt(len(x)):.3f}" for x in (one, two)
        ]
    else:
        # Kolmogorov-Smirnov hardly shared_path the ends of a range. Of two like samples, the k largest all come from one of them,
        # this or that, with probability 2 * 0.5^k, and so do the k smallest.
        beyond = max(
            (a > b.max()).sum()
            for a, b in ((one, two), (two, one), (-one, -two), (-two, -one))
        )
        p = min(stats.ks_2samp(one, two).pvalue, 4 * 0.5**beyond)
        texts = [
            f"{x.mean():.3f} ± {x.std() / math.sqrt(len(x)):.3f} ({x.min():.3g} … {x.max():.3g})"
            for x in (one, two)
        ]
    return f"| {name} | {texts[0]} | {texts[1]} | {p:.3f} |", p >= LEAST_P


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--crops",
        type=Path,
        help="folder of PNG crops, such as DATA/crops; a portrait's cuts if not given",
    )
    parser.add_argument(
        "--count", type=int, default=2000, help="crops to measure on (default: 2000)"
    )
    parser.add_argument("--output", type=Path, required=True, help="the JSON to write")
    parser.add_argument(
        "--against", type=Path, help="the JSON of the other version, to compare with"
    )
    options = parser.parse_args()
    import albumentations

    warnings.filterwarnings("ignore")
    if albumentations.__version__ == "1.0.0":
        transform = Transform2020(SIZE)
    else:
        from training.augment import TrainingTransform

        transform = TrainingTransform(SIZE)
    crops = (
        folder_crops(options.crops, options.count)
        if options.crops
        else portrait_crops(options.count)
    )
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
    print(
        f"| figure | albumentations {other['albumentations']} | ours ({result['albumentations']}) | p |\n|---|---|---|---|"
    )
    apart = []
    for name, theirs in other["figures"].items():
        row, agrees = compare(name, theirs, result["figures"][name])
        apart += [] if agrees else [name]
        print(row)
    for name, theirs in other["digests"].items():
        same = sum(one == two for one, two in zip(theirs, result["digests"][name]))
        print(f"| {name}: crops equal byte for byte | | {same} of {len(theirs)} | |")
    print(f"\n{len(crops)} crops; apart (p < {LEAST_P}): {', '.join(apart) or 'none'}")
    return bool(apart)


if __name__ == "__main__":
    sys.exit(main())
