"""Measure a data set of DFDC's size: 119,146 videos, two million crops, as empty files.

    python -m benchmarks.scale [--videos 119146] [--crops 2000000]
    python -m benchmarks.scale --videos 10000 --crops 200000        a smaller run

Time and peak memory of reading the metadata, of a step whose work is already done, of
step 5 and of reading folds.csv; memory of the data loader's workers, compared with the
same for a thousand crops. Each row is measured in a new process.
"""

import json
import os
import random
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np

from benchmarks.measure import measure_in_new_process
from preprocessing.crop_table import read_crop_table
from preprocessing.datasets.dfdc import read_dataset
from preprocessing.layout import boxes_path, crops_dir
from runtime.cli import make_parser, positive_int
from runtime.results import print_results
from training.config import Config
from training.dataset import BalancedSampler, TrainingCrops
from training.loaders import make_loader

PARTS = 50
REAL_SHARE = 19_154 / 119_146  # of DFDC's training videos
BATCH = 32
WORKERS = 2


def make_tree(root: Path, videos: int, crops: int) -> None:
    """Write part folders with metadata.json, and empty videos, boxes and crops."""
    rng = random.Random(0)
    names = [f"{number:010x}" for number in rng.sample(range(16**10), videos)]
    reals = int(videos * REAL_SHARE)
    for number in range(PARTS):
        real, fake = names[number:reals:PARTS], names[reals + number :: PARTS]
        entries = {f"{name}.mp4": {"label": "REAL", "split": "train"} for name in real}
        for name in fake:
            original = f"{rng.choice(real)}.mp4"
            entry = {"label": "FAKE", "split": "train", "original": original}
            entries[f"{name}.mp4"] = entry
        folder = root / f"dfdc_train_part_{number}"
        folder.mkdir(parents=True)
        (folder / "metadata.json").write_text(json.dumps(entries))
        for entry in entries:
            (folder / entry).touch()
        for name in real:
            boxes_path(root, name).parent.mkdir(exist_ok=True)
            boxes_path(root, name).touch()
    for number, name in enumerate(names):
        folder = crops_dir(root, name)
        folder.mkdir(parents=True)
        for frame in range(crops * (number + 1) // videos - crops * number // videos):
            os.close(os.open(folder / f"{10 * frame}_0.png", os.O_CREAT))


def run_step(step: str, root: Path) -> None:
    """Run a preprocessing step without its output."""
    main = import_module(f"preprocessing.{step}").main
    with open(os.devnull, "w") as null, redirect_stdout(null), redirect_stderr(null):
        main(["--root-dir", str(root), "--workers", "0"])


class BlankCrops(TrainingCrops):
    """Black images in place of the empty files; the names are looked up."""

    def _read(self, row, *_):
        assert self.crops.files(row).image.name
        return [np.zeros((300, 300, 3), np.uint8)], 0.0


def loader_memory(root: Path, crops: int) -> list[float]:
    """Private memory of a loader worker, for a table of the first `crops` rows.

    Returns:
        MiB of the largest worker after 20 and after 200 batches.
    """
    table = read_crop_table(root)
    table = table.select(np.arange(len(table)) < crops)
    sampler = BalancedSampler(table["label"], 200 * BATCH, 0)
    config = Config(encoder="tf_efficientnet_b0", input={"size": 96}, augmented=0)
    loader = make_loader(BlankCrops(table, config), WORKERS, BATCH, sampler)
    memory = []
    for number, _ in enumerate(loader, 1):
        if number in (20, 200):
            workers = loader._iterator._workers
            memory.append(max(_private_memory(worker.pid) for worker in workers))
    return memory


def _private_memory(pid: int) -> float:
    """Memory in MiB that a process does not share."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    private = [line for line in lines if line.startswith("Private")]
    return sum(int(line.split()[1]) for line in private) / 1024


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument(
        "--videos", type=positive_int, default=119_146, help="number of videos"
    )
    parser.add_argument(
        "--crops", type=positive_int, default=2_000_000, help="crops of all videos"
    )
    options = parser.parse_args(argv)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        make_tree(root, options.videos, options.crops)
        tasks = {
            "read the metadata": partial(_count_videos, root),
            "step 1, all done": partial(run_step, "01_detect_faces", root),
            "step 5, folds.csv": partial(run_step, "05_make_folds", root),
            "read folds.csv": partial(_count_crops, root),
        }
        for task, function in tasks.items():
            _, seconds, memory = measure_in_new_process(function)
            rows.append(
                {
                    "what": task,
                    "seconds": round(seconds, 1),
                    "memory added in MiB": round(memory),
                }
            )
        size = (root / "folds.csv").stat().st_size / 2**20
        loader = {}
        for count in (1000, options.crops):
            measure_loader = partial(loader_memory, root, count)
            (early, late), _, _ = measure_in_new_process(measure_loader)
            loader[f"{count} crops"] = {
                "after 20 batches": round(early, 1),
                "after 200": round(late, 1),
            }
    print_results(
        "scale",
        rows,
        videos=options.videos,
        crops=options.crops,
        folds_csv_in_MiB=round(size, 1),
        loader_process_in_MiB=loader,
    )
    return 0


def _count_videos(root: Path) -> int:
    return len(read_dataset(root).videos)


def _count_crops(root: Path) -> int:
    return len(read_crop_table(root))


if __name__ == "__main__":
    sys.exit(main())
