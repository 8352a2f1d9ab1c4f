"""A whole submission, as a program: a folder of videos in, a CSV out, start-up included.

    python -m benchmarks.submission [--test-dir VIDEOS] [--encoders tf_efficientnet_b0 tf_efficientnet_b1] [--device cuda]
    python -m benchmarks.submission --device cuda --encoders $(yes tf_efficientnet_b7 | head -7)       the winner's seven

plain: one video after the other, one frame a detector call, each network alone in NCHW (float16 on a GPU); limit: the networks
alone, as ours runs them, on the same faces in memory already. Networks are untrained, which cost what trained ones do, unless
--models names checkpoints.
"""

import csv
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.measure import (
    made_checkpoints,
    made_video,
    one_after_the_other,
    ratio_rows,
    run_module,
    synchronize,
    timed,
)
from inference.ensemble import Ensemble
from inference.extraction import extract_faces
from inference.predict import find_videos
from runtime.cli import make_parser, positive_int
from runtime.executor import ExecutorOptions, map_items
from runtime.process import tune_malloc
from runtime.results import print_results


def networks_alone(ensemble, groups):
    """The networks on groups of videos' faces."""
    for group in groups:
        ensemble(group)
    synchronize(ensemble.device.type)


def labels(path):
    with open(path, newline="") as file:
        return {row["filename"]: float(row["label"]) for row in csv.DictReader(file)}


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument(
        "--test-dir",
        type=Path,
        help="folder of .mp4 videos; six made ones if not given",
    )
    parser.add_argument(
        "--encoders",
        nargs="+",
        default=["tf_efficientnet_b0", "tf_efficientnet_b1"],
        help="untrained networks",
    )
    parser.add_argument(
        "--size", type=positive_int, default=380, help="their input, pixels a side"
    )
    parser.add_argument(
        "--models", nargs="+", type=Path, help="checkpoints in place of them"
    )
    parser.add_argument(
        "--workers", type=positive_int, default=os.cpu_count(), help="of ours"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        videos = options.test_dir or folder / "videos"
        if not options.test_dir:
            videos.mkdir()
            for number, (width, height) in enumerate(
                [(1920, 1080), (1080, 1920), (1280, 720)] * 2
            ):
                made_video(videos / f"made{number}.mp4", width, height)
        models = options.models or made_checkpoints(
            folder, options.encoders, options.size
        )
        common = (
            "--test-dir",
            videos,
            "--models",
            *(path.resolve() for path in models),
            "--device",
            options.device,
        )
        ways = {
            "plain": partial(
                run_module,
                "benchmarks.plain",
                "predict",
                *common,
                "--output",
                folder / "plain.csv",
            ),
            "ours": partial(
                run_module,
                "inference.predict",
                *common,
                "--output",
                folder / "ours.csv",
                "--weights-dir",
                "/",
                "--workers",
                options.workers,
            ),
        }
        seconds = one_after_the_other(ways)
        tune_malloc()
        ensemble = Ensemble(models, options.device)
        find = partial(
            extract_faces,
            settings=ensemble.faces_settings,
            sizes=ensemble.sizes,
            device="cpu",
        )
        faces = [
            found
            for _, found, _ in map_items(
                find,
                find_videos(videos),
                ExecutorOptions(options.workers),
                "faces for the limit",
                "video",
            )
        ]
        groups = [[each] for each in faces] if options.device == "cpu" else [faces]
        networks_alone(ensemble, groups[:1])  # to warm up
        seconds["limit: the networks alone"] = timed(
            partial(networks_alone, ensemble, groups)
        )
        theirs, mine = labels(folder / "plain.csv"), labels(folder / "ours.csv")
        apart = max(abs(theirs[video] - mine[video]) for video in theirs)
    print_results(
        "submission",
        ratio_rows(seconds, "plain"),
        videos=len(theirs),
        faces=sum(len(each.frames) for each in faces),
        networks=[path.name for path in models],
        sizes=ensemble.sizes,
        device=options.device,
        workers=options.workers,
        share_of_limit=round(seconds["limit: the networks alone"] / seconds["ours"], 2),
        labels_apart=float(f"{apart:.2g}"),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
