"""Step 2: crop the faces from every 10th frame of each REAL or FAKE video.

    python -m preprocessing.02_extract_crops --root-dir DATA

Reads  DATA/boxes/{original}.json from step 1, and the videos
Writes DATA/crops/{video}/{frame}_{actor}.png, full resolution; actor 0 is the largest
       face in its frame
Method: the winner's: a fake is cropped with its original's boxes, doubled, truncated to
       whole pixels, with a margin of a third of the box on each side, clipped to the
       frame. He stopped after frame 310; here a video is read to its end.
"""

from functools import partial
from pathlib import Path

from preprocessing.crops import write_crops
from preprocessing.dataset import Video
from preprocessing.layout import crops_dir
from preprocessing.pairs import (
    FRAME_STEP,
    fit_frame,
    match_original,
    no_face,
    read_boxes,
)
from preprocessing.step import open_dataset, run_step, step_parser
from preprocessing.video import probe, read_frames
from runtime.cli import UserError, run_main
from runtime.files import atomic_folder


def extract_crops(video: Video, root: Path) -> None:
    """Write one video's crops, and the skip reasons of those that are missing.

    Raises:
        UserError: there are no boxes for its original, they do not fit, or none of the
            frames with a face can be decoded.
        VideoError: the video cannot be read.
    """
    detections = read_boxes(root, video)
    boxes = {
        number: frame_boxes for number, frame_boxes in detections.items() if frame_boxes
    }
    info = probe(video.path)
    fit, skipped = match_original(video, info, boxes) if boxes else (None, [])
    skipped += info.notes
    if not video.has_own_boxes:  # its original may be longer
        boxes = {number: each for number, each in boxes.items() if number < info.frames}
    if not boxes:
        skipped.append(no_face(len(detections)))
    expected = len(range(0, info.frames, FRAME_STEP))
    if video.has_own_boxes and len(detections) < expected:
        skipped.append(
            f"only {len(detections)} of {expected} frames could be decoded in step 1"
        )
    decoded = 0
    with atomic_folder(crops_dir(root, video.name), skipped) as folder:
        for number, frame in read_frames(video.path, sorted(boxes), info):
            decoded += 1
            skipped += write_crops(folder, number, fit_frame(frame, fit), boxes[number])
        if boxes and not decoded:
            raise UserError(
                f"{video.path}: none of the frames with a face could be decoded"
            )
        if decoded < len(boxes):
            skipped.append(
                f"only {decoded} of the {len(boxes)} frames with a face "
                "could be decoded"
            )


def main(argv: list[str] | None = None) -> int:
    options = step_parser(__doc__).parse_args(argv)
    dataset = open_dataset(options)
    return run_step(
        partial(extract_crops, root=dataset.root),
        [video for video in dataset.videos if not video.crops],
        lambda video: crops_dir(dataset.root, video.name),
        options,
        "2 extract crops",
        dataset.skipped,
    )


if __name__ == "__main__":
    run_main(main)
