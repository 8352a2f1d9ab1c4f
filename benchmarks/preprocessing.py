"""Time preprocessing steps 1 to 5 on a DFDC folder, as programs, start-up included.

    python -m benchmarks.preprocessing [--root-dir DATA]

Variants: plain  five programs, one for each step, that search every frame of the
                 originals
          ours   python -m preprocessing
          limit  decoding each video once, in as many processes as ours
The folder is copied for each variant. Also counts the crops that are equal byte for
byte.
"""

import filecmp
import json
import os
import shutil
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from benchmarks import plain
from benchmarks.measure import make_video, ratio_rows, run_module, time_once
from preprocessing.datasets.dfdc import read_dataset
from preprocessing.video import choose_stream, decode, open_video
from runtime.cli import make_parser, positive_int
from runtime.results import print_results


def make_dataset(root: Path) -> Path:
    """Write three original videos of 10 seconds, and a fake of each."""
    folder = root / "dfdc_train_part_0"
    folder.mkdir(parents=True)
    entries = {}
    for number, (width, height) in enumerate([(1920, 1080), (1280, 720), (640, 480)]):
        real, fake = f"real{number}.mp4", f"fake{number}.mp4"
        make_video(folder / real, width, height)
        make_video(folder / fake, width, height, fake=True)
        entries |= {real: {"label": "REAL"}, fake: {"label": "FAKE", "original": real}}
    (folder / "metadata.json").write_text(json.dumps(entries))
    return root


def run_plain(root):
    for step in plain.STEPS:
        run_module("benchmarks.plain", step, "--root-dir", root)


def run_ours(root, workers):
    run_module(
        "preprocessing", "--root-dir", root, "--workers", workers, "--device", "cpu"
    )


def decode_all(root, workers):
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        list(pool.map(_decode, [video.path for video in read_dataset(root).videos]))


def _decode(path):
    with open_video(path) as container:
        return sum(1 for _ in decode(container, choose_stream(path, container)[0]))


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument(
        "--root-dir",
        type=Path,
        help="a DFDC folder; default: a synthetic one of six videos",
    )
    parser.add_argument(
        "--workers",
        type=positive_int,
        default=os.cpu_count(),
        help="worker processes of ours and of the limit",
    )
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        source = options.root_dir or make_dataset(Path(folder) / "made")
        roots = {name: Path(folder) / name for name in ("plain", "ours")}
        for root in roots.values():
            for part in source.glob("dfdc_train_part_*"):
                shutil.copytree(part, root / part.name, copy_function=shutil.copyfile)
        variants = {
            "plain": partial(run_plain, roots["plain"]),
            "ours": partial(run_ours, roots["ours"], options.workers),
            "limit: decode each video": partial(decode_all, source, options.workers),
        }
        seconds = time_once(variants)
        equal, crops = count_equal_crops(roots["plain"], roots["ours"])
        videos = len(read_dataset(source).videos)
    print_results(
        "preprocessing",
        ratio_rows(seconds, "plain"),
        videos=videos,
        workers=options.workers,
        crops_alike=f"{equal} of {crops}",
    )
    return 0


def count_equal_crops(root: Path, other: Path) -> tuple[int, int]:
    """Count the crops of `root` that `other` holds byte for byte, and all of `root`."""
    crops = [path.relative_to(root) for path in (root / "crops").rglob("*.png")]
    equal = sum(
        filecmp.cmp(root / path, other / path, shallow=False)
        for path in crops
        if (other / path).exists()
    )
    return equal, len(crops)


if __name__ == "__main__":
    sys.exit(main())
