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
from preprocessing.faces import (
    DETECTOR_IMPORTS,
    TRAINING_THRESHOLDS,
    half_size,
    load_detector,
)
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
        with_crops: also write its crops, those of step 2, while its frames are decoded.
            A video of which a frame is missing or too large to be kept is left to
            step 2, which may decode others.

    Raises:
        VideoError: the video cannot be read.
    """
    info = probe(video.path)
    folder = crops_dir(root, video.name)
    size = info.width * info.height
    if with_crops and not folder.exists() and _fits(3 * size):
        _detect_and_crop(video, info, folder, root, device)
    else:
        found = _search(video, info, device, keep=False)
        _write_boxes(video, {number: boxes for number, _, boxes in found}, root)


def _detect_and_crop(
    video: Video, info: VideoInfo, target: Path, root: Path, device: str
) -> None:
    boxes: Boxes = {}
    skipped = [*info.notes]
    try:
        with atomic_folder(target, skipped) as folder:
            is_whole = True
            for number, frame, found in _search(video, info, device, keep=True):
                boxes[number] = found
                if frame is None:
                    is_whole = False
                else:
                    skipped += write_crops(folder, number, frame, found or [])
            if not any(boxes.values()):
                skipped.append(no_face(len(boxes)))
            _write_boxes(video, boxes, root)
            if not is_whole or len(boxes) < len(range(0, info.frames, FRAME_STEP)):
                raise _LeftToStep2Error
    except _LeftToStep2Error:
        pass


class _LeftToStep2Error(Exception):
    """The crops of this video are not all there."""


def _fits(frame_bytes: int) -> bool:
    return frame_bytes * BATCH_SIZE <= MAX_KEPT


def _search(
    video: Video, info: VideoInfo, device: str, keep: bool
) -> Iterator[tuple[int, np.ndarray | None, list[list[float]] | None]]:
    """Every 10th frame's number, pixels and boxes; None where there is no face.

    The pixels are None without `keep`, and of a frame that is too large to be kept.
    """
    detector = load_detector(TRAINING_THRESHOLDS, device)
    batch: list[tuple[int, np.ndarray | None, np.ndarray]] = []

    def flush() -> Iterator[tuple[int, np.ndarray | None, list[list[float]] | None]]:
        detections = detector([half for _, _, half in batch], batched_nms=True)
        for (number, frame, _), faces in zip(batch, detections):
            yield number, frame, faces.boxes.tolist() or None
        batch.clear()

    numbers = range(0, sys.maxsize, FRAME_STEP)
    for number, frame in read_frames(video.path, numbers, info):
        is_kept = keep and _fits(frame.nbytes)
        batch.append((number, frame if is_kept else None, half_size(frame)))
        if len(batch) == BATCH_SIZE:
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
        imports=DETECTOR_IMPORTS,
    )


if __name__ == "__main__":
    run_main(main)
