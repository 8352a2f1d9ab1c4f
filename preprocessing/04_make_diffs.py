"""Step 4: compute where each fake crop differs from the real one.

    python -m preprocessing.04_make_diffs --root-dir DATA

Reads  DATA/crops/{fake}/*.png and DATA/crops/{original}/*.png from step 2
Writes DATA/diffs/{fake}/{frame}_{actor}_diff.png: grey, 0 where the two are equal, 255
       at an SSIM of 0
Method: the winner's: 1 - SSIM (Wang et al., "Image Quality Assessment: From Error
       Visibility to Structural Similarity", 2004) in a uniform window of 7 pixels for
       each colour channel, then converted to grey.
"""

from functools import partial
from pathlib import Path

import cv2
import numpy as np
from skimage.metrics import structural_similarity

from preprocessing.crops import read_image, write_image
from preprocessing.dataset import Video
from preprocessing.layout import cropped_videos, crops_dir, diffs_dir
from preprocessing.step import open_dataset, run_step, step_parser
from runtime.cli import run_main
from runtime.files import atomic_folder

WINDOW = 7  # pixels; scikit-image's default, which the winner used


def difference(real: np.ndarray, fake: np.ndarray) -> np.ndarray:
    """1 - SSIM of two crops (H, W, 3) uint8 RGB as grey levels (H, W) uint8.

    H and W must be at least `WINDOW`.
    """
    _, similarity = structural_similarity(
        real, fake, win_size=WINDOW, channel_axis=2, full=True
    )
    # SSIM lies in -1..1; negative values overflow uint8, as in the winner's code
    diff = ((1 - similarity) * 255).astype(np.int64).astype(np.uint8)
    return cv2.cvtColor(diff, cv2.COLOR_RGB2GRAY)


def make_diffs(video: Video, root: Path) -> None:
    """Write one fake's diffs, and a skip reason for each crop that has none.

    Raises:
        UserError: a crop cannot be read.
    """
    skipped: list[str] = []
    originals = crops_dir(root, video.original)
    with atomic_folder(diffs_dir(root, video.name), skipped) as folder:
        for path in sorted(crops_dir(root, video.name).glob("*.png")):
            if not (originals / path.name).exists():
                skipped.append(
                    f"{path.name}: the original {video.original} has no such crop, "
                    "no diff"
                )
                continue
            fake, real = read_image(path), read_image(originals / path.name)
            if fake.shape != real.shape or min(fake.shape[:2]) < WINDOW:
                skipped.append(
                    f"{path.name}: {_size(fake)} cannot be compared "
                    f"with the original's {_size(real)}"
                )
                continue
            write_image(folder / f"{path.stem}_diff.png", difference(real, fake))


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"


def main(argv: list[str] | None = None) -> int:
    options = step_parser(__doc__).parse_args(argv)
    dataset = open_dataset(options)
    cropped = cropped_videos(dataset.root)
    return run_step(
        partial(make_diffs, root=dataset.root),
        [
            video
            for video in dataset.fakes
            if not video.has_own_boxes and video.name in cropped
        ],
        lambda video: diffs_dir(dataset.root, video.name),
        options,
        "4 make diffs",
    )


if __name__ == "__main__":
    run_main(main)
