"""Video reader: selected frames of a local file, in order, as RGB arrays.

Reads MP4, QuickTime, Matroska, WebM and AVI with any codec of the FFmpeg build inside
PyAV. The pixels are bit-identical to those of OpenCV's `VideoCapture`, which the
winner's scripts used; `tests/test_video.py` compares the two.

Input videos are untrusted. FFmpeg follows playlists to other files and to the network,
so container formats that allow this are not opened, and only the local file protocol is
allowed. Frames that are too large are rejected before memory is allocated for them. All
other time and memory limits are those of the worker (`runtime.workers`).
"""

import shlex
import stat
import struct
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np

from preprocessing.frame import frame_to_rgb, is_hdr
from runtime.cli import UserError

# FFmpeg decoders that can skip a non-reference frame packet by packet
SKIPPABLE_CODECS = ("h264", "hevc")
DEMUXERS = "mov,matroska,avi"  # FFmpeg's names for those of the formats above
MAX_PIXELS = 2**26  # per frame: twice the pixels of 8K
SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".3gp", ".3g2", ".qt")
# videos that are not opened, told by their endings
OTHER_SUFFIXES = (
    *(".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".vob", ".flv", ".f4v", ".wmv", ".asf"),
    *(".gif", ".ogv", ".rm", ".rmvb", ".mxf", ".divx", ".h264", ".264", ".265"),
    *(".hevc", ".h265", ".m1v", ".m2v", ".mpe", ".m2p", ".y4m", ".dv", ".ivf", ".ogm"),
    *(".wtv", ".amv"),
)
UNFINISHED_SUFFIXES = (".part", ".crdownload", ".download", ".zip", ".tmp")
# Of every x264 encoder here, so that it writes the same bytes at each run and on every
# processor with AVX2: x264's AVX-512 code, in PyAV 17, gives others from run to run.
X264_OPTIONS = {"threads": "1"}
if cv2.checkHardwareSupport(11):  # CV_CPU_AVX2
    X264_OPTIONS["x264-params"] = "asm=avx2"
MAX_NAMES = 3  # of unused files in a message
ATTACHED_PICTURE = av.stream.Disposition.attached_pic
DEFAULT = av.stream.Disposition.default


class VideoError(UserError):
    """A file cannot be read as a video. The message names the file and the reason."""


@dataclass(frozen=True)
class VideoInfo:
    """What the packets of a video say, without decoding it.

    frames: the number of frames that a player shows.
    fps: average frame rate; 0 where the container has none.
    start: presentation time of the first frame in seconds.
    width, height: in pixels, as stored: before the display matrix.
    timestamps: of each frame in display order, in units of `time_base`; empty where
        timestamps do not identify the frames.
    time_base: seconds.
    can_skip: whether the decoder can skip frames that are not wanted.
    notes: what is unusual about the file, for the report.
    """

    frames: int
    fps: float
    start: float
    width: int
    height: int
    timestamps: tuple[int, ...]
    time_base: float
    can_skip: bool
    notes: tuple[str, ...] = ()

    def time(self, number: int) -> float:
        """Presentation time of a frame in seconds from the first frame."""
        if number < len(self.timestamps):
            return (self.timestamps[number] - self.timestamps[0]) * self.time_base
        return number / self.fps if self.fps else 0.0


def sort_files(paths: Iterable[Path]) -> tuple[list[Path], dict[str, list[Path]]]:
    """Tell videos from what looks like one, or hides some, and is not used.

    Returns:
        the videos, sorted by name, and by reason the unused files and folders.
    """
    videos, unused = [], defaultdict(list)
    for path in sorted(paths):
        suffix = path.suffix.lower()
        if path.name.startswith("._") and suffix in SUFFIXES + OTHER_SUFFIXES:
            unused["macOS metadata, not videos"].append(path)
        elif suffix in SUFFIXES:
            videos.append(path)
        elif (
            suffix in UNFINISHED_SUFFIXES and Path(path.stem).suffix.lower() in SUFFIXES
        ):
            unused["not complete or not unpacked"].append(path)
        elif suffix in OTHER_SUFFIXES:
            unused["not read: convert them to .mp4"].append(path)
        elif path.is_dir() and not path.name.startswith("."):
            unused["folders, which are not searched"].append(path)
    return videos, dict(unused)


def describe_unused(reason: str, paths: Sequence[Path]) -> str:
    """One line with the number and the first names."""
    names = ", ".join(path.name for path in paths[:MAX_NAMES])
    more = ", …" if len(paths) > MAX_NAMES else ""
    return f"{len(paths)} not used ({names}{more}): {reason}"


def probe(path: Path) -> VideoInfo:
    """Read a video's packets without decoding them.

    The header's number of frames is not trusted: it counts frames that an edit list
    hides, only the first fragment of a fragmented file, or nothing.

    Raises:
        VideoError: the file is missing, is not a video, or has no frames.
    """
    with open_video(path) as container:
        stream, notes = choose_stream(path, container)
        try:
            packets = [
                (packet.pts, packet.is_corrupt, packet.is_discard)
                for packet in container.demux(stream)
                if packet.size and not _is_hidden(packet, stream)
            ]
        except av.FFmpegError as error:
            raise VideoError(
                f"{path}: cannot count its frames ({_reason(error)})"
            ) from error
        shown = [packet for packet in packets if not packet[2]]
        if not shown:
            raise VideoError(f"{path}: the video holds no frames")
        if stream.frames > len(packets) and _is_cut_short(path):
            notes.append(
                f"the file is cut short: it holds {len(packets)} of "
                f"{stream.frames} frames"
            )
        codec = stream.codec_context
        if is_hdr(codec.color_trc):
            notes.append("HDR, tone-mapped to SDR")
        aspect = stream.sample_aspect_ratio
        if aspect and aspect != 1:
            notes.append(
                f"pixels are not square ({aspect.numerator}:{aspect.denominator}): "
                "faces are judged as stored, not stretched as a player shows them"
            )
        times = {
            pts for pts, is_corrupt, _ in shown if pts is not None and not is_corrupt
        }
        identified = len(times) == len(shown)
        timestamps = tuple(sorted(times)) if identified else ()
        time_base = float(stream.time_base or 0)
        first = timestamps[0] if timestamps else stream.start_time or 0
        return VideoInfo(
            frames=len(shown),
            fps=float(stream.average_rate or stream.guessed_rate or 0),
            start=first * time_base,
            width=codec.width,
            height=codec.height,
            timestamps=timestamps,
            time_base=time_base,
            can_skip=codec.name in SKIPPABLE_CODECS,
            notes=tuple(notes),
        )


def read_frames(
    path: Path, indices: Sequence[int], info: VideoInfo | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Read the selected frames of a video.

    Decodes from the start, but skips unselected frames that no other frame references.

    Args:
        indices: ascending frame numbers from 0. A `range` may extend past the end of
            the video.
        info: what `probe` gave, if it was called.

    Yields:
        frame number, frame (H, W, 3) uint8 RGB as a player shows it. Damaged packets
        are skipped, as in OpenCV, so there may be fewer frames than requested.

    Raises:
        VideoError: the file is missing, is not a video, or cannot be decoded.
    """
    if not len(indices):
        return
    info = info or probe(path)
    wanted = indices if isinstance(indices, range) else frozenset(indices)
    times = info.timestamps if info.can_skip else ()
    numbers = [number for number in range(len(times)) if number in wanted]
    num_read = 0
    if len(numbers) < len(times):
        for frame in _decode_wanted(path, [times[number] for number in numbers]):
            yield numbers[num_read], frame_to_rgb(frame)
            num_read += 1
        if num_read == len(numbers):
            return
    last = numbers[num_read - 1] if num_read else -1
    numbers_by_time: dict[int | None, int] = {
        time: number for number, time in enumerate(info.timestamps)
    }
    with open_video(path) as container:
        stream, _ = choose_stream(path, container)
        try:
            for place, frame in enumerate(decode(container, stream)):
                # frames that cannot be decoded, as those before the first key frame,
                # must not change the numbers of the others
                number = numbers_by_time.get(frame.pts, place)
                if number in wanted and number > last:
                    yield number, frame_to_rgb(frame)
                if number >= indices[-1]:
                    return
        except av.FFmpegError as error:
            raise VideoError(f"{path}: decoding failed ({_reason(error)})") from error


def choose_stream(
    path: Path, container: av.container.InputContainer
) -> tuple[av.VideoStream, list[str]]:
    """The stream that is the video, and a note where there was a choice.

    Cover pictures are no video, and neither is a track of a single picture beside a
    film (a thumbnail). Of several films it is the one marked as default, else the
    first. The container is at its start afterwards.

    Raises:
        VideoError: there is none, its codec is not known, or its header declares frames
            of more than `MAX_PIXELS`.
    """
    streams = [
        stream
        for stream in container.streams.video
        if not stream.disposition & ATTACHED_PICTURE
    ]
    if not streams:
        raise VideoError(f"{path}: holds no video stream")
    known = [stream for stream in streams if stream.codec_context is not None]
    streams = known or streams
    notes = []
    if len(streams) > 1:
        counts: Counter[int] = Counter()
        try:
            for packet in container.demux(streams):
                counts[packet.stream.index] += bool(packet.size)
        except av.FFmpegError:
            pass  # what was read until there decides
        try:
            container.seek(0)
        except av.FFmpegError as error:
            raise VideoError(f"{path}: cannot be read ({_reason(error)})") from error
        films = [stream for stream in streams if counts[stream.index] > 1] or streams
        defaults = [stream for stream in films if stream.disposition & DEFAULT]
        chosen = (defaults or films)[0]
        if len(films) > 1:
            why = "marked as default" if defaults else "the first"
            notes.append(
                f"holds {len(films)} video streams; stream {chosen.index} is used, "
                f"{why}"
            )
    else:
        (chosen,) = streams
    codec = chosen.codec_context
    if codec is None:
        raise VideoError(f"{path}: its codec is not known")
    if codec.width * codec.height > MAX_PIXELS:
        raise VideoError(
            f"{path}: announces frames of {codec.width}x{codec.height}, "
            f"more than {MAX_PIXELS} pixels"
        )
    # for frames that are larger than declared in the header
    codec.options = {"max_pixels": str(MAX_PIXELS)}
    return chosen, notes


def _is_hidden(packet: av.Packet, stream: av.VideoStream) -> bool:
    """Whether a VP8 packet is an alternate reference frame, which is never shown."""
    return stream.codec_context.name == "vp8" and not bytes(packet)[0] >> 4 & 1


def _is_cut_short(path: Path) -> bool:
    """Whether a top-level box of an MP4 ends after the file does."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        place = 0
        while place + 8 <= size:
            file.seek(place)
            length, _ = struct.unpack(">I4s", file.read(8))
            if length == 1 and place + 16 <= size:
                (length,) = struct.unpack(">Q", file.read(8))
            if length == 0:  # to the end of the file
                return False
            if length < 8:
                return False
            place += length
    return place > size


def _decode_wanted(path: Path, times: Sequence[int]) -> Iterator[av.VideoFrame]:
    """Decode the frames with these ascending timestamps; stop at the first missing one.

    For every other packet, the decoder is told to skip non-reference frames.
    """
    wanted, num_decoded = frozenset(times), 0
    with open_video(path) as container:
        stream, _ = choose_stream(path, container)
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

    `choose_stream` gives its video.

    Raises:
        VideoError: the file is missing or is not a video.
    """
    _check_file(Path(path))
    try:
        # `file:` prevents FFmpeg from parsing a protocol in a name such as `concat:a|b`
        return av.open(
            f"file:{path}",
            options={"protocol_whitelist": "file", "format_whitelist": DEMUXERS},
            metadata_errors="replace",
        )
    except (av.FFmpegError, ValueError) as error:
        if remedy := _other_container(path):
            raise VideoError(f"{path}: {remedy}") from error
        raise VideoError(f"{path}: not a readable video ({_reason(error)})") from error


def _other_container(path: Path) -> str:
    """What to do with a container that is not opened, told by its first bytes."""
    try:
        with open(path, "rb") as file:
            head = file.read(1024)
    except OSError:
        return ""
    # MPEG-TS: a sync byte every 188 bytes, or every 192 after a timestamp of 4
    for start, step in ((0, 188), (4, 192)):
        if len(head) > start + 2 * step and set(head[start::step]) == {0x47}:
            name = "MPEG-TS"
            break
    else:
        starts = {
            b"\x00\x00\x01\xba": "MPEG-PS",
            b"FLV": "Flash Video",
            b"\x30\x26\xb2\x75": "Windows Media",
            b"GIF8": "GIF",
        }
        name = next(
            (name for start, name in starts.items() if head.startswith(start)), ""
        )
    if not name:
        return ""
    # MP4 takes the codecs of these two as they are
    copy = "-c copy " if name.startswith("MPEG") else ""
    # ./ before a name that begins with a dash, which would be an option
    source, target = (
        shlex.quote(f"./{each}" if each.startswith("-") else each)
        for each in (str(path), f"{Path(path).stem}_converted.mp4")
    )
    return (
        f"is {name}, which is not opened; convert it: ffmpeg -i {source} {copy}{target}"
    )


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


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
