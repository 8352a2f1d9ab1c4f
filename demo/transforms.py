"""Draw what training can do to a crop, on the demo's public-domain portrait.

    python -m demo.transforms --output docs/transforms.png

Writes a PNG: a row for each transform of `training.self_blend`, `training.codec`,
`training.cutout` and mixup, with other random draws from left to right.
"""

import random
from pathlib import Path

import numpy as np
import skimage.data

from runtime.cli import make_parser, run_main
from runtime.files import save_figure
from training import codec
from training.cutout import half_cutout, hull_cutout, landmark_cutout
from training.self_blend import part_blend, self_blend

CROP = np.s_[10:270, 118:328]  # of skimage's astronaut
LANDMARKS = np.array([[74, 72], [116, 70], [97, 96], [80, 122], [116, 120]])
COLUMNS = 6


def draw(crop: np.ndarray, column: int) -> dict[str, np.ndarray]:
    """Each transform of a crop (H, W, 3) uint8 RGB by the column's random draws."""
    rng, choices = np.random.default_rng(column), random.Random(column)
    blended, mask = self_blend(crop, LANDMARKS, rng)
    share = (column + 0.5) / COLUMNS
    diff = (mask * 255).astype(np.uint8)
    mixed = (1 - share) * crop.astype(float) + share * blended
    return {
        "crop": crop,
        "self-blend": blended,
        "its mask": np.repeat(diff[..., None], 3, axis=2),
        "part blend": part_blend(crop, LANDMARKS, rng)[0],
        "mixup of a pair": np.rint(mixed).astype(np.uint8),
        "JPEG 100-40": codec.jpeg(crop, 100 - 12 * column),
        "H.264, CRF 17-39": codec.h264(crop, 17 + 22 * column // (COLUMNS - 1)),
        "scaled 1-0.25": codec.fewer_pixels(crop, 1 - 0.15 * column),
        "landmark cutout": landmark_cutout(crop, LANDMARKS, choices),
        "half-face cutout": hull_cutout(crop, LANDMARKS, choices),
        "half-image cutout": half_cutout(crop, diff, True, choices),
    }


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--output", type=Path, required=True, help="a PNG")
    options = parser.parse_args(argv)
    crop = np.ascontiguousarray(skimage.data.astronaut()[CROP])
    columns = [draw(crop, column) for column in range(COLUMNS)]
    names = list(columns[0])
    with save_figure(options.output, 0.8 * COLUMNS + 1.3, 0.95 * len(names)) as figure:
        grid = figure.subplots(len(names), COLUMNS)
        for row, name in enumerate(names):
            for axes, column in zip(grid[row], columns):
                axes.imshow(column[name])
                axes.set(xticks=[], yticks=[])
            grid[row][0].set_ylabel(name, rotation=0, ha="right", va="center")
    print(options.output)
    return 0


if __name__ == "__main__":
    run_main(main)
