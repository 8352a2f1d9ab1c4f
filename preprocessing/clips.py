"""Clips: one face over consecutive frames, cut with one box, as a small video file.

One box for all frames, so that the crop itself does not tremble: that of the face in the
clip's middle frame, with the margin of a crop. Real and fake clips are encoded alike,
with one key frame, at the start, so that a network cannot learn the encoder.

Near-lossless H.264 with full colour resolution: docs/transitions.md has bytes, PSNR and
decoding time beside PNG.
"""

import io
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from preprocessing.crops import full_resolution_box
from preprocessing.frame import to_array
from preprocessing.tracking import track_faces
from preprocessing.video import X264_OPTIONS
from runtime.cli import UserError

CLIP_SUFFIX = ".mp4"
MAX_FRAMES = 32
SECONDS = 1.0  # of a clip, where that is not more than MAX_FRAMES
CLIPS = 4  # moments of a video
DEFAULT_RATE = 25.0  # frames a second, of a video whose container has no rate
QUALITY = {
    "crf": "12",
    "preset": "veryfast",
    "bf": "0",
    # one key frame, also where the picture changes at once
    "g": str(2 * MAX_FRAMES),
    "sc_threshold": "0",
}


class Clip(NamedTuple):
    """Where a clip comes from.

    middle: the frame whose box it has.
    numbers: of its frames.
    actor: number of the face in the middle frame.
    box: x1, y1, x2, y2 in half-resolution pixels.
    """

    middle: int
    numbers: range
    actor: int
    box: Sequence[float]

    @property
    def name(self) -> str:
        """Of its file: as the crop of the middle frame, so it has the same landmarks."""
        return f"{self.middle}_{self.actor}{CLIP_SUFFIX}"


def clip_numbers(fps: float) -> range:
    """The frames of a clip, relative to its middle one.

    Of a video with more than `MAX_FRAMES` a second every second, third, … one.
    """
    fps = fps or DEFAULT_RATE
    step = 1 if SECONDS * fps <= MAX_FRAMES else round(SECONDS * fps / 30)
    count = min(MAX_FRAMES, max(2, round(SECONDS * fps / step)))
    return range(-(count // 2) * step, (count - count // 2) * step, step)


def link_faces(
    boxes: Mapping[int, Sequence[Sequence[float]] | None],
) -> dict[int, list[int]]:
    """The track of each face of each searched frame.

    Args:
        boxes: of each searched frame's faces, in half-resolution pixels.
    """
    numbers = sorted(boxes)
    faces = [
        (number, full_resolution_box(box))
        for number in numbers
        for box in boxes[number] or []
    ]
    tracks = iter(track_faces([n for n, _ in faces], [box for _, box in faces]))
    return {number: [next(tracks) for _ in boxes[number] or []] for number in numbers}


def stays_in_view(
    tracks: Mapping[int, Sequence[int]], track: int, first: int, last: int
) -> bool:
    """Whether a face is found in every searched frame from `first` to `last`.

    Args:
        tracks: of `link_faces`.
    """
    return all(
        track in each for number, each in tracks.items() if first <= number <= last
    )


def choose_clips(
    boxes: Mapping[int, Sequence[Sequence[float]] | None],
    frames: int,
    offsets: range,
    count: int = CLIPS,
) -> list[Clip]:
    """Evenly spread moments of a video, and the faces that stay in view in each.

    A face stays if it is found in every searched frame of the clip, linked by the
    overlap of its boxes.

    Args:
        boxes: of each searched frame's faces, in half-resolution pixels.
        frames: of the video.
        offsets: of a clip's frames from its middle one.
        count: moments.
    """
    tracks = link_faces(boxes)
    moments: dict[int, list[Clip]] = {}
    for middle, faces in tracks.items():
        numbers = range(middle + offsets.start, middle + offsets.stop, offsets.step)
        first, last = numbers[0], numbers[-1]
        if first < 0 or last >= frames:
            continue
        for actor, (track, box) in enumerate(zip(faces, boxes[middle] or [])):
            if stays_in_view(tracks, track, first, last):
                clip = Clip(middle, numbers, actor, box)
                moments.setdefault(middle, []).append(clip)
    middles = sorted(moments)
    places = np.linspace(0, len(middles) - 1, min(count, len(middles)), dtype=int)
    return [clip for place in places for clip in moments[middles[place]]]


def write_clip(path: Path, frames: Sequence[np.ndarray], fps: float) -> None:
    """Write frames (h, w, 3) uint8 RGB of one size as a video.

    Not atomic: the caller writes into an `atomic_folder`.

    Args:
        fps: frames a second of the video that they are from; 0 where nobody knows.
    """
    rate = Fraction(fps or DEFAULT_RATE).limit_denominator(1001)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream(
            "libx264", rate=rate, options=X264_OPTIONS | QUALITY
        )
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv444p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(frame), format="rgb24"
            )
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    path.write_bytes(buffer.getbuffer())


def read_clip(data: bytes, name: str, remedy: str) -> tuple[np.ndarray, float]:
    """The frames of a clip, (T, h, w, 3) uint8 RGB, and how many there are a second.

    Args:
        data: of the file.
        name, remedy: for the error message: the file, and what the user should do.

    Raises:
        UserError: it is damaged.
    """
    try:
        with av.open(io.BytesIO(data), "r", format="mp4") as container:
            frames = [to_array(frame) for frame in container.decode(video=0)]
            rate = container.streams.video[0].average_rate
            return np.stack(frames), float(rate or DEFAULT_RATE)
    except (av.FFmpegError, ValueError, IndexError) as error:
        raise UserError(
            f"{name}: not a clip; {remedy} and run the preprocessing again"
        ) from error


def choose_frames(
    length: int,
    fps: float,
    count: int,
    spacing: float,
    start: float = 0.5,
    slowest: float = 0.0,
) -> list[int]:
    """Which frames of a clip a network sees: at each time the last one shown until then.

    A clip that is too short repeats its last frame.

    Args:
        length, fps: of the clip, in frames and frames a second.
        count: frames that are wanted.
        spacing: seconds between them.
        start: the first one's place, 0 to 1, in the time that is left over.
        slowest: a frame rate below `fps`, as which the clip is shown; 0: its own.
    """
    room = max(0.0, (length - 1) / fps - (count - 1) * spacing)
    times = start * room + spacing * np.arange(count)
    epsilon = 1e-6  # times that are exactly a frame's
    if slowest:
        times = np.floor(times * slowest + epsilon) / slowest
    numbers = np.floor(times * fps + epsilon).astype(int)
    return np.clip(numbers, 0, length - 1).tolist()


def centred_times(count: int, spacing: float) -> np.ndarray:
    """Seconds of `count` frames from the middle of their clip, (count,)."""
    return (np.arange(count) - (count - 1) / 2) * spacing


def shown_at(times: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Indices of the frames that are shown at some times: the last ones until then.

    Args:
        times: of all frames, ascending. Before the first it is the first.
    """
    places = np.searchsorted(times, wanted + 1e-6, "right") - 1
    return np.clip(places, 0, len(times) - 1)
