"""Measure the peak memory of prediction: a minute of 4K against 10 seconds of 1080p.

    python -m benchmarks.memory

The peak resident set size that the operating system reports. The goal is a ratio of at
most 2. Each prediction is a separate program, with one small network.
"""

import resource
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from benchmarks.measure import make_checkpoints, make_video, run_module
from runtime.cli import make_parser, positive_int
from runtime.results import print_results


def peak(task) -> float:
    """Peak memory in MiB of the largest program that a task starts.

    The task runs in a process of its own, which starts nothing else.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_peak, task).result()


def _peak(task):
    task()
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument(
        "--seconds",
        type=positive_int,
        default=60,
        help="length of the 4K clip, which takes minutes to make",
    )
    options = parser.parse_args(argv)
    clips = {"1080p": (1920, 1080, 10), "4K": (3840, 2160, options.seconds)}
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_checkpoints(folder, ["tf_efficientnet_b0"], 224)[0]
        for clip, (width, height, seconds) in clips.items():
            path = make_video(folder / f"{clip}.mp4", width, height, seconds)
            arguments = (
                f"--test-dir={path}",
                f"--output={folder / 's.csv'}",
                f"--weights-dir={folder}",
                f"--models={model.name}",
                "--workers=0",
                "--device=cpu",
            )
            predict = partial(run_module, "inference.predict", *arguments)
            rows.append(
                {
                    "clip": f"{clip}, {seconds} s",
                    "file in MiB": round(path.stat().st_size / 2**20, 1),
                    "peak memory in MiB": round(peak(predict)),
                }
            )
        start_up = round(peak(partial(run_module, "inference.predict", "--help")))
    small, large = (row["peak memory in MiB"] for row in rows)
    ratio = round(large / small, 2)
    print_results("memory", rows, ratio=ratio, start_up_in_MiB=start_up)
    return 0


if __name__ == "__main__":
    sys.exit(main())
