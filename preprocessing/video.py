"""Video reader: selected frames of a local file, in order, as RGB arrays.

Reads MP4, QuickTime, Matroska, WebM and AVI with any codec of the FFmpeg build inside
PyAV. The pixels are bit-identical to those of OpenCV's `VideoCapture`, which the
winner's scripts used; `tests/test_video.py` compares the two.

Input videos are untrusted. FFmpeg follows playlists to other files and to the network,
so container formats that allow this are not opened, and only the local file protocol is
allowed. Frames that are too large are rejected before memory is allocated for them. All
other time and memory limits are those of the worker (`runtime.workers`).
"""

import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np

from runtime.cli import UserError

# FFmpeg decoders that can skip a non-reference frame packet by packet
SKIPPABLE_CODECS = ("h264", "hevc")
DEMUXERS = "mov,matroska,avi"  # FFmpeg's names for those of the formats above
MAX_PIXELS = 2**26  # per frame: twice the pixels of 8K
SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")


class VideoError(UserError):
    """A file cannot be read as a video. The message names the file and the reason."""


@dataclass(frozen=True)
class VideoInfo:
    """Number of frames and frames per second, from the container's header.

    Where the header has no number of frames, the packets are counted.
    """

    frames: int
    fps: float


def probe(path: Path) -> VideoInfo:
    """Read the number of frames and the frame rate of a video without decoding it.

    Raises:
        VideoError: the file is missing, is not a video, or has no frames.
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
    """Read the selected frames of a video.

    Decodes from the start, but skips unselected frames that no other frame references.

    Args:
        indices: ascending frame numbers from 0. A `range` may extend past the end of
            the video.

    Yields:
        frame number, frame (H, W, 3) uint8 RGB, rotated upright by the container's
        rotation. Damaged packets are skipped, as in OpenCV, so there may be fewer
        frames than requested.

    Raises:
        VideoError: the file is missing, is not a video, or cannot be decoded.
    """
    if not len(indices):
        return
    wanted = indices if isinstance(indices, range) else frozenset(indices)
    times = _presentation_times(path)
    numbers = [number for number in range(len(times)) if number in wanted]
    num_read = 0
    if len(numbers) < len(times):
        for frame in _decode_wanted(path, [times[number] for number in numbers]):
            yield numbers[num_read], frame_to_rgb(frame)
            num_read += 1
        if num_read == len(numbers):
            return
    last = numbers[num_read - 1] if num_read else -1
    with open_video(path) as container:
        frames = decode(container, container.streams.video[0])
        try:
            for number, frame in enumerate(frames):
                if number in wanted and number > last:
                    yield number, frame_to_rgb(frame)
                if number >= indices[-1]:
                    return
        except av.FFmpegError as error:
            raise VideoError(f"{path}: decoding failed ({_reason(error)})") from error


def _presentation_times(path: Path) -> list[int]:
    """The timestamp of each frame in display order.

    Empty where timestamps do not identify the frames, or the decoder cannot skip any.
    """
    with open_video(path) as container:
        stream = container.streams.video[0]
        if stream.codec_context.name not in SKIPPABLE_CODECS or not stream.frames:
            return []
        try:
            packets = [
                (packet.pts, packet.is_discard or packet.is_corrupt)
                for packet in container.demux(stream)
                if packet.size
            ]
        except av.FFmpegError:
            return []
        times = {time for time, bad in packets if time is not None and not bad}
        return sorted(times) if len(times) == len(packets) == stream.frames else []


def _decode_wanted(path: Path, times: Sequence[int]) -> Iterator[av.VideoFrame]:
    """Decode the frames with these ascending timestamps; stop at the first missing one.

    For every other packet, the decoder is told to skip non-reference frames.
    """
    wanted, num_decoded = frozenset(times), 0
    with open_video(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_type = "FRAME"
        # the thread limit of this process: 1 in a worker
        stream.codec_context.thread_count = cv2.getNumThreads()
        try:
            for packet in container.demux(stream):
                stream.codec_context.skip_frame = (
                    "DEFAULT" if packet.pts in wanted else "NONREF"
                )
                for frame in packet.decode():
                    if frame.pts not in wanted:
                        continue
                    if frame.pts != times[num_decoded]:
                        return
                    num_decoded += 1
                    yield frame
                    if num_decoded == len(times):
                        return
        except av.FFmpegError:
            return


def open_video(path: Path) -> av.container.InputContainer:
    """Open a local video file. The caller closes it, or uses it in a `with` block.

    Raises:
        VideoError: the file is missing, is not a video, has only audio, or its header
            declares frames of more than `MAX_PIXELS`.
    """
    _check_file(Path(path))
    try:
        # `file:` prevents FFmpeg from parsing a protocol in a name such as `concat:a|b`
        container = av.open(
            f"file:{path}",
            options={"protocol_whitelist": "file", "format_whitelist": DEMUXERS},
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
            f"{path}: announces frames of {codec.width}x{codec.height}, "
            f"more than {MAX_PIXELS} pixels"
        )
    # for frames that are larger than declared in the header
    codec.options = {"max_pixels": str(MAX_PIXELS)}


def _check_file(path: Path) -> None:
    try:
        status = path.stat()
    except FileNotFoundError as error:
        if path.is_symlink():
            reason = "a link to a file that is not there"
        else:
            reason = "no such video file"
        raise VideoError(f"{path}: {reason}") from error
    except OSError as error:
        raise VideoError(f"{path}: cannot be opened ({error.strerror})") from error
    # opening a named pipe would block until another process writes to it
    if not stat.S_ISREG(status.st_mode):
        file_type = "a folder" if path.is_dir() else "no regular file"
        raise VideoError(f"{path}: {file_type}, not a video")
    if not status.st_size:
        raise VideoError(f"{path}: the file is empty")


def decode(
    container: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[av.VideoFrame]:
    """Decode all frames in order. Damaged packets are skipped, as in OpenCV."""
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
    """A decoded frame as (H, W, 3) uint8 RGB, upright by the container's rotation."""
    rgb = frame.to_ndarray(format="rgb24")
    # `rotation` is in degrees counter-clockwise, the direction of np.rot90
    quarter_turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(rgb, quarter_turns)) if quarter_turns else rgb


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
