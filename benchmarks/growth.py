"""How the cost of predicting grows with the number of videos and of worker processes; start-up apart.

    python -m benchmarks.growth [--video FILE] [--videos 1 2 4 8] [--workers 0 2]

Start-up is what a run over one file that is no video takes: imports and loading the networks. The videos are links to one.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.measure import made_checkpoints, made_video, run_module, timed
from runtime.cli import make_parser, non_negative_int, positive_int
from runtime.results import print_results


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument(
        "--video", type=Path, help="a made 1080p clip of 10 seconds if not given"
    )
    parser.add_argument(
        "--videos", type=positive_int, nargs="+", default=[1, 2, 4, 8], help="how many"
    )
    parser.add_argument(
        "--workers",
        type=non_negative_int,
        nargs="+",
        default=[0, 2],
        help="how many; 0: in one process",
    )
    parser.add_argument(
        "--encoder", default="tf_efficientnet_b0", help="of the one untrained network"
    )
    parser.add_argument(
        "--size", type=positive_int, default=224, help="its input, pixels a side"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        video = (options.video or made_video(folder / "made.mp4")).resolve()
        model = made_checkpoints(folder, [options.encoder], options.size)[0]

        def seconds(videos: Path, workers: int) -> float:
            return timed(
                partial(
                    run_module,
                    "inference.predict",
                    "--test-dir",
                    videos,
                    "--output",
                    folder / "s.csv",
                    "--weights-dir",
                    folder,
                    "--models",
                    model.name,
                    "--workers",
                    workers,
                    "--device",
                    options.device,
                )
            )

        broken = folder / "broken"
        broken.mkdir()
        (broken / "no.mp4").write_text("no video")
        seconds(broken, 0)
        start_up = seconds(broken, 0)
        rows = []
        for workers in options.workers:
            for count in options.videos:
                videos = folder / f"{workers}_{count}"
                videos.mkdir()
                for number in range(count):
                    (videos / f"{number}.mp4").symlink_to(video)
                taken = seconds(videos, workers)
                rows.append(
                    {
                        "workers": workers,
                        "videos": count,
                        "seconds": round(taken, 1),
                        "seconds a video after start-up": round(
                            (taken - start_up) / count, 2
                        ),
                        "videos a second, all in": round(count / taken, 3),
                    }
                )
    print_results(
        "growth",
        rows,
        video=video.name,
        start_up_in_seconds=round(start_up, 2),
        network=options.encoder,
        size=options.size,
        device=options.device,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
