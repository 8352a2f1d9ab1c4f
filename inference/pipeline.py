"""One video through the pipeline: decode, detect, cut (`extract_faces`), then classify (`Ensemble`).

`extract_faces` is a plain function of a path and runs in worker processes; `Ensemble` stays in the process that holds the
networks. What passes between them is what the networks take, so its size is bounded whatever the video's resolution.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from preprocessing.cli import UserError
from preprocessing.crops import crop_face, full_box
from preprocessing.faces import half_size, load_detector
from preprocessing.video import VideoError, probe, read_frames
from training.augment import plain_transform
from training.checkpoint import load_classifier
from training.config import InputSettings
from training.model import Normalize

BATCH = 32  # faces given to a network at a time


@dataclass
class VideoFaces:
    """The K faces of a video in order of frames.

    inputs: for each input size S, (K, S, S, 3) uint8 RGB, centred on black; frames, times (seconds), boxes
    (x1, y1, x2, y2 in whole full-resolution pixels, before the margin): one for each face; trouble: why some are missing.
    """

    inputs: dict[int, np.ndarray] = field(default_factory=dict)
    frames: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    boxes: list[tuple[int, int, int, int]] = field(default_factory=list)
    trouble: str = ""


def frame_numbers(count: int, wanted: int) -> list[int]:
    """`wanted` evenly spaced frame numbers of a video of `count` frames, first and last included; fewer if it is short."""
    return sorted(set(np.linspace(0, count - 1, wanted, endpoint=True, dtype=int).tolist()))


def extract_faces(path: Path, settings: InputSettings, sizes: Sequence[int], device: str) -> VideoFaces:
    """Decode a video's frames, find its faces and make the networks' inputs of them.

    Args:
        settings: frames, detector thresholds and margin; its `size` is not used, `sizes` are.
        device: of the detector.

    Raises:
        VideoError: the file cannot be read as a video.
    """
    info = probe(path)
    numbers = frame_numbers(info.frames, settings.frames_per_video)
    detector = load_detector(settings.detector_thresholds, device)
    faces, crops, read = VideoFaces(), [], 0
    try:
        for number, frame in read_frames(path, numbers):
            read += 1
            for box in detector([half_size(frame)])[0].boxes:
                crop = crop_face(frame, box, settings.margin_parts)
                if crop.size:
                    crops.append([plain_transform(crop, size) for size in sizes])
                    faces.frames.append(number)
                    faces.times.append(number / info.fps if info.fps else 0.0)
                    faces.boxes.append(full_box(box))
    except VideoError:
        if not read:  # else what was read before the damage counts, and the trouble says how much that is
            raise
    faces.inputs = {size: np.stack(images) for size, images in zip(sizes, zip(*crops))}
    troubles = [f"only {read} of {len(numbers)} frames could be decoded"] if read < len(numbers) else []
    troubles += [] if crops else [f"no face found in {read} frames"]
    faces.trouble = "; ".join(troubles)
    return faces


class Ensemble:
    """Trained networks that look at the same faces, float16 on a GPU as the winner's, float32 on a CPU."""

    def __init__(self, paths: Sequence[Path], device: str):
        self.device = torch.device(device)
        self.names = [path.name for path in paths]
        self._dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        loaded = [load_classifier(path) for path in paths]
        self.settings = [settings for _, settings in loaded]
        self._models = [model.to(self.device, self._dtype) for model, _ in loaded]
        self._normalize = [Normalize(each.mean, each.std).to(self.device) for each in self.settings]
        self.faces_settings = self._same_faces(paths)
        self.sizes = sorted({each.size for each in self.settings})

    def _same_faces(self, paths: Sequence[Path]) -> InputSettings:
        """How faces are found, which the networks must agree on; size, mean and std may differ."""
        ours = {"size", "mean", "std"}
        first = self.settings[0]
        for path, other in zip(paths, self.settings):
            if other.model_dump(exclude=ours) != first.model_dump(exclude=ours):
                raise UserError(f"{path}: expects other frames, thresholds or margins than {paths[0].name}; predict apart")
        return first

    @torch.inference_mode()
    def __call__(self, faces: VideoFaces) -> list[np.ndarray]:
        """The probability of FAKE of each face, (K,) float32 for each network."""
        if not faces.frames:
            return [np.zeros(0, np.float32) for _ in self.names]
        return [
            np.concatenate([self._classify(number, batch) for batch in _batches(faces.inputs[settings.size])])
            for number, settings in enumerate(self.settings)
        ]

    def _classify(self, number: int, images: np.ndarray) -> np.ndarray:
        inputs = self._normalize[number](torch.from_numpy(images).to(self.device)).to(self._dtype)
        return torch.sigmoid(self._models[number](inputs)).float().cpu().numpy()


def _batches(images: np.ndarray) -> list[np.ndarray]:
    return [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
