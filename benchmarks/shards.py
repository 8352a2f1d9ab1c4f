"""Compare crops as files with crops in WebDataset shards: loader speed, disk usage.

    python -m benchmarks.shards [--crops 4000]

Method: crops of 300 pixels are cut from a public-domain portrait, with landmarks and
        diffs. The training loader reads one epoch of each format, first with an empty
        page cache (which only root can drop), then again; without augmentation, so that
        the time of reading dominates. "Only read" is one process that decodes nothing,
        also with an empty cache.
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

from benchmarks.measure import measure_in_new_process
from preprocessing.crop_table import COLUMNS, FORMATS, read_crop_table
from preprocessing.crops import write_array, write_image
from preprocessing.layout import crops_dir, diffs_dir, folds_path, landmarks_dir
from runtime.cli import fraction, make_parser, positive_int
from runtime.files import write_csv
from runtime.results import print_results
from training.config import Config
from training.dataset import BalancedSampler, TrainingCrops
from training.loaders import make_loader
from training.samples import Sample

CROP_SIZE, FRAMES = 300, 20
DROP_CACHES = Path("/proc/sys/vm/drop_caches")
LANDMARKS = [(100, 110), (200, 110), (150, 160), (110, 210), (190, 210)]


def make_crops(root: Path, crops: int) -> None:
    """Write pairs of a real and a fake video, 20 crops each; folds.csv is shuffled."""
    rng, portrait, rows = np.random.default_rng(0), skimage.data.astronaut(), []
    landmarks = np.array(LANDMARKS, np.int16)
    for number in range(crops // (2 * FRAMES)):
        for is_fake in (0, 1):
            video, original = f"{number:06}{'rf'[is_fake]}", f"{number:06}r"
            for folder in (crops_dir, landmarks_dir, diffs_dir):
                folder(root, video).mkdir(parents=True, exist_ok=True)
            for frame in range(0, 10 * FRAMES, 10):
                y, x = rng.integers(0, len(portrait) - CROP_SIZE, 2)
                crop = portrait[y : y + CROP_SIZE, x : x + CROP_SIZE]
                write_image(crops_dir(root, video) / f"{frame}_0.png", crop)
                if is_fake:
                    path = diffs_dir(root, video) / f"{frame}_0_diff.png"
                    write_image(path, crop[..., 0] // 4)
                else:
                    path = landmarks_dir(root, video) / f"{frame}_0.npy"
                    write_array(path, landmarks)
                rows.append([video, f"{frame}_0.png", is_fake, original, frame, 1])
    rng.shuffle(rows)
    write_csv(folds_path(root), COLUMNS, rows)


def disk_usage(folders: list[Path]) -> tuple[int, float]:
    """Number of files, and the MiB of the blocks that they occupy."""
    files = (path for folder in folders for path in folder.rglob("*"))
    stats = [path.stat() for path in files if path.is_file()]
    return len(stats), sum(512 * each.st_blocks for each in stats) / 2**20


def load_epoch(
    root: Path, form: str, size: int, batch: int, workers: int, augmented: float
) -> float:
    """Images a second of the training loader in one epoch over all crops."""
    crops = read_crop_table(root, form)
    count = len(crops) // batch * batch
    shards = crops["shard"] if crops.in_shards else None
    sampler = BalancedSampler(crops["label"], count, 0, shards=shards)
    config = Config(
        encoder="tf_efficientnet_b0", input={"size": size}, augmented=augmented
    )
    loader = make_loader(TrainingCrops(crops, config), workers, batch, sampler)
    iterator = iter(loader)
    next(iterator)  # wait for the start of the workers
    start = time.perf_counter()
    remaining = sum(1 for _ in iterator)
    return remaining * batch / (time.perf_counter() - start)


def read_epoch(root: Path, form: str) -> float:
    """Crops a second that one process reads in the order of training, not decoded."""
    crops = read_crop_table(root, form)
    shards = crops["shard"] if crops.in_shards else None
    sampler = BalancedSampler(crops["label"], len(crops), 0, shards=shards)
    order = [row for row, _ in sampler]
    start = time.perf_counter()
    for row in order:
        if crops.in_shards:
            assert Sample(crops, row)._members["png"]
        else:
            assert [path.read_bytes() for path in crops.files(row) if path.exists()]
    return len(order) / (time.perf_counter() - start)


def measure_speeds(read, load) -> list[float]:
    """Items a second of reading, of a first and of a second epoch of the loader.

    The page cache is dropped before the first two, if permitted.
    """
    speeds = []
    for task in (read, load, load):
        if len(speeds) < 2 and os.access(DROP_CACHES, os.W_OK):
            os.sync()
            DROP_CACHES.write_text("3")
        speeds.append(round(measure_in_new_process(task)[0], 1))
    return speeds


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument(
        "--crops", type=positive_int, default=4000, help="number of crops"
    )
    parser.add_argument(
        "--shard-crops", type=positive_int, default=500, help="crops per shard"
    )
    parser.add_argument(
        "--size", type=positive_int, default=96, help="input size, pixels a side"
    )
    parser.add_argument("--batch", type=positive_int, default=32, help="images a batch")
    parser.add_argument(
        "--workers", type=positive_int, default=os.cpu_count(), help="loader workers"
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
            load = partial(
                load_epoch,
                root,
                form,
                options.size,
                options.batch,
                options.workers,
                options.augmented,
            )
            speeds = measure_speeds(partial(read_epoch, root, form), load)
            files, size = disk_usage(folders[form])
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
        cache_was_emptied=os.access(DROP_CACHES, os.W_OK),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
