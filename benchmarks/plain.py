"""The plain schedule: the winner's order of work, written as plainly as can be, for the benchmarks to compare with.

    python -m benchmarks.plain STEP --root-dir DATA       one preprocessing step, 1 to 5, as a program of its own
    python -m benchmarks.plain predict --test-dir VIDEOS --models CHECKPOINT … --output FILE

Every frame of an original is decoded and searched, 32 a detector call; at inference one frame a call, one video at a time,
each network alone in NCHW. The answers are those of the project, from its own geometry and rules; only the order of work and
the libraries differ: OpenCV reads the videos, facenet-pytorch finds the faces, nothing is kept between steps.
"""

import argparse
import json
import sys
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np

from inference.aggregate import ensemble_label
from preprocessing import dfdc, layout
from preprocessing.crops import crop_face, write_image
from preprocessing.faces import (
    INFERENCE_THRESHOLDS,
    LANDMARK_THRESHOLDS,
    TRAINING_THRESHOLDS,
    half_size,
)
from runtime.files import write_csv


@cache
def detector(thresholds, device="cpu"):
    """facenet-pytorch's MTCNN as it is."""
    from facenet_pytorch import MTCNN

    return MTCNN(margin=0, thresholds=list(thresholds), device=device)


def read(path, numbers=None):
    """The wanted frames (all if not given), (H, W, 3) uint8 RGB, through OpenCV."""
    capture = cv2.VideoCapture(
        str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, cv2.getNumThreads()]
    )
    frames, number = [], 0
    while (numbers is None or number <= numbers[-1]) and capture.grab():
        if numbers is None or number in numbers:
            frames.append(cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB))
        number += 1
    return frames


def detect(frames, thresholds, device="cpu"):
    """Boxes (K, 4) of each half-resolution frame, one frame a call."""
    boxes = [detector(thresholds, device).detect(frame)[0] for frame in frames]
    return [[] if found is None else np.asarray(found, np.float32) for found in boxes]


def detect_faces(root):
    (root / "boxes").mkdir(exist_ok=True)
    for video in dfdc.read_dataset(root).reals:
        frames, boxes = [half_size(frame) for frame in read(video.path)], {}
        for start in range(0, len(frames), 32):
            found = detector(TRAINING_THRESHOLDS).detect(
                np.stack(frames[start : start + 32])
            )[0]
            for number, each in enumerate(found, start):
                boxes[number] = (
                    None if each is None else np.asarray(each, np.float32).tolist()
                )
        layout.boxes_path(root, video.name).write_text(json.dumps(boxes))


def extract_crops(root):
    with get_context("spawn").Pool() as pool:
        pool.map(partial(_extract_crops, root), dfdc.read_dataset(root).videos)


def _extract_crops(root, video):
    boxes = json.loads(layout.boxes_path(root, video.original).read_text())
    folder = layout.crops_dir(root, video.name)
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(read(video.path)):
        if number % 10 == 0:
            for actor, box in enumerate(boxes.get(str(number)) or []):
                write_image(folder / f"{number}_{actor}.png", crop_face(frame, box))


def extract_landmarks(root):
    with get_context("spawn").Pool() as pool:
        pool.map(partial(_extract_landmarks, root), dfdc.read_dataset(root).reals)


def _extract_landmarks(root, video):
    import torch

    torch.set_num_threads(1)
    folder = layout.landmarks_dir(root, video.name)
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(layout.crops_dir(root, video.name).glob("*.png")):
        image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        points = detector(LANDMARK_THRESHOLDS).detect(image, landmarks=True)[2]
        if points is not None:
            np.save(
                folder / f"{path.stem}.npy",
                np.around(np.asarray(points[0], np.float32)).astype(np.int16),
            )


def make_diffs(root):
    with get_context("spawn").Pool() as pool:
        pool.map(partial(_make_diffs, root), dfdc.read_dataset(root).fakes)


def _make_diffs(root, video):
    from skimage.metrics import structural_similarity

    folder = layout.diffs_dir(root, video.name)
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(layout.crops_dir(root, video.name).glob("*.png")):
        fake, real = (
            cv2.imread(str(path)),
            cv2.imread(str(layout.crops_dir(root, video.original) / path.name)),
        )
        likeness = structural_similarity(real, fake, channel_axis=2, full=True)[1]
        mask = ((1 - likeness) * 255).astype(np.int64).astype(np.uint8)
        cv2.imwrite(
            str(folder / f"{path.stem}_diff.png"),
            cv2.cvtColor(mask, cv2.COLOR_BGR2GRAY),
        )


def make_folds(root):
    rows = []
    for video in dfdc.read_dataset(root).videos:
        for path in sorted(layout.crops_dir(root, video.name).glob("*.png")):
            rows.append(
                [
                    video.name,
                    path.name,
                    int(video.is_fake),
                    video.original,
                    path.stem.split("_")[0],
                    video.part // 3,
                ]
            )
    write_csv(
        layout.folds_path(root),
        ["video", "file", "label", "original", "frame", "fold"],
        rows,
    )


STEPS = {
    "1": detect_faces,
    "2": extract_crops,
    "3": extract_landmarks,
    "4": make_diffs,
    "5": make_folds,
}


@cache
def networks(paths, device):
    """Each checkpoint's network in NCHW, float16 on a GPU, and its settings."""
    import torch

    from training.checkpoint import load_classifier

    loaded = [load_classifier(Path(path)) for path in paths]
    precision = torch.float32 if device == "cpu" else torch.float16
    return [(model.to(device, precision), settings) for model, settings in loaded]


def predict_video(path, models, device="cpu"):
    """One video's label."""
    import torch

    from inference.extraction import frame_numbers
    from training.augment import plain_transform
    from training.model import Normalize

    count = int(cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT))
    frames = read(path, frame_numbers(count, 32))
    found = detect([half_size(frame) for frame in frames], INFERENCE_THRESHOLDS, device)
    crops = [
        crop_face(frame, box) for frame, boxes in zip(frames, found) for box in boxes
    ]
    probabilities = []
    with torch.inference_mode():
        for model, settings in networks(models, device):
            images = torch.from_numpy(
                np.stack([plain_transform(crop, settings.size) for crop in crops])
            ).to(device)
            inputs = (
                Normalize(settings.mean, settings.std).to(device)(images).contiguous()
            )
            logits = model(inputs.to(next(model.parameters()).dtype))
            probabilities.append(torch.sigmoid(logits).float().cpu().numpy())
    return ensemble_label(probabilities, "winner")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", choices=[*STEPS, "predict"])
    parser.add_argument("--root-dir", type=Path)
    parser.add_argument("--test-dir", type=Path)
    parser.add_argument("--models", nargs="+")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if options.work in STEPS:
        STEPS[options.work](options.root_dir)
    else:
        labels = [
            [path.name, predict_video(path, tuple(options.models), options.device)]
            for path in sorted(options.test_dir.glob("*.mp4"))
        ]
        write_csv(options.output, ["filename", "label"], labels)
    return 0


if __name__ == "__main__":
    sys.exit(main())
