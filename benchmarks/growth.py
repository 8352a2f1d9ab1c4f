"""Measure how the time of prediction grows with the number of videos and of workers.

    python -m benchmarks.growth [--video FILE] [--videos 1 2 4 8] [--workers 0 2]

Start-up is measured separately, as a run over one file that is not a video: imports and
loading the networks. The videos are symbolic links to one file.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.measure import make_checkpoints, make_video, run_module, timed
from runtime.cli import make_parser, non_negative_int, positive_int
from runtime.results import print_results


def predict_seconds(videos: Path, workers: int, model: Path, device: str) -> float:
    """Seconds of a prediction of all videos of a folder, start-up included."""
    folder = model.parent
    arguments = (
        f"--test-dir={videos}",
        f"--output={folder / 's.csv'}",
        f"--weights-dir={folder}",
        f"--models={model.name}",
        f"--workers={workers}",
        f"--device={device}",
    )
    return timed(partial(run_module, "inference.predict", *arguments))


def link_videos(folder: Path, video: Path, count: int) -> Path:
    """Make a folder with `count` symbolic links to a video."""
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.mp4").symlink_to(video)
    return folder


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument(
        "--video", type=Path, help="default: a synthetic 1080p clip of 10 seconds"
    )
    parser.add_argument(
        "--videos",
        type=positive_int,
        nargs="+",
        action="extend",
        default=[1, 2, 4, 8],
        help="numbers of videos",
    )
    parser.add_argument(
        "--workers",
        type=non_negative_int,
        nargs="+",
        action="extend",
        default=[0, 2],
        help="numbers of worker processes; 0: in one process",
    )
    parser.add_argument(
        "--encoder",
        default="tf_efficientnet_b0",
        help="encoder of the one untrained network",
    )
    parser.add_argument(
        "--size",
        type=positive_int,
        default=224,
        help="input size of the network, pixels a side",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        video = (options.video or make_video(folder / "made.mp4")).resolve()
        model = make_checkpoints(folder, [options.encoder], options.size)[0]
        seconds = partial(predict_seconds, model=model, device=options.device)
        broken = folder / "broken"
        broken.mkdir()
        (broken / "no.mp4").write_text("no video")
        seconds(broken, 0)  # warm-up
        start_up = seconds(broken, 0)
        rows = []
        for workers in options.workers:
            for count in options.videos:
                videos = link_videos(folder / f"{workers}_{count}", video, count)
                elapsed = seconds(videos, workers)
                each = (elapsed - start_up) / count
                rows.append(
                    {
                        "workers": workers,
                        "videos": count,
                        "seconds": round(elapsed, 1),
                        "seconds a video after start-up": round(each, 2),
                        "videos a second, all in": round(count / elapsed, 3),
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
