"""Step 5: list every crop with its label and its fold.

    python -m preprocessing.05_make_folds --root-dir DATA

Reads  DATA/dfdc_train_part_N/metadata.json and the names below DATA/crops
Writes DATA/folds.csv: video,file,label,original,frame,fold; label 0 is REAL and 1 is FAKE
Method: the winner's 16 folds by part number: fold i holds parts 3i to 3i + 2, the last one all from 45 up. DFDC's actors
       do not cross parts, so a fold's faces are new to a network trained on the others. A fake goes where its original
       goes. He listed two actors and frames up to 310, and only real videos with a fake; here all are listed.
"""

import os
import random
from pathlib import Path

from tqdm import tqdm

from preprocessing.cli import UserError, run_main
from preprocessing.dfdc import Dataset, Video, crops_folder, folds_file, read_dataset
from preprocessing.files import write_csv
from preprocessing.run import step_parser

FOLDS = 16
PARTS_PER_FOLD = 3  # 50 parts // 16 folds; the parts left over join the last fold
COLUMNS = ["video", "file", "label", "original", "frame", "fold"]


def fold_of_part(part: int) -> int:
    """The fold that a DFDC part belongs to, 0 to 15."""
    return min(part // PARTS_PER_FOLD, FOLDS - 1)


def fold_rows(dataset: Dataset, seed: int) -> list[list]:
    """One row of `COLUMNS` for each crop, shuffled by `seed`."""
    parts = {video.name: video.part for video in dataset.videos}
    rows = []
    for video in tqdm(dataset.videos, desc="5 make folds", unit="video"):
        rows += _video_rows(dataset.root, video, fold_of_part(parts[video.original]))
    random.Random(seed).shuffle(rows)
    return rows


def _video_rows(root: Path, video: Video, fold: int) -> list[list]:
    folder = crops_folder(root, video.name)
    files = sorted(name for name in os.listdir(folder) if name.endswith(".png")) if folder.exists() else []
    return [[video.name, file, int(video.is_fake), video.original, int(file.split("_")[0]), fold] for file in files]


def main(argv: list[str] | None = None) -> int:
    parser = step_parser(__doc__)
    parser.add_argument("--seed", type=int, default=777, help="of the order of the rows")
    options = parser.parse_args(argv)
    dataset = read_dataset(options.root_dir)
    rows = fold_rows(dataset, options.seed)
    if not rows:
        raise UserError(f"{dataset.root / 'crops'}: holds no crops of these videos; run steps 1 and 2 first")
    path = folds_file(dataset.root)
    write_csv(path, COLUMNS, rows)
    fakes = sum(row[COLUMNS.index("label")] for row in rows)
    print(f"5 make folds: {len(rows) - fakes} real and {fakes} fake crops in {path}")
    return 0


if __name__ == "__main__":
    run_main(main)
