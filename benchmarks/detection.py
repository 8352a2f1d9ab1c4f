"""MTCNN on the 32 half-resolution frames of a video that inference looks at.

    python -m benchmarks.detection [--video FILE] [--device cuda]

plain: facenet-pytorch, one frame a call; limit: its three networks alone on what they are given here, in memory already.
"""

import sys
import tempfile
from functools import cache, partial
from pathlib import Path

import numpy as np

from benchmarks import plain
from benchmarks.measure import made_video, ratio_rows, side_by_side, synchronize
from inference.extraction import DETECTED_PIXELS, frame_numbers
from preprocessing.faces import INFERENCE_THRESHOLDS, half_size, load_detector
from preprocessing.video import probe, read_frames
from runtime.cli import make_parser, positive_int
from runtime.process import tune_malloc
from runtime.results import print_results


@cache
def frames(path, count):
    numbers = frame_numbers(probe(path).frames, count)
    return [half_size(frame) for _, frame in read_frames(path, numbers)]


def plain_detect(path, count, device):
    plain.detect(frames(path, count), INFERENCE_THRESHOLDS, device)
    synchronize(device)


def ours(path, count, device):
    tune_malloc()
    detector = load_detector(INFERENCE_THRESHOLDS, device)
    images = frames(path, count)
    height, width, _ = images[0].shape
    step = -(
        -DETECTED_PIXELS // (height * width)
    )  # as many at a time as inference gives it
    for start in range(0, len(images), step):
        detector(images[start : start + step])


@cache
def network_inputs(path, count, device):
    """What the three networks are given for these frames: pairs of a forward pass, of the first only the body, and its input."""
    cascade, seen = load_detector(INFERENCE_THRESHOLDS, device)._cascade, []
    passes = [
        (cascade._pnet, cascade.proposal_features),
        (cascade._rnet, cascade._rnet),
        (cascade._onet, cascade._onet),
    ]
    hooks = [
        network.conv1.register_forward_pre_hook(partial(_note, seen, forward))
        for network, forward in passes
    ]
    ours(path, count, device)
    for hook in hooks:
        hook.remove()
    return seen


def _note(seen, forward, _, inputs):
    seen.append((forward, inputs[0].clone()))


def networks_alone(path, count, device):
    import torch

    with torch.inference_mode():
        for forward, images in network_inputs(path, count, device):
            forward(images)
    synchronize(device)


def boxes_apart(path, count):
    """The largest difference of a coordinate, in half-resolution pixels."""
    theirs = plain.detect(frames(path, count), INFERENCE_THRESHOLDS)
    found = load_detector(INFERENCE_THRESHOLDS, "cpu")(frames(path, count))
    assert [len(each) for each in theirs] == [len(each) for each in found], (
        "not the same number of faces"
    )
    return max(
        (np.abs(np.array(a) - b.boxes).max() for a, b in zip(theirs, found) if len(a)),
        default=0.0,
    )


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument(
        "--video", type=Path, help="a made 1080p clip of 10 seconds if not given"
    )
    parser.add_argument("--frames", type=positive_int, default=32, help="of the video")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--threads",
        type=positive_int,
        default=1,
        help="of each on a CPU; a worker process has 1",
    )
    parser.add_argument(
        "--rounds", type=positive_int, default=3, help="timed runs of each"
    )
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        path = options.video or made_video(Path(folder) / "made.mp4")
        what = (path, options.frames, options.device)
        ways = {
            "plain": partial(plain_detect, *what),
            "ours": partial(ours, *what),
            "limit: the networks alone": partial(networks_alone, *what),
        }
        seconds = side_by_side(ways, options.rounds, options.threads)
        apart = float(boxes_apart(path, options.frames))
    print_results(
        "detection",
        ratio_rows(seconds, "plain"),
        video=path.name,
        frames=options.frames,
        device=options.device,
        threads=options.threads,
        boxes_apart_in_pixels=apart,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
