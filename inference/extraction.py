"""From a video to the inputs of the networks: decode, detect, crop, resize.

`extract_faces` is a plain function of a path and runs in worker processes. Its result
holds no frames, only the networks' inputs, so its size does not depend on the video's
resolution.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from inference.provenance import describe_provenance
from preprocessing.clips import (
    DEFAULT_RATE,
    centred_times,
    link_faces,
    shown_at,
    stays_in_view,
)
from preprocessing.crops import crop_face, full_resolution_box
from preprocessing.faces import half_size, load_detector
from preprocessing.video import VideoError, VideoInfo, probe, read_frames
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
    clips: for each input size S, (C, T, S, S, 3) uint8 RGB, each cut with one box.
    clip_frames, clip_times, clip_boxes: of the face in each clip's middle.
    clip_seconds: when each clip begins and ends.
    preview: the first frame, (h, PREVIEW_WIDTH, 3) uint8 RGB, if details are wanted.
    provenance: what the container says of its origin, in words, likewise.
    total: frames of the video; 0 where nobody knows.
    """

    inputs: dict[int, np.ndarray] = field(default_factory=dict)
    frames: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    boxes: list[tuple[int, int, int, int]] = field(default_factory=list)
    reason: str = ""
    clips: dict[int, np.ndarray] = field(default_factory=dict)
    clip_frames: list[int] = field(default_factory=list)
    clip_times: list[float] = field(default_factory=list)
    clip_boxes: list[tuple[int, int, int, int]] = field(default_factory=list)
    clip_seconds: list[tuple[float, float]] = field(default_factory=list)
    preview: np.ndarray | None = None
    provenance: dict[str, str] = field(default_factory=dict)
    total: int = 0


def frame_numbers(count: int, wanted: int) -> list[int]:
    """`wanted` evenly spaced frame numbers of a video of `count` frames, first and last
    included; fewer if the video is shorter.
    """
    numbers = np.linspace(0, count - 1, wanted, endpoint=True, dtype=int)
    return sorted(set(numbers.tolist()))


class FramePlan(NamedTuple):
    """Which frames of a video a network sees.

    frames: so many evenly spaced ones; with a step at most so many.
    step: every n-th frame from the first; 0: evenly spaced.
    """

    frames: int
    step: int = 0

    def numbers(self, total: int) -> list[int]:
        """The frames of a video of `total` frames, ascending."""
        if self.step:
            return [*range(0, total, self.step)][: self.frames]
        return frame_numbers(total, self.frames)


class ClipInput(NamedTuple):
    """The clips that networks of an ensemble see.

    settings: frames, spacing and number of the clips, which are around some of its
        evenly spaced frames; `sizes` replace its `size`.
    sizes: input sizes S of the networks, in pixels.
    """

    settings: InputSettings
    sizes: Sequence[int]


class Wanted(NamedTuple):
    """What the networks of an ensemble need of a video.

    settings: detector thresholds and margin.
    sizes: input sizes S of the networks of frames, in pixels.
    plans: the frames that they see.
    clips: what networks of clips see; None if there are none.
    """

    settings: InputSettings
    sizes: Sequence[int]
    plans: Sequence[FramePlan]
    clips: ClipInput | None = None


