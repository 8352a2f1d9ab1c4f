"""The plain schedule: the winner's order of work, as the baseline of the benchmarks.

    python -m benchmarks.plain STEP --root-dir DATA     one preprocessing step, 1 to 5
    python -m benchmarks.plain predict --test-dir VIDEOS --models CHECKPOINT …
        --output FILE

Method: every frame of an original is decoded and searched for faces, 32 frames a
        detector call; at inference one frame a call, one video at a time, one network
        after the other in NCHW. The results are those of the project, because crop
        geometry and rules are the project's own. Only the order of work and the
        libraries differ: OpenCV reads the videos, facenet-pytorch detects the faces,
        nothing is cached between steps.
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
from preprocessing import layout
from preprocessing.crops import crop_face, write_image
from preprocessing.datasets import dfdc
from preprocessing.faces import (
    INFERENCE_THRESHOLDS,
    LANDMARK_THRESHOLDS,
    TRAINING_THRESHOLDS,
    half_size,
)
from runtime.files import write_csv


@cache
def detector(thresholds, device="cpu"):
    """facenet-pytorch's MTCNN, unmodified."""
    from facenet_pytorch import MTCNN

    return MTCNN(margin=0, thresholds=list(thresholds), device=device)


def read(path, numbers=None):
    """Read frames with OpenCV, (H, W, 3) uint8 RGB; all frames if no numbers are given.

    The numbers are sorted.
    """
    threads = [cv2.CAP_PROP_N_THREADS, cv2.getNumThreads()]
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, threads)
    frames, number = [], 0
    while (numbers is None or number <= numbers[-1]) and capture.grab():
        if numbers is None or number in numbers:
            frames.append(cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB))
        number += 1
    return frames


def detect(frames, thresholds, device="cpu"):
    """Bounding boxes (K, 4) xyxy of each half-resolution frame, one frame a call."""
    results = [detector(thresholds, device).detect(frame)[0] for frame in frames]
    return [[] if boxes is None else np.asarray(boxes, np.float32) for boxes in results]


def detect_faces(root):
    (root / "boxes").mkdir(exist_ok=True)
    for video in dfdc.read_dataset(root).reals:
        frames, boxes = [half_size(frame) for frame in read(video.path)], {}
        for start in range(0, len(frames), 32):
            batch = np.stack(frames[start : start + 32])
            found = detector(TRAINING_THRESHOLDS).detect(batch)[0]
            for number, each in enumerate(found, start):
                if each is not None:
                    each = np.asarray(each, np.float32).tolist()
                boxes[number] = each
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
            rounded = np.around(np.asarray(points[0], np.float32)).astype(np.int16)
            np.save(folder / f"{path.stem}.npy", rounded)


def make_diffs(root):
    with get_context("spawn").Pool() as pool:
        pool.map(partial(_make_diffs, root), dfdc.read_dataset(root).fakes)


def _make_diffs(root, video):
    from skimage.metrics import structural_similarity

    folder = layout.diffs_dir(root, video.name)
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(layout.crops_dir(root, video.name).glob("*.png")):
        fake = cv2.imread(str(path))
        real = cv2.imread(str(layout.crops_dir(root, video.original) / path.name))
        similarity = structural_similarity(real, fake, channel_axis=2, full=True)[1]
        mask = ((1 - similarity) * 255).astype(np.int64).astype(np.uint8)
        grey = cv2.cvtColor(mask, cv2.COLOR_BGR2GRAY)
        cv2.imwrite(str(folder / f"{path.stem}_diff.png"), grey)


def make_folds(root):
    rows = []
    for video in dfdc.read_dataset(root).videos:
        label, fold = int(video.is_fake), video.fold
        for path in sorted(layout.crops_dir(root, video.name).glob("*.png")):
            frame = path.stem.split("_")[0]
            rows.append([video.name, path.name, label, video.original, frame, fold])
    header = ["video", "file", "label", "original", "frame", "fold"]
    write_csv(layout.folds_path(root), header, rows)


STEPS = {
    "1": detect_faces,
    "2": extract_crops,
    "3": extract_landmarks,
    "4": make_diffs,
    "5": make_folds,
}


@cache
def networks(paths, device):
    """Load each checkpoint: the network in NCHW (float16 on a GPU), the settings."""
    import torch

    from training.checkpoint import load_classifier

    loaded = [load_classifier(Path(path)) for path in paths]
    precision = torch.float32 if device == "cpu" else torch.float16
    return [(model.to(device, precision), settings) for model, settings in loaded]


def predict_video(path, models, device="cpu"):
    """The label of one video."""
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
    probabilities = {}
    with torch.inference_mode():
        for number, (model, settings) in enumerate(networks(models, device)):
            batch = np.stack([plain_transform(crop, settings.size) for crop in crops])
            images = torch.from_numpy(batch).to(device)
            normalize = Normalize(settings.mean, settings.std).to(device)
            inputs = normalize(images).contiguous()
            logits = model(inputs.to(next(model.parameters()).dtype))
            scores = torch.sigmoid(logits).float().cpu().numpy()
            probabilities[str(number)] = scores
    return ensemble_label(probabilities)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", choices=[*STEPS, "predict"])
    parser.add_argument("--root-dir", type=Path)
    parser.add_argument("--test-dir", type=Path)
    parser.add_argument("--models", nargs="+", action="extend")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if options.work in STEPS:
        STEPS[options.work](options.root_dir)
        return 0
    models = tuple(options.models)
    labels = [
        [path.name, predict_video(path, models, options.device)]
        for path in sorted(options.test_dir.glob("*.mp4"))
    ]
    write_csv(options.output, ["filename", "label"], labels)
    return 0


if __name__ == "__main__":
    sys.exit(main())
