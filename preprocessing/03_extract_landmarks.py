"""Step 3: detect facial landmarks in each crop of the REAL videos.

    python -m preprocessing.03_extract_landmarks --root-dir DATA

Reads  DATA/crops/{video}/*.png of the REAL videos, from step 2, or crops that exist
       already; with them the fakes that are searched themselves; with --landmarks all
       those of all videos
Writes DATA/landmarks/{video}/{frame}_{actor}.npy: int16 (5, 2), x and y in crop pixels
       of both eyes, the nose and both corners of the mouth, the viewer's left before
       right; no file where no face is detected. With --points 68 also
       DATA/landmarks68/…, int16 (68, 2), by dlib (`preprocessing.landmarks68`)
Method: the winner's: MTCNN with thresholds 0.65/0.75/0.75 on the whole crop, the
       largest face, rounded. A fake uses its original's landmarks, because its crops
       come from the same boxes. Crops that exist already may be tight, which misleads
       the detectors by a tenth of the face, so their borders are repeated outwards.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np

from preprocessing.crops import read_image, write_array
from preprocessing.dataset import Video
from preprocessing.faces import DETECTOR_IMPORTS, LANDMARK_THRESHOLDS, load_detector
from preprocessing.landmarks68 import COUNT, detect_landmarks, load_predictor
from preprocessing.layout import cropped_videos, crops_dir, landmarks_dir
from preprocessing.step import open_dataset, run_step, step_parser
from runtime.cli import run_main
from runtime.device import add_device_option
from runtime.files import atomic_folder

BATCH_SIZE = 16  # crops in memory at a time
BORDER_PARTS = 3  # n: 1/n of the sides around a crop that exists already


def extract_landmarks(video: Video, root: Path, device: str) -> None:
    """Write one video's landmarks.

    Raises:
        UserError: a crop cannot be read.
    """
    detector = load_detector(LANDMARK_THRESHOLDS, device)
    with atomic_folder(landmarks_dir(root, video.name)) as folder:
        paths = video.crops or sorted(crops_dir(root, video.name).glob("*.png"))
        for start in range(0, len(paths), BATCH_SIZE):
            batch = paths[start : start + BATCH_SIZE]
            images, borders = zip(*(_read_crop(video, path) for path in batch))
            detections = detector(list(images))
            for path, faces, border in zip(batch, detections, borders):
                if len(faces):
                    landmarks = np.around(faces.landmarks[0] - border)
                    write_array(folder / f"{path.stem}.npy", landmarks.astype(np.int16))


def extract_landmarks_68(video: Video, root: Path) -> None:
    """Write one video's 68 landmarks.

    Raises:
        UserError: a crop cannot be read, or dlib is not installed.
    """
    with atomic_folder(landmarks_dir(root, video.name, COUNT)) as folder:
        for path in video.crops or sorted(crops_dir(root, video.name).glob("*.png")):
            image, border = _read_crop(video, path)
            landmarks = detect_landmarks(image)
            if landmarks is not None:
                shifted = (landmarks - border).astype(np.int16)
                write_array(folder / f"{path.stem}.npy", shifted)


def _read_crop(video: Video, path: Path) -> tuple[np.ndarray, tuple[int, int]]:
    """A crop to search, and the width of its repeated borders, left and top."""
    image = read_image(path)
    if not video.crops:
        return image, (0, 0)
    y, x = (side // BORDER_PARTS for side in image.shape[:2])
    padded = np.pad(image, ((y, y), (x, x), (0, 0)), "edge")
    return padded, (x, y)


def add_landmarks_option(parser: argparse.ArgumentParser) -> None:
    """Add `--landmarks` and `--points`."""
    parser.add_argument(
        "--landmarks",
        choices=("real", "all"),
        default="real",
        help="of the crops of real videos, whose fakes share them, or of all videos",
    )
    parser.add_argument(
        "--points",
        type=int,
        choices=(5, COUNT),
        default=5,
        help=f"{COUNT}: dlib's {COUNT} landmarks too (requirements-landmarks.txt; the data "
        "of its model ask for non-commercial use)",
    )


def main(argv: list[str] | None = None) -> int:
    parser = step_parser(__doc__)
    add_device_option(parser)
    add_landmarks_option(parser)
    options = parser.parse_args(argv)
    dataset = open_dataset(options)
    cropped = cropped_videos(dataset.root)
    wanted = [
        video
        for video in dataset.videos
        if options.landmarks == "all"
        or not video.is_fake
        or (video.has_own_boxes and not video.crops)
    ]
    videos = [video for video in wanted if video.crops or video.name in cropped]
    if options.points == COUNT:
        load_predictor()  # what is not installed is said at once, not of each video
    status = run_step(
        partial(extract_landmarks, root=dataset.root, device=options.device),
        videos,
        lambda video: landmarks_dir(dataset.root, video.name),
        options,
        "3 extract landmarks",
        imports=DETECTOR_IMPORTS,
    )
    if options.points != COUNT:
        return status
    return status or run_step(
        partial(extract_landmarks_68, root=dataset.root),
        videos,
        lambda video: landmarks_dir(dataset.root, video.name, COUNT),
        options,
        f"3 extract {COUNT} landmarks",
    )


if __name__ == "__main__":
    run_main(main)