def plan_clips(
    numbers: Sequence[int], info: VideoInfo, settings: InputSettings
) -> dict[int, list[int]]:
    """The frames of clips around some frames of a video, by the middle one.

    Evenly spread among those with room on both sides; where none has any, frames are
    repeated at the ends of the only one. A video with fewer frames a second than the
    clip repeats frames too. Of a single frame there is no clip.

    Args:
        numbers: frames whose faces are searched.
    """
    times = np.array([info.time(number) for number in range(info.frames)])
    if not times[-1]:  # the container has no rate
        times = np.arange(info.frames) / DEFAULT_RATE
    offsets = centred_times(settings.clip_frames, settings.clip_spacing)
    roomy = [
        number
        for number in numbers
        if times[number] + offsets[0] >= 0 and times[number] + offsets[-1] <= times[-1]
    ]
    roomy = roomy or [numbers[len(numbers) // 2]]
    chosen = [roomy[n] for n in frame_numbers(len(roomy), settings.clips_per_video)]
    clips = {
        number: shown_at(times, times[number] + offsets).tolist() for number in chosen
    }
    return {number: each for number, each in clips.items() if len({*each}) > 1}


def extract_faces(
    path: Path, wanted: Wanted, device: str, details: bool = False
) -> VideoFaces:
    """Decode a video's frames, find its faces and make the networks' inputs.

    Args:
        device: of the detector.
        details: whether preview and provenance are wanted too.

    Raises:
        VideoError: the file cannot be read as a video.
    """
    info = probe(path)
    settings, sizes = wanted.settings, wanted.sizes
    numbers = sorted({n for plan in wanted.plans for n in plan.numbers(info.frames)})
    detector = load_detector(settings.detector_thresholds, device)
    faces = VideoFaces(total=info.frames)
    crops: list[list[np.ndarray]] = []
    cutter = _ClipCutter(info, wanted.clips) if wanted.clips else None
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
            if cutter:
                cutter.add_boxes(number, detections.boxes)

    batch: dict[int, np.ndarray] = {}
    searched = frozenset(numbers)
    decoded = sorted(searched | (cutter.numbers if cutter else set()))
    try:
        for number, frame in read_frames(path, decoded, info):
            if details and not read:
                faces.preview = _preview(frame)
                faces.provenance = describe_provenance(path)
            if cutter:
                cutter.add_frame(number, frame)
            if number not in searched:
                continue
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
    if not faces.frames:
        reasons.append(f"no face found in {read} frames")
    if cutter:
        reasons += cutter.finish(faces)
    faces.reason = "; ".join(reasons)
    return faces


class _ClipCutter:
    """Cuts clips while frames come, and keeps a frame only as long as a clip needs it.

    Attributes:
        numbers: of the frames that it needs.
    """

    def __init__(self, info: VideoInfo, wanted: ClipInput):
        self._info, self._wanted = info, wanted
        numbers = frame_numbers(info.frames, wanted.settings.frames_per_video)
        self._plan = plan_clips(numbers, info, wanted.settings)
        self.numbers = {number for each in self._plan.values() for number in each}
        self._frames: dict[int, np.ndarray] = {}
        # not those that other members search: they would decide about these clips
        self._searched = frozenset(numbers)
        self._found: dict[int, list[list[float]]] = {}
        self._waiting: list[int] = []  # middle frames, for frames of their clips
        self._ends = {
            middle: (each[0], each[-1]) for middle, each in self._plan.items()
        }
        self._clips: list[list[np.ndarray]] = []
        self._places: list[tuple[int, int]] = []

    def add_frame(self, number: int, frame: np.ndarray) -> None:
        """The next frame of the video."""
        if number in self.numbers:
            self._frames[number] = frame
            self._cut()

    def add_boxes(self, number: int, boxes: np.ndarray) -> None:
        """The boxes of a searched frame."""
        if number in self._searched:
            self._found[number] = boxes.tolist()
        if number in self._plan:
            self._waiting.append(number)
            self._cut()

    def finish(self, faces: VideoFaces) -> list[str]:
        """Give the clips of faces that stay in view to `faces`.

        Returns why some are missing.
        """
        tracks, kept = link_faces(self._found), []
        for (middle, actor), clips in zip(self._places, self._clips):
            first, last = self._ends[middle]
            if not stays_in_view(tracks, tracks[middle][actor], first, last):
                continue
            kept.append(clips)
            faces.clip_frames.append(middle)
            faces.clip_times.append(self._info.time(middle))
            faces.clip_boxes.append(full_resolution_box(self._found[middle][actor]))
            faces.clip_seconds.append((self._info.time(first), self._info.time(last)))
        for size, clips in zip(self._wanted.sizes, zip(*kept)):
            faces.clips[size] = np.stack(clips)
        if uncut := len(self._waiting):
            return [f"{uncut} clips not cut: frames of them could not be decoded"]
        if not self._ends:
            return ["no clip: all frames of one would be the same"]
        if faces.frames and not kept:
            return ["no clip: no face stays at the moments at which clips are cut"]
        return []

    def _cut(self) -> None:
        """Cut the clips whose boxes and frames are all there."""
        for middle in [*self._waiting]:
            numbers = self._plan[middle]
            if not all(number in self._frames for number in numbers):
                continue
            self._waiting.remove(middle)
            for actor, box in enumerate(self._found[middle]):
                crops = [
                    crop_face(
                        self._frames[number], box, self._wanted.settings.margin_parts
                    )
                    for number in numbers
                ]
                if all(crop.size for crop in crops):
                    self._clips.append(
                        [
                            np.stack([plain_transform(crop, size) for crop in crops])
                            for size in self._wanted.sizes
                        ]
                    )
                    self._places.append((middle, actor))
            del self._plan[middle]
            needed = {number for each in self._plan.values() for number in each}
            self._frames = {
                number: frame
                for number, frame in self._frames.items()
                if number in needed
            }


def _preview(frame: np.ndarray) -> np.ndarray:
    height = max(1, round(frame.shape[0] * PREVIEW_WIDTH / frame.shape[1]))
    size = PREVIEW_WIDTH, height
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
