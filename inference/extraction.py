"""From a video to the inputs of the networks: decode, detect, crop, resize.

`extract_faces` is a plain function of a path and runs in worker processes. Its result
holds no frames, only the networks' inputs, so its size does not depend on the video's
resolution.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from inference.provenance import describe_provenance
from preprocessing.crops import crop_face, full_resolution_box
from preprocessing.faces import half_size, load_detector
from preprocessing.video import VideoError, probe, read_frames
from training.augment import plain_transform
from training.config import InputSettings

# Half-resolution pixels that are searched together: 8 frames of 1080p, 2 of 4K.
DETECTED_PIXELS = 4_000_000
PREVIEW_WIDTH = 72  # pixels


@dataclass
class VideoFaces:
    """The K faces of a video in the order of its frames.

    inputs: for each input size S, (K, S, S, 3) uint8 RGB, centred on black.
    frames: the frame number of each face.
    times: of each face, in seconds.
    boxes: (x1, y1, x2, y2) of each face in whole full-resolution pixels, before the
        margin.
    reason: why some or all faces are missing; empty if none is.
    preview: the first frame, (h, PREVIEW_WIDTH, 3) uint8 RGB, if details are wanted.
    provenance: what the container says of its origin, in words, likewise.
    """

    inputs: dict[int, np.ndarray] = field(default_factory=dict)
    frames: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    boxes: list[tuple[int, int, int, int]] = field(default_factory=list)
    reason: str = ""
    preview: np.ndarray | None = None
    provenance: dict[str, str] = field(default_factory=dict)


def frame_numbers(count: int, wanted: int) -> list[int]:
    """`wanted` evenly spaced frame numbers of a video of `count` frames, first and last
    included; fewer if the video is shorter.
    """
    numbers = np.linspace(0, count - 1, wanted, endpoint=True, dtype=int)
    return sorted(set(numbers.tolist()))


def extract_faces(
    path: Path,
    settings: InputSettings,
    sizes: Sequence[int],
    device: str,
    details: bool = False,
) -> VideoFaces:
    """Decode a video's frames, find its faces and make the networks' inputs.

    Args:
        settings: frames, detector thresholds and margin; `sizes` replace its `size`.
        sizes: input sizes S of the networks, in pixels.
        device: of the detector.
        details: whether preview and provenance are wanted too.

    Raises:
        VideoError: the file cannot be read as a video.
    """
    info = probe(path)
    numbers = frame_numbers(info.frames, settings.frames_per_video)
    detector = load_detector(settings.detector_thresholds, device)
    faces = VideoFaces()
    crops: list[list[np.ndarray]] = []
    read = 0

    def find_faces(batch: dict[int, np.ndarray]) -> None:
        found = detector([half_size(frame) for frame in batch.values()])
        for (number, frame), detections in zip(batch.items(), found):
            for box in detections.boxes:
                crop = crop_face(frame, box, settings.margin_parts)
                if crop.size:
                    crops.append([plain_transform(crop, size) for size in sizes])
                    faces.frames.append(number)
                    faces.times.append(info.time(number))
                    faces.boxes.append(full_resolution_box(box))

    batch: dict[int, np.ndarray] = {}
    try:
        for number, frame in read_frames(path, numbers, info):
            if details and not read:
                faces.preview = _preview(frame)
                faces.provenance = describe_provenance(path)
            read += 1
            batch[number] = frame
            pixels = len(batch) * frame.shape[0] * frame.shape[1]
            if pixels >= 4 * DETECTED_PIXELS:
                find_faces(batch)
                batch = {}
    except VideoError:
        # what was read before the damage counts; `reason` says how much that is
        if not read:
            raise
    find_faces(batch)
    faces.inputs = {size: np.stack(images) for size, images in zip(sizes, zip(*crops))}
    if not read:
        reason = f"none of {len(numbers)} frames could be decoded"
        raise VideoError(f"{path}: {'; '.join([*info.notes, reason])}")
    reasons = [*info.notes]
    if read < len(numbers):
        reasons.append(f"only {read} of {len(numbers)} frames could be decoded")
    if not crops:
        reasons.append(f"no face found in {read} frames")
    faces.reason = "; ".join(reasons)
    return faces


def _preview(frame: np.ndarray) -> np.ndarray:
    height = max(1, round(frame.shape[0] * PREVIEW_WIDTH / frame.shape[1]))
    size = PREVIEW_WIDTH, height
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
