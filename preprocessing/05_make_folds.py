"""Step 5: list every crop with its label and its fold.

    python -m preprocessing.05_make_folds --root-dir DATA

Reads  DATA/dfdc_train_part_N/metadata.json and the names below DATA/crops
Writes DATA/folds.csv: video,file,label,original,frame,fold; label 0 is REAL, 1 is FAKE
Method: the winner's 16 folds by part number: fold i holds parts 3i to 3i + 2, the last
       one all parts from 45. In DFDC no actor appears in two parts, so a network
       trained on the other folds has not seen a fold's faces. A fake is in the fold of
       its original. He listed two actors, frames up to 310, and only real videos that
       have a fake; here all are listed.
"""

import os
import random
import sys
from array import array
from collections.abc import Iterator

from tqdm import tqdm

from preprocessing.crop_table import COLUMNS
from preprocessing.dataset import Dataset
from preprocessing.dfdc import read_dataset
from preprocessing.layout import cropped_videos, crops_dir, folds_path
from preprocessing.step import step_parser
from runtime.cli import UserError, run_main
from runtime.files import write_csv

FOLDS = 16
PARTS_PER_FOLD = 3  # 50 parts // 16 folds; the remaining parts go to the last fold


def fold_of_part(part: int) -> int:
    """The fold that a DFDC part belongs to, 0 to 15."""
    return min(part // PARTS_PER_FOLD, FOLDS - 1)


def list_crops(dataset: Dataset) -> tuple[array, list[str]]:
    """List all crops in order: index of its video in `dataset.videos`, file name."""
    video_indices: array[int] = array("i")
    files: list[str] = []
    cropped = cropped_videos(dataset.root)
    progress = tqdm(dataset.videos, desc="5 make folds", unit="video")
    for index, video in enumerate(progress):
        if video.name in cropped:
            names = os.listdir(crops_dir(dataset.root, video.name))
            crops = [name for name in sorted(names) if name.endswith(".png")]
            video_indices.extend([index] * len(crops))
            files += map(sys.intern, crops)
    return video_indices, files


def fold_rows(
    dataset: Dataset, video_indices: array, files: list[str], seed: int
) -> Iterator[list]:
    """One row of `COLUMNS` for each crop, shuffled by `seed`."""
    parts = {video.name: video.part for video in dataset.videos}
    order = array("i", range(len(files)))
    random.Random(seed).shuffle(order)
    for position in order:
        video, file = dataset.videos[video_indices[position]], files[position]
        frame = int(file.split("_")[0])
        yield [
            video.name,
            file,
            int(video.is_fake),
            video.original,
            frame,
            fold_of_part(parts[video.original]),
        ]


def main(argv: list[str] | None = None) -> int:
    parser = step_parser(__doc__)
    parser.add_argument("--seed", type=int, default=777, help="seed of the row order")
    options = parser.parse_args(argv)
    dataset = read_dataset(options.root_dir)
    video_indices, files = list_crops(dataset)
    if not files:
        raise UserError(
            f"{dataset.root / 'crops'}: holds no crops of these videos; "
            "run steps 1 and 2 first"
        )
    path = folds_path(dataset.root)
    write_csv(path, COLUMNS, fold_rows(dataset, video_indices, files, options.seed))
    fakes = sum(dataset.videos[index].is_fake for index in video_indices)
    print(f"5 make folds: {len(files) - fakes} real and {fakes} fake crops in {path}")
    return 0


if __name__ == "__main__":
    run_main(main)
