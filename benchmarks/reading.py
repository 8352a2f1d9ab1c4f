"""Reading the 32 frames of a video that inference looks at.

    python -m benchmarks.reading [--video FILE]

plain: OpenCV, every frame decoded; limit: PyAV decodes what the 32 frames need and converts nothing. All three on one thread,
as in a worker process, unless --threads says otherwise.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks import plain
from benchmarks.measure import made_video, ratio_rows, side_by_side
from inference.extraction import frame_numbers
from preprocessing import video
from runtime.cli import make_parser, positive_int
from runtime.results import print_results


def ours(path, numbers):
    return list(video.read_frames(path, numbers))


def decode_only(path, numbers):
    times = video._presentation_times(path)
    return sum(
        1 for _ in video._decode_wanted(path, [times[number] for number in numbers])
    )


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument(
        "--video", type=Path, help="a made 1080p clip of 10 seconds if not given"
    )
    parser.add_argument(
        "--threads", type=positive_int, default=1, help="decoding threads of each"
    )
    parser.add_argument(
        "--rounds", type=positive_int, default=5, help="timed runs of each"
    )
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        path = options.video or made_video(Path(folder) / "made.mp4")
        numbers = frame_numbers(video.probe(path).frames, 32)
        ways = {
            "plain": partial(plain.read, path, numbers),
            "ours": partial(ours, path, numbers),
            "limit: decode only, skipping": partial(decode_only, path, numbers),
        }
        seconds = side_by_side(ways, options.rounds, options.threads)
    print_results(
        "reading",
        ratio_rows(seconds, "plain"),
        video=path.name,
        threads=options.threads,
        ours_by_limit=round(
            seconds["ours"] / seconds["limit: decode only, skipping"], 2
        ),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
