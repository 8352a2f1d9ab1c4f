"""The one video reader: chosen frames of a local file, in order, as RGB arrays.

Reads MP4, QuickTime, Matroska, WebM and AVI with any codec of the FFmpeg inside PyAV. The pixels equal those of OpenCV's
`VideoCapture` bit for bit, which is what the winner's scripts used; `tests/test_video.py` compares the two.

Videos come from strangers. FFmpeg would follow a playlist to other files and to the network, so the containers that may do
that are not opened, and no protocol but that of local files is. Frames that are too large are refused before memory is
taken for them; time and memory of all else are the worker's to bound (`runtime.workers`).
"""

import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np

from runtime.cli import UserError

CAN_SKIP = (
    "h264",
    "hevc",
)  # FFmpeg's decoders that leave out a frame that no other refers to, one packet at a time
CONTAINERS = "mov,matroska,avi"  # FFmpeg's names of the demuxers of those
MAX_PIXELS = 2**26  # of a frame: twice those of 8K
SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")


class VideoError(UserError):
    """A file that cannot be read as a video. The message names the file and the reason."""


@dataclass(frozen=True)
class VideoInfo:
    """What the container says: `frames` (counted packet by packet where the header is silent), frames per second."""

    frames: int
    fps: float


def probe(path: Path) -> VideoInfo:
    """The number of frames and the frame rate of a video, without decoding it.

    Raises:
        VideoError: the file is missing, is no video, or has no frames.
    """
    with open_video(path) as container:
        stream = container.streams.video[0]
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        try:
            frames = stream.frames or sum(
                1 for packet in container.demux(stream) if packet.size
            )
        except av.FFmpegError as error:
            raise VideoError(
                f"{path}: cannot count its frames ({_reason(error)})"
            ) from error
    if frames < 1:
        raise VideoError(f"{path}: the video holds no frames")
    return VideoInfo(frames, fps)


def read_frames(path: Path, indices: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Give the wanted frames of a video. Decodes from the start, but not the frames that nothing needs.

    Args:
        indices: ascending frame numbers from 0; a `range` of any length will do, the end of the video ends it.

    Yields:
        frame number, frame_HW3 uint8 RGB, turned upright where the container carries a rotation.
        A damaged packet is passed over as OpenCV does, so fewer frames than asked for may come.

    Raises:
        VideoError: the file is missing, is no video, or breaks the decoder.
    """
    if not len(indices):
        return
    wanted = indices if isinstance(indices, range) else frozenset(indices)
    times = _presentation_times(path)
    numbers = [number for number in range(len(times)) if number in wanted]
    given = 0
    if len(numbers) < len(times):
        for frame in _decode_wanted(path, [times[number] for number in numbers]):
            yield numbers[given], frame_to_rgb(frame)
            given += 1
        if given == len(numbers):
            return
    last = numbers[given - 1] if given else -1
    with open_video(path) as container:
        try:
            for number, frame in enumerate(
                decode(container, container.streams.video[0])
            ):
                if number in wanted and number > last:
                    yield number, frame_to_rgb(frame)
                if number >= indices[-1]:
                    return
        except av.FFmpegError as error:
            raise VideoError(f"{path}: decoding failed ({_reason(error)})") from error


def _presentation_times(path: Path) -> list[int]:
    """The time stamp of each frame in the order of display, where frames can be told by it; otherwise nothing."""
    with open_video(path) as container:
        stream = container.streams.video[0]
        if stream.codec_context.name not in CAN_SKIP or not stream.frames:
            return []
        try:
            packets = [
                (packet.pts, packet.is_discard or packet.is_corrupt)
                for packet in container.demux(stream)
                if packet.size
            ]
        except av.FFmpegError:
            return []
        times = {time for time, unsure in packets if time is not None and not unsure}
        return sorted(times) if len(times) == len(packets) == stream.frames else []


def _decode_wanted(path: Path, times: Sequence[int]) -> Iterator[av.VideoFrame]:
    """The frames with these time stamps, which ascend; ends before the first that does not come.

    A packet whose frame is not wanted goes to the decoder with the order to leave it out if no other frame refers to it.
    """
    wanted, given = frozenset(times), 0
    with open_video(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_type = "FRAME"
        stream.codec_context.thread_count = (
            cv2.getNumThreads()
        )  # what this process may use: 1 in a worker
        try:
            for packet in container.demux(stream):
                stream.codec_context.skip_frame = (
                    "DEFAULT" if packet.pts in wanted else "NONREF"
                )
                for frame in packet.decode():
                    if frame.pts not in wanted:
                        continue
                    if frame.pts != times[given]:
                        return
                    given += 1
                    yield frame
                    if given == len(times):
                        return
        except av.FFmpegError:
            return


def open_video(path: Path) -> av.container.InputContainer:
    """Open a local file that holds a video stream. Close it, or use it in a `with` block.

    Raises:
        VideoError: the file is missing, is no video, holds sound only or announces frames of more than `MAX_PIXELS`.
    """
    _check_file(Path(path))
    try:
        # `file:` keeps a name such as `concat:a|b` from being taken for another protocol
        container = av.open(
            f"file:{path}",
            options={"protocol_whitelist": "file", "format_whitelist": CONTAINERS},
            metadata_errors="replace",
        )
    except (av.FFmpegError, ValueError) as error:
        raise VideoError(f"{path}: not a readable video ({_reason(error)})") from error
    try:
        _check_stream(path, container)
    except VideoError:
        container.close()
        raise
    return container


def _check_stream(path: Path, container: av.container.InputContainer) -> None:
    if not container.streams.video:
        raise VideoError(f"{path}: holds no video stream")
    codec = container.streams.video[0].codec_context
    if codec is None:
        raise VideoError(f"{path}: its codec is not known")
    if codec.width * codec.height > MAX_PIXELS:
        raise VideoError(
            f"{path}: announces frames of {codec.width}x{codec.height}, more than {MAX_PIXELS} pixels"
        )
    codec.options = {
        "max_pixels": str(MAX_PIXELS)
    }  # for frames that are larger than announced


def _check_file(path: Path) -> None:
    try:
        status = path.stat()
    except FileNotFoundError as error:
        what = (
            "a link to a file that is not there"
            if path.is_symlink()
            else "no such video file"
        )
        raise VideoError(f"{path}: {what}") from error
    except OSError as error:
        raise VideoError(f"{path}: cannot be opened ({error.strerror})") from error
    if not stat.S_ISREG(
        status.st_mode
    ):  # opening a pipe would wait for somebody to write
        raise VideoError(
            f"{path}: {'a folder' if path.is_dir() else 'no regular file'}, not a video"
        )
    if not status.st_size:
        raise VideoError(f"{path}: the file is empty")


def decode(
    container: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[av.VideoFrame]:
    """All frames in order. A damaged packet is passed over, as OpenCV does."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                return
            yield from packet.decode()
        except av.error.EOFError:
            return
        except av.error.InvalidDataError:
            continue


def frame_to_rgb(frame: av.VideoFrame) -> np.ndarray:
    """A decoded frame as (H, W, 3) uint8 RGB, turned upright where the container carries a rotation."""
    rgb = frame.to_ndarray(format="rgb24")
    turns = (
        round(frame.rotation / 90) % 4
    )  # `rotation` is in degrees counter-clockwise, as np.rot90 turns
    return np.ascontiguousarray(np.rot90(rgb, turns)) if turns else rgb


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
