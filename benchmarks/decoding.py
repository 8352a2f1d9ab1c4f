"""Core-seconds a video of steps 1 and 2 on a folder with DFDC's mix of real and fake.

    python -m benchmarks.decoding [--root-dir DATA]

Variants: two programs   steps 1 and 2 as numbered steps, which decode a REAL video twice
          one program    as `python -m preprocessing` runs them
          no search      the same with the boxes given, so that no faces are searched
          limit          decoding the frames that are used, and no others
Each is run in this process, so that start-up does not count. Processor time of all
threads, divided by the number of videos.
"""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from benchmarks.measure import make_video
from benchmarks.preprocessing import count_equal_crops
from benchmarks.reading import decode_only
from preprocessing.dataset import Dataset, Video
from preprocessing.datasets.dfdc import read_dataset
from preprocessing.layout import boxes_path
from preprocessing.pairs import FRAME_STEP, read_boxes
from preprocessing.video import probe
from runtime.cli import make_parser, positive_int
from runtime.results import print_results

FAKES = 5  # of each real video in DFDC
search = import_module("preprocessing.01_detect_faces")
crop = import_module("preprocessing.02_extract_crops")


def make_mix(root: Path, originals: int) -> None:
    """Write real 1080p videos of 10 seconds, all equal, and five fakes of each."""
    folder = root / "dfdc_train_part_0"
    folder.mkdir(parents=True)
    made = [make_video(root / f"{fake}.mp4", fake=bool(fake)) for fake in (0, 1)]
    entries = {}
    for number in range(originals):
        real = f"real{number}.mp4"
        entries[real] = {"label": "REAL"}
        for each in range(FAKES):
            entries[f"fake{number}_{each}.mp4"] = {"label": "FAKE", "original": real}
    for name, entry in entries.items():
        shutil.copyfile(made[entry["label"] == "FAKE"], folder / name)
    (folder / "metadata.json").write_text(json.dumps(entries))


def run_steps(dataset: Dataset, root: Path, with_crops: bool) -> float:
    """Processor seconds of both steps."""
    start = time.process_time()
    for video in dataset.videos:
        if video.has_own_boxes:
            search.detect_faces(video, root, "cpu", with_crops)
    for video in dataset.videos:
        if not (root / "crops" / video.path.stem).exists():
            crop.extract_crops(video, root)
    return time.process_time() - start


def run_without_search(dataset: Dataset, root: Path, known: Path) -> float:
    """The same with the boxes of `known` in place of a detector's."""
    remaining: Iterator[np.ndarray] = iter(())

    def detect(halves: list, batched_nms: bool) -> list[SimpleNamespace]:
        return [SimpleNamespace(boxes=next(remaining)) for _ in halves]

    search.load_detector = lambda thresholds, device: detect
    start = time.process_time()
    for video in dataset.videos:
        if video.has_own_boxes:
            boxes = json.loads(boxes_path(known, video.name).read_text())
            remaining = iter(
                [np.array(each or [], np.float32) for each in boxes.values()]
            )
            search.detect_faces(video, root, "cpu", with_crops=True)
    for video in dataset.videos:
        if not video.has_own_boxes:
            crop.extract_crops(video, root)
    return time.process_time() - start


def decode_frames(videos: list[Video], known: Path) -> float:
    """Processor seconds of decoding every 10th frame of a real video, and of a fake
    those where its original shows a face.
    """
    start = time.process_time()
    for video in videos:
        numbers = range(0, probe(video.path).frames, FRAME_STEP)
        if not video.has_own_boxes:
            boxes = read_boxes(known, video)
            numbers = [number for number in numbers if boxes.get(number)]
        decode_only(video.path, numbers)
    return time.process_time() - start


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument(
        "--root-dir", type=Path, help="a DFDC folder; default: synthetic, of 1080p"
    )
    parser.add_argument(
        "--originals",
        type=positive_int,
        default=10,
        help="of the synthetic folder, with five fakes each",
    )
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        source = options.root_dir or Path(folder) / "made"
        if not options.root_dir:
            make_mix(source, options.originals)
        dataset = read_dataset(source)
        roots = [Path(folder) / name for name in ("two", "one", "given")]
        # the networks are loaded before anything is timed
        search.detect_faces(dataset.videos[0], Path(folder) / "first", "cpu")
        seconds = {
            "two programs": run_steps(dataset, roots[0], False),
            "one program": run_steps(dataset, roots[1], True),
            "no search": run_without_search(dataset, roots[2], roots[0]),
            "limit: decode the frames used": decode_frames([*dataset.videos], roots[0]),
        }
        equal = [count_equal_crops(roots[0], root) for root in roots[1:]]
    limit = [*seconds.values()][-1]
    print_results(
        "decoding",
        [
            {
                "way": name,
                "core-seconds a video": round(each / len(dataset.videos), 3),
                "times limit": round(each / limit, 2),
            }
            for name, each in seconds.items()
        ],
        videos=len(dataset.videos),
        crops_alike=" and ".join(f"{same} of {total}" for same, total in equal),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
