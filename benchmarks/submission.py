"""Time a whole submission as a program, from a folder of videos to a CSV file.

    python -m benchmarks.submission [--test-dir VIDEOS] [--device cuda]
        [--encoders tf_efficientnet_b0 tf_efficientnet_b1]
    python -m benchmarks.submission --device cuda
        --encoders $(yes tf_efficientnet_b7 | head -7)      the winner's seven networks

Variants: plain  one video after the other, one frame a detector call, one network after
                 the other in NCHW (float16 on a GPU)
          ours   python -m inference.predict
          limit  the networks alone, as ours runs them, on the same faces, already in
                 memory
Start-up is included. The networks are untrained, which cost as much as trained ones,
unless --models names checkpoints.
"""

import csv
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.measure import (
    make_checkpoints,
    make_video,
    ratio_rows,
    run_module,
    synchronize,
    time_once,
    timed,
)
from inference.ensemble import Ensemble
from inference.extraction import extract_faces
from inference.members import plain_members
from inference.videos import find_videos
from runtime.cli import make_parser, positive_int
from runtime.executor import ExecutorOptions, map_items
from runtime.process import tune_malloc
from runtime.results import print_results


def networks_alone(ensemble, groups):
    """Run the networks on the faces of each group of videos."""
    for group in groups:
        ensemble(group)
    synchronize(ensemble.device.type)


def read_labels(path):
    with open(path, newline="") as file:
        return {row["filename"]: float(row["label"]) for row in csv.DictReader(file)}


def make_videos(folder):
    """Write six clips, two of each of three frame sizes."""
    folder.mkdir()
    sizes = [(1920, 1080), (1080, 1920), (1280, 720)] * 2
    for number, (width, height) in enumerate(sizes):
        make_video(folder / f"made{number}.mp4", width, height)
    return folder


def program_variants(videos, models, folder, options):
    """The two programs: the plain schedule and ours."""
    common = (
        f"--test-dir={videos}",
        f"--device={options.device}",
        "--models",
        *(path.resolve() for path in models),
    )
    plain = ("predict", *common, f"--output={folder / 'plain.csv'}")
    ours = (
        *common,
        f"--output={folder / 'ours.csv'}",
        "--weights-dir=/",
        f"--workers={options.workers}",
    )
    return {
        "plain": partial(run_module, "benchmarks.plain", *plain),
        "ours": partial(run_module, "inference.predict", *ours),
    }


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument(
        "--test-dir",
        type=Path,
        help="folder of .mp4 videos; default: six synthetic ones",
    )
    parser.add_argument(
        "--encoders",
        nargs="+",
        action="extend",
        default=["tf_efficientnet_b0", "tf_efficientnet_b1"],
        help="encoders of the untrained networks",
    )
    parser.add_argument(
        "--size", type=positive_int, default=380, help="input size, pixels a side"
    )
    parser.add_argument(
        "--models",
        nargs="+",
        action="extend",
        type=Path,
        help="checkpoints in place of untrained networks",
    )
    parser.add_argument(
        "--workers",
        type=positive_int,
        default=os.cpu_count(),
        help="worker processes of ours",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        videos = options.test_dir or make_videos(folder / "videos")
        models = options.models or make_checkpoints(
            folder, options.encoders, options.size
        )
        seconds = time_once(program_variants(videos, models, folder, options))
        tune_malloc()
        ensemble = Ensemble(plain_members(models), options.device)
        faces = extract_all_faces(videos, ensemble, options.workers)
        groups = [[each] for each in faces] if options.device == "cpu" else [faces]
        networks_alone(ensemble, groups[:1])  # warm-up
        limit = timed(partial(networks_alone, ensemble, groups))
        seconds["limit: the networks alone"] = limit
        plain = read_labels(folder / "plain.csv")
        ours = read_labels(folder / "ours.csv")
        difference = max(abs(plain[video] - ours[video]) for video in plain)
    print_results(
        "submission",
        ratio_rows(seconds, "plain"),
        videos=len(plain),
        faces=sum(len(each.frames) for each in faces),
        networks=[path.name for path in models],
        sizes=ensemble.wanted.sizes,
        device=options.device,
        workers=options.workers,
        share_of_limit=round(limit / seconds["ours"], 2),
        labels_apart=float(f"{difference:.2g}"),
    )
    return 0


def extract_all_faces(videos, ensemble, workers):
    """The faces of each video of a folder."""
    extract = partial(extract_faces, wanted=ensemble.wanted, device="cpu")
    outcomes = map_items(
        extract,
        find_videos(videos)[0],
        ExecutorOptions(workers),
        "faces for the limit",
        "video",
    )
    return [faces for _, faces, _ in outcomes]


if __name__ == "__main__":
    sys.exit(main())
