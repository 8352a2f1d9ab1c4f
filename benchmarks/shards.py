"""Crops as files and as WebDataset shards: images a second of training's loader, files, bytes on disk.

    python -m benchmarks.shards [--crops 4000]

Crops of 300 pixels are made of a public-domain portrait, with landmarks and diffs. The loader reads one epoch of each format,
first with nothing in the system's cache (which only root may empty), then again; without augmentation, so that reading counts.
"Only read" is one process that decodes nothing, with an empty cache too.
"""

import os
import sys
import tempfile
import time
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import skimage.data

from benchmarks.measure import in_a_new_process
from preprocessing.crop_table import COLUMNS, FORMATS, read_crop_table
from preprocessing.crops import write_array, write_image
from preprocessing.layout import crops_dir, diffs_dir, folds_path, landmarks_dir
from runtime.cli import fraction, make_parser, positive_int
from runtime.files import write_csv
from runtime.results import print_results
from training.config import Config
from training.dataset import BalancedSampler, TrainingCrops
from training.samples import Sample
from training.train import _make_loader

SIDE, FRAMES = 300, 20
CACHE = Path("/proc/sys/vm/drop_caches")


def make_crops(root: Path, crops: int) -> None:
    """Pairs of a real and a fake video with 20 crops each, and folds.csv in random order."""
    rng, portrait, rows = np.random.default_rng(0), skimage.data.astronaut(), []
    landmarks = np.array(
        [[100, 110], [200, 110], [150, 160], [110, 210], [190, 210]], np.int16
    )
    for number in range(crops // (2 * FRAMES)):
        for is_fake in (0, 1):
            video, original = f"{number:06}{'rf'[is_fake]}", f"{number:06}r"
            for folder in (crops_dir, landmarks_dir, diffs_dir):
                folder(root, video).mkdir(parents=True, exist_ok=True)
            for frame in range(0, 10 * FRAMES, 10):
                y, x = rng.integers(0, len(portrait) - SIDE, 2)
                cut = portrait[y : y + SIDE, x : x + SIDE]
                write_image(crops_dir(root, video) / f"{frame}_0.png", cut)
                if is_fake:
                    write_image(
                        diffs_dir(root, video) / f"{frame}_0_diff.png", cut[..., 0] // 4
                    )
                else:
                    write_array(
                        landmarks_dir(root, video) / f"{frame}_0.npy", landmarks
                    )
                rows.append([video, f"{frame}_0.png", is_fake, original, frame, 1])
    rng.shuffle(rows)
    write_csv(folds_path(root), COLUMNS, rows)


def on_disk(folders: list[Path]) -> tuple[int, float]:
    """Files, and MiB with the unused ends of their blocks."""
    stats = [
        path.stat()
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file()
    ]
    return len(stats), sum(512 * each.st_blocks for each in stats) / 2**20


def epoch(
    root: Path, form: str, size: int, batch: int, workers: int, augmented: float
) -> float:
    """Images a second of one epoch over all crops."""
    crops = read_crop_table(root, form)
    count = len(crops) // batch * batch
    sampler = BalancedSampler(
        crops["label"], count, 0, shards=crops["shard"] if crops.packed else None
    )
    config = Config(
        encoder="tf_efficientnet_b0", input={"size": size}, augmented=augmented
    )
    loader = _make_loader(TrainingCrops(crops, config), workers, batch, sampler)
    iterator = iter(loader)
    next(iterator)  # the workers have started
    start = time.perf_counter()
    left = sum(1 for _ in iterator)
    return left * batch / (time.perf_counter() - start)


def read_only(root: Path, form: str) -> float:
    """Crops a second that one process reads in the order in which training draws them, without decoding."""
    crops = read_crop_table(root, form)
    shards = crops["shard"] if crops.packed else None
    order = [
        row for row, _ in BalancedSampler(crops["label"], len(crops), 0, shards=shards)
    ]
    start = time.perf_counter()
    for row in order:
        if crops.packed:
            assert Sample(crops, row)._members["png"]
        else:
            assert [path.read_bytes() for path in crops.files(row) if path.exists()]
    return len(order) / (time.perf_counter() - start)


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("--crops", type=positive_int, default=4000, help="crops made")
    parser.add_argument(
        "--shard-crops", type=positive_int, default=500, help="crops in a shard"
    )
    parser.add_argument("--size", type=positive_int, default=96, help="pixels a side")
    parser.add_argument("--batch", type=positive_int, default=32, help="images a batch")
    parser.add_argument(
        "--workers", type=positive_int, default=os.cpu_count(), help="of the loader"
    )
    parser.add_argument(
        "--augmented",
        type=fraction,
        default=0.0,
        help="share of crops that are augmented",
    )
    options = parser.parse_args(argv)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        make_crops(root, options.crops)
        pack = import_module("preprocessing.06_pack_shards").main
        start = time.perf_counter()
        pack(["--root-dir", name, "--shard-crops", str(options.shard_crops)])
        packing = time.perf_counter() - start
        folders = {
            "files": [root / "crops", root / "landmarks", root / "diffs"],
            "wds": [root / "shards"],
        }
        for form in FORMATS:
            work = partial(
                epoch,
                root,
                form,
                options.size,
                options.batch,
                options.workers,
                options.augmented,
            )
            speeds = []
            for each in (partial(read_only, root, form), work, work):
                if len(speeds) < 2 and os.access(CACHE, os.W_OK):
                    os.sync()
                    CACHE.write_text("3")
                speeds.append(round(in_a_new_process(each)[0], 1))
            files, size = on_disk(folders[form])
            rows.append(
                {
                    "format": form,
                    "files": files,
                    "MiB on disk": round(size, 1),
                    "only read, a second": speeds[0],
                    "images a second, first": speeds[1],
                    "again": speeds[2],
                }
            )
    print_results(
        "shards",
        rows,
        crops=options.crops,
        size=options.size,
        workers=options.workers,
        augmented=options.augmented,
        packing_in_seconds=round(packing, 1),
        cache_was_emptied=os.access(CACHE, os.W_OK),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
