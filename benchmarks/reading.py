"""Time reading the 32 frames of a video that inference uses.

    python -m benchmarks.reading [--video FILE]

Variants: plain  OpenCV, every frame decoded
          ours   preprocessing/video.py
          limit  PyAV decodes only the frames that the 32 depend on, and converts none
All three use one thread, as a worker process does, unless --threads is given.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks import plain
from benchmarks.measure import make_video, ratio_rows, side_by_side
from inference.extraction import frame_numbers
from preprocessing import video
from runtime.cli import make_parser, positive_int
from runtime.results import print_results


def ours(path, numbers):
    return list(video.read_frames(path, numbers))


def decode_only(path, numbers):
    times = video.probe(path).timestamps
    wanted = [times[number] for number in numbers]
    return sum(1 for _ in video._decode_wanted(path, wanted))


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument(
        "--video", type=Path, help="default: a synthetic 1080p clip of 10 seconds"
    )
    parser.add_argument(
        "--threads",
        type=positive_int,
        default=1,
        help="decoding threads of each variant",
    )
    parser.add_argument(
        "--rounds", type=positive_int, default=5, help="timed runs of each variant"
    )
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        path = options.video or make_video(Path(folder) / "made.mp4")
        numbers = frame_numbers(video.probe(path).frames, 32)
        limit = "limit: decode only, skipping"
        variants = {
            "plain": partial(plain.read, path, numbers),
            "ours": partial(ours, path, numbers),
            limit: partial(decode_only, path, numbers),
        }
        seconds = side_by_side(variants, options.rounds, options.threads)
    print_results(
        "reading",
        ratio_rows(seconds, "plain"),
        video=path.name,
        threads=options.threads,
        ours_by_limit=round(seconds["ours"] / seconds[limit], 2),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
