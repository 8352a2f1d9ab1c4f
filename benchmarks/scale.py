"""All of DFDC's names on one machine: 119,146 videos and two million crops that are empty files.

    python -m benchmarks.scale [--videos 119146] [--crops 2000000]
    python -m benchmarks.scale --videos 10000 --crops 200000        a small one

Times and peak memory of reading the metadata, of a step that finds all its work done, of step 5, of reading folds.csv, and
the memory of loader processes beside the same with a thousand crops. What runs is started anew for each row.
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

from benchmarks.measure import in_a_new_process
from preprocessing.crop_table import read_crop_table
from preprocessing.dfdc import read_dataset
from preprocessing.layout import boxes_path, crops_dir
from runtime.cli import make_parser, positive_int
from runtime.results import print_results
from training.config import Config
from training.dataset import BalancedSampler, TrainingCrops
from training.train import _make_loader

PARTS = 50
REALS = 19_154 / 119_146  # DFDC's share
BATCH = 32
WORKERS = 2


def make_tree(root: Path, videos: int, crops: int) -> None:
    """Part folders with metadata.json and empty videos, boxes and crops of the right names."""
    rng = random.Random(0)
    names = [f"{number:010x}" for number in rng.sample(range(16**10), videos)]
    reals = int(videos * REALS)
    for number in range(PARTS):
        real, fake = names[number:reals:PARTS], names[reals + number :: PARTS]
        entries = {f"{name}.mp4": {"label": "REAL", "split": "train"} for name in real}
        entries |= {
            f"{name}.mp4": {
                "label": "FAKE",
                "split": "train",
                "original": f"{rng.choice(real)}.mp4",
            }
            for name in fake
        }
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
    """Without its output."""
    with (
        open(os.devnull, "w") as nowhere,
        redirect_stdout(nowhere),
        redirect_stderr(nowhere),
    ):
        import_module(f"preprocessing.{step}").main(
            ["--root-dir", str(root), "--workers", "0"]
        )


class Blank(TrainingCrops):
    """Black images instead of the empty files; the names are looked up."""

    def _read(self, row, rng):
        assert self.crops.files(row).png.name
        return np.zeros((300, 300, 3), np.uint8)


def loader_memory(root: Path, crops: int) -> list[float]:
    """MiB of a loader process that are its own, after 20 and after 200 batches, its table cut to `crops` rows."""
    table = read_crop_table(root)
    table = table.where(np.arange(len(table)) < crops)
    sampler = BalancedSampler(table["label"], 200 * BATCH, 0)
    config = Config(encoder="tf_efficientnet_b0", input={"size": 96}, augmented=0)
    loader, found = _make_loader(Blank(table, config), WORKERS, BATCH, sampler), []
    for number, _ in enumerate(loader, 1):
        if number in (20, 200):
            found.append(
                max(_private(worker.pid) for worker in loader._iterator._workers)
            )
    return found


def _private(process: int) -> float:
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return (
        sum(int(line.split()[1]) for line in lines if line.startswith("Private")) / 1024
    )


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument(
        "--videos", type=positive_int, default=119_146, help="DFDC's training videos"
    )
    parser.add_argument(
        "--crops", type=positive_int, default=2_000_000, help="of all videos"
    )
    options = parser.parse_args(argv)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        make_tree(root, options.videos, options.crops)
        ways = {
            "read the metadata": partial(_count_videos, root),
            "step 1, all done": partial(run_step, "01_detect_faces", root),
            "step 5, folds.csv": partial(run_step, "05_make_folds", root),
            "read folds.csv": partial(_count_crops, root),
        }
        for way, work in ways.items():
            _, seconds, memory = in_a_new_process(work)
            rows.append(
                {
                    "what": way,
                    "seconds": round(seconds, 1),
                    "memory added in MiB": round(memory),
                }
            )
        size = (root / "folds.csv").stat().st_size / 2**20
        small, _, _ = in_a_new_process(partial(loader_memory, root, 1000))
        large, _, _ = in_a_new_process(partial(loader_memory, root, options.crops))
    loader = {
        f"{count} crops": {
            "after 20 batches": round(found[0], 1),
            "after 200": round(found[1], 1),
        }
        for count, found in ((1000, small), (options.crops, large))
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
