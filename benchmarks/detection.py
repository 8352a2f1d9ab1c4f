"""Time MTCNN on the 32 half-resolution frames of a video that inference uses.

    python -m benchmarks.detection [--video FILE] [--device cuda]

Variants: plain  facenet-pytorch, one frame a call
          ours   preprocessing/mtcnn.py, batched as at inference
          limit  the three networks alone, on the same inputs, already in memory
"""

import sys
import tempfile
from functools import cache, partial
from pathlib import Path

import numpy as np

from benchmarks import plain
from benchmarks.measure import make_video, ratio_rows, side_by_side, synchronize
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
    batch = -(-DETECTED_PIXELS // (height * width))  # the batch size of inference
    for start in range(0, len(images), batch):
        detector(images[start : start + batch])


@cache
def network_inputs(path, count, device):
    """Record the inputs of the three networks for these frames.

    Returns: list of (forward pass, its input); of P-Net the forward pass of the body
    only.
    """
    cascade, recorded = load_detector(INFERENCE_THRESHOLDS, device)._cascade, []
    passes = [
        (cascade._pnet, cascade.proposal_features),
        (cascade._rnet, cascade._rnet),
        (cascade._onet, cascade._onet),
    ]
    hooks = [
        network.conv1.register_forward_pre_hook(partial(_record, recorded, forward))
        for network, forward in passes
    ]
    ours(path, count, device)
    for hook in hooks:
        hook.remove()
    return recorded


def _record(recorded, forward, _, inputs):
    recorded.append((forward, inputs[0].clone()))


def networks_alone(path, count, device):
    import torch

    with torch.inference_mode():
        for forward, images in network_inputs(path, count, device):
            forward(images)
    synchronize(device)


def max_box_difference(path, count):
    """The largest difference of a box coordinate, in half-resolution pixels."""
    theirs = plain.detect(frames(path, count), INFERENCE_THRESHOLDS)
    faces = load_detector(INFERENCE_THRESHOLDS, "cpu")(frames(path, count))
    same_counts = [len(each) for each in theirs] == [len(each) for each in faces]
    assert same_counts, "not the same number of faces"
    return max(
        (np.abs(np.array(a) - b.boxes).max() for a, b in zip(theirs, faces) if len(a)),
        default=0.0,
    )


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument(
        "--video", type=Path, help="default: a synthetic 1080p clip of 10 seconds"
    )
    parser.add_argument(
        "--frames", type=positive_int, default=32, help="frames of the video"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--threads",
        type=positive_int,
        default=1,
        help="CPU threads of each variant; a worker process has 1",
    )
    parser.add_argument(
        "--rounds", type=positive_int, default=3, help="timed runs of each variant"
    )
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        path = options.video or make_video(Path(folder) / "made.mp4")
        arguments = (path, options.frames, options.device)
        variants = {
            "plain": partial(plain_detect, *arguments),
            "ours": partial(ours, *arguments),
            "limit: the networks alone": partial(networks_alone, *arguments),
        }
        seconds = side_by_side(variants, options.rounds, options.threads)
        difference = float(max_box_difference(path, options.frames))
    print_results(
        "detection",
        ratio_rows(seconds, "plain"),
        video=path.name,
        frames=options.frames,
        device=options.device,
        threads=options.threads,
        boxes_apart_in_pixels=difference,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
