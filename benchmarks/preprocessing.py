"""Steps 1 to 5 on a DFDC folder, as programs, start-up included.

    python -m benchmarks.preprocessing [--root-dir DATA]

plain: five programs, one for each step, which search every frame of the originals; limit: decoding each video once, in as many
processes as ours. The folder is copied for each; also counts how many crops are alike byte for byte.
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
from benchmarks.measure import made_video, one_after_the_other, ratio_rows, run_module
from preprocessing.dfdc import read_dataset
from preprocessing.video import decode, open_video
from runtime.cli import make_parser, positive_int
from runtime.results import print_results


def made_dataset(root: Path) -> Path:
    """Three originals of 10 seconds and a fake of each."""
    folder = root / "dfdc_train_part_0"
    folder.mkdir(parents=True)
    entries = {}
    for number, (width, height) in enumerate([(1920, 1080), (1280, 720), (640, 480)]):
        real, fake = f"real{number}.mp4", f"fake{number}.mp4"
        made_video(folder / real, width, height)
        made_video(folder / fake, width, height, fake=True)
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
        return sum(1 for _ in decode(container, container.streams.video[0]))


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument(
        "--root-dir",
        type=Path,
        help="a DFDC folder; a made one of six videos if not given",
    )
    parser.add_argument(
        "--workers",
        type=positive_int,
        default=os.cpu_count(),
        help="processes of ours and of the limit",
    )
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        source = options.root_dir or made_dataset(Path(folder) / "made")
        roots = {name: Path(folder) / name for name in ("plain", "ours")}
        for root in roots.values():
            for part in source.glob("dfdc_train_part_*"):
                shutil.copytree(part, root / part.name, copy_function=shutil.copyfile)
        ways = {
            "plain": partial(run_plain, roots["plain"]),
            "ours": partial(run_ours, roots["ours"], options.workers),
            "limit: decode each video": partial(decode_all, source, options.workers),
        }
        seconds = one_after_the_other(ways)
        crops = [
            path.relative_to(roots["plain"])
            for path in (roots["plain"] / "crops").rglob("*.png")
        ]
        alike = sum(
            filecmp.cmp(roots["plain"] / path, roots["ours"] / path, shallow=False)
            for path in crops
            if (roots["ours"] / path).exists()
        )
        videos = len(read_dataset(source).videos)
    print_results(
        "preprocessing",
        ratio_rows(seconds, "plain"),
        videos=videos,
        workers=options.workers,
        crops_alike=f"{alike} of {len(crops)}",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
