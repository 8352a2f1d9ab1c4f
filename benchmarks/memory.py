"""Peak memory of predicting one video, as the operating system counts it: a minute of 4K against 10 seconds of 1080p.

    python -m benchmarks.memory

The aim: no more than twice as much. Each prediction is a program of its own, with one small network.
"""

import resource
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from benchmarks.measure import made_checkpoints, made_video, run_module
from runtime.cli import make_parser, positive_int
from runtime.results import print_results


def peak(work) -> float:
    """MiB that the largest program started by `work` held, in a process that starts no other."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_peak, work).result()


def _peak(work):
    work()
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
        model = made_checkpoints(folder, ["tf_efficientnet_b0"], 224)[0]
        for clip, (width, height, seconds) in clips.items():
            path = made_video(folder / f"{clip}.mp4", width, height, seconds)
            work = partial(
                run_module,
                "inference.predict",
                "--test-dir",
                path,
                "--output",
                folder / "s.csv",
                "--weights-dir",
                folder,
                "--models",
                model.name,
                "--workers",
                0,
                "--device",
                "cpu",
            )
            rows.append(
                {
                    "clip": f"{clip}, {seconds} s",
                    "file in MiB": round(path.stat().st_size / 2**20, 1),
                    "peak memory in MiB": round(peak(work)),
                }
            )
        start_up = round(peak(partial(run_module, "inference.predict", "--help")))
    one, other = (row["peak memory in MiB"] for row in rows)
    print_results("memory", rows, ratio=round(other / one, 2), start_up_in_MiB=start_up)
    return 0


if __name__ == "__main__":
    sys.exit(main())
