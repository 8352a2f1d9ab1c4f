"""Step 1: detect the faces in every 10th frame of each REAL video.

    python -m preprocessing.01_detect_faces --root-dir DATA

Reads  the videos of DATA (DFDC: DATA/dfdc_train_part_N/{metadata.json, *.mp4}); with
       them the fakes whose original is not there, for data sets other than DFDC
Writes DATA/boxes/{video}.json = {"0": [[x1, y1, x2, y2], …], "10": null, …}: frame
       number to boxes in pixels of the half-resolution frame, largest face first; null
       where no face was detected
Method: the winner's: MTCNN with thresholds 0.85/0.95/0.95 on half-resolution frames. He
       processed every frame. Step 2 uses every 10th, so only those are processed here,
       with the same boxes.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from preprocessing.crops import write_crops
from preprocessing.dataset import Video
from preprocessing.faces import TRAINING_THRESHOLDS, half_size, load_detector
from preprocessing.layout import boxes_path, crops_dir
from preprocessing.pairs import FRAME_STEP, no_face
from preprocessing.step import open_dataset, run_step, step_parser
from preprocessing.video import VideoError, VideoInfo, probe, read_frames
from runtime.cli import run_main
from runtime.device import add_device_option
from runtime.files import atomic_file, atomic_folder

BATCH_SIZE = 32  # the winner's setting; it affects the boxes, see `FaceDetector`
MAX_KEPT = (
    2**29
)  # bytes of the frames of a batch that are kept to be cropped: 4K is not

Boxes = dict[int, list[list[float]] | None]


def detect_faces(
    video: Video, root: Path, device: str, with_crops: bool = False
) -> None:
    """Write one video's boxes.

    Args:
        with_crops: also write its crops, those of step 2 bit for bit, while its frames
            are decoded; not where the video is damaged or its frames are too large to
            be kept.

    Raises:
        VideoError: the video cannot be read.
    """
    if with_crops and not crops_dir(root, video.name).exists():
        info = probe(video.path)
        if 3 * info.width * info.height * BATCH_SIZE <= MAX_KEPT:
            return _detect_and_crop(video, info, root, device)
    boxes = {number: found for number, _, found in _search(video, device)}
    _write_boxes(video, boxes, root)


def _detect_and_crop(video: Video, info: VideoInfo, root: Path, device: str) -> None:
    boxes: Boxes = {}
    skipped = [*info.notes]
    try:
        with atomic_folder(crops_dir(root, video.name), skipped) as folder:
            for number, frame, found in _search(video, device, info):
                boxes[number] = found
                skipped += write_crops(folder, number, frame, found or [])
            if not any(boxes.values()):
                skipped.append(no_face(len(boxes)))
            _write_boxes(video, boxes, root)
            if len(boxes) < len(range(0, info.frames, FRAME_STEP)):
                raise _DamagedError
    except _DamagedError:
        pass


class _DamagedError(Exception):
    """Step 2 may decode other frames of this video."""


def _search(
    video: Video, device: str, info: VideoInfo | None = None
) -> Iterator[tuple[int, np.ndarray, list[list[float]] | None]]:
    """Every 10th frame's number, pixels and boxes; None where there is no face.

    The pixels are of the whole frame with `info`, else of half the resolution.
    """
    detector = load_detector(TRAINING_THRESHOLDS, device)
    halves: list[np.ndarray] = []
    frames: dict[int, np.ndarray] = {}

    def flush() -> Iterator[tuple[int, np.ndarray, list[list[float]] | None]]:
        detections = detector(halves, batched_nms=True)
        for (number, frame), faces in zip(frames.items(), detections):
            yield number, frame, faces.boxes.tolist() or None
        halves.clear()
        frames.clear()

    numbers = range(0, sys.maxsize, FRAME_STEP)
    for number, frame in read_frames(video.path, numbers, info):
        halves.append(half_size(frame))
        frames[number] = frame if info else halves[-1]
        if len(halves) == BATCH_SIZE:
            yield from flush()
    yield from flush()


def _write_boxes(video: Video, boxes: Boxes, root: Path) -> None:
    if not boxes:
        raise VideoError(f"{video.path}: no frame could be decoded")
    with atomic_file(boxes_path(root, video.name)) as temporary:
        temporary.write_text(json.dumps(boxes))


def main(argv: list[str] | None = None) -> int:
    parser = step_parser(__doc__)
    add_device_option(parser)
    # for `python -m preprocessing`, which decodes a video once for both steps
    parser.add_argument("--with-crops", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    dataset = open_dataset(options)
    return run_step(
        partial(
            detect_faces,
            root=dataset.root,
            device=options.device,
            with_crops=options.with_crops,
        ),
        [video for video in dataset.videos if video.has_own_boxes and not video.crops],
        lambda video: boxes_path(dataset.root, video.name),
        options,
        "1 detect faces",
        dataset.skipped,
    )


if __name__ == "__main__":
    run_main(main)
