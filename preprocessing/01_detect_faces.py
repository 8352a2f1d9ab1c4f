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

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np

from preprocessing.dataset import Video
from preprocessing.faces import TRAINING_THRESHOLDS, half_size, load_detector
from preprocessing.layout import boxes_path
from preprocessing.pairs import FRAME_STEP
from preprocessing.step import open_dataset, run_step, step_parser
from preprocessing.video import VideoError, read_frames
from runtime.cli import run_main
from runtime.device import add_device_option
from runtime.files import atomic_file

BATCH_SIZE = 32  # the winner's setting; it affects the boxes, see `FaceDetector`


def detect_faces(video: Video, root: Path, device: str) -> None:
    """Write one video's boxes.

    Raises:
        VideoError: the video cannot be read.
    """
    detector = load_detector(TRAINING_THRESHOLDS, device)
    boxes: dict[int, list | None] = {}
    batch: dict[int, np.ndarray] = {}

    def flush() -> None:
        detections = detector(list(batch.values()), batched_nms=True)
        for number, faces in zip(batch, detections):
            boxes[number] = faces.boxes.tolist() or None
        batch.clear()

    for number, frame in read_frames(video.path, range(0, sys.maxsize, FRAME_STEP)):
        batch[number] = half_size(frame)
        if len(batch) == BATCH_SIZE:
            flush()
    flush()
    if not boxes:
        raise VideoError(f"{video.path}: no frame could be decoded")
    with atomic_file(boxes_path(root, video.name)) as temporary:
        temporary.write_text(json.dumps(boxes))


def main(argv: list[str] | None = None) -> int:
    parser = step_parser(__doc__)
    add_device_option(parser)
    options = parser.parse_args(argv)
    dataset = open_dataset(options)
    return run_step(
        partial(detect_faces, root=dataset.root, device=options.device),
        [video for video in dataset.videos if video.has_own_boxes and not video.crops],
        lambda video: boxes_path(dataset.root, video.name),
        options,
        "1 detect faces",
        dataset.skipped,
    )


if __name__ == "__main__":
    run_main(main)
