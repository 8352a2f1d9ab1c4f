"""Damaged, unusual and hostile videos for the fault tests, made by script.

`CASES` lists them: how each is made, and the expected result of prediction. `mutate`
damages a file at random.
"""

import os
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
import skimage.data

from tests.media import random_frames, rotate, write_sound, write_video

ANSWERED = "answered"  # a label
PARTLY = "partly"  # a label and a reason
REFUSED = "refused"  # the label 0.5 and a reason
NO_FACE = r"no face found in \d+ frames?"
NOT_A_VIDEO = "not a readable video"


@dataclass(frozen=True)
class Case:
    """A file and the expected result of prediction.

    Attributes:
        kind: of fault, for the printed table.
        name: of the file.
        make: writes the file to a path.
        answer: ANSWERED, PARTLY or REFUSED.
        reason: regular expression that the reason matches.
    """

    kind: str
    name: str
    make: Callable[[Path], object]
    answer: str = ANSWERED
    reason: str = ""

    def fits(self, label: float, faces: int, reason: str) -> bool:
        """Whether the result of prediction is the expected one."""
        expects_reason = self.answer != ANSWERED
        if bool(reason) != expects_reason or not re.search(self.reason, reason):
            return False
        if self.answer == REFUSED:
            return label == 0.5 and not faces
        return 0 < label < 1 and label != 0.5 and faces > 0


def portrait(height: int, width: int) -> np.ndarray:
    """Head and shoulders of skimage's astronaut, (height, width, 3) uint8 RGB."""
    head = skimage.data.astronaut()[:300, 70:370]
    return cv2.resize(head, (width, height), interpolation=cv2.INTER_AREA)


def people(count: int, tile: int = 160) -> np.ndarray:
    """An image of `count` portraits in rows of four."""
    rows = -(-count // 4)
    image = np.zeros((rows * tile, 4 * tile, 3), np.uint8)
    for number in range(count):
        y, x = (tile * index for index in divmod(number, 4))
        image[y : y + tile, x : x + tile] = portrait(tile, tile)
    return image


def film(image: np.ndarray, frames: int = 6) -> list[np.ndarray]:
    """Frames of one image that becomes slightly brighter."""
    return [cv2.add(image, np.full_like(image, number)) for number in range(frames)]


def good(path: Path, frames: int = 6, **options) -> Path:
    """Write a valid video of one face."""
    return write_video(path, film(portrait(200, 200), frames), **options)


def cut(share: float, front: bool) -> Callable[[Path], None]:
    """A truncated video.

    Args:
        share: of the file that is kept.
        front: write the index (the moov atom) at the start of the file, not at the end.
    """

    def make(path: Path) -> None:
        good(path, 24, container={"movflags": "faststart"} if front else {})
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    return make


def patched(old: bytes, new: bytes, **options) -> Callable[[Path], None]:
    """A video in whose bytes `old` is replaced by `new`."""

    def make(path: Path) -> None:
        data = good(path, **options).read_bytes()
        assert old in data
        path.write_bytes(data.replace(old, new))

    return make


def zero_durations(path: Path) -> None:
    """All frames have the same time: the table of durations (stts) says 0."""
    data = bytearray(good(path, bf="0").read_bytes())
    entry = data.index(b"stts") + 12
    data[entry + 4 : entry + 8] = bytes(4)
    path.write_bytes(data)


def latin_tags(path: Path) -> None:
    """A title that is encoded in Latin-1, not in UTF-8."""
    with (
        av.open(str(good(path))) as source,
        av.open(str(path.with_suffix(".tmp")), "w", format="mp4") as target,
    ):
        target.metadata["title"] = "Vid@o"
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    data = path.with_suffix(".tmp").read_bytes()
    assert b"Vid@o" in data
    path.with_suffix(".tmp").unlink()
    path.write_bytes(data.replace(b"Vid@o", "Vidéo".encode("latin-1")))


def many_samples(count: int) -> Callable[[Path], None]:
    """An MP4 that announces `count` frames of equal size, all in one chunk."""

    def make(path: Path) -> None:
        data = bytearray(good(path).read_bytes())
        sizes, chunks, times = map(data.index, (b"stsz", b"stsc", b"stts"))
        data[sizes + 8 : sizes + 16] = struct.pack(">II", 100, count)
        data[chunks + 16 : chunks + 20] = struct.pack(">I", count)
        data[times + 12 : times + 16] = struct.pack(">I", count)
        path.write_bytes(data)

    return make


def announced_size(side: int) -> Callable[[Path], None]:
    """An AVI whose header announces side x side pixels.

    Its codec, FFV1, does not store the frame size itself.
    """

    def make(path: Path) -> None:
        write_video(path, film(portrait(200, 200)), "ffv1")
        data = bytearray(path.read_bytes())
        header = data.index(b"strf") + 8
        data[header + 4 : header + 12] = struct.pack("<II", side, side)
        path.write_bytes(data)

    return make


def larger_than_announced(path: Path) -> None:
    """An AVI that announces 64 x 64 pixels; its small frames decode to 9000 x 9000."""
    large = [np.zeros((9000, 9000, 3), np.uint8)]
    data = bytearray(write_video(path, large, "mjpeg", pixels="yuvj420p").read_bytes())
    header = data.index(b"strf") + 8
    data[header + 4 : header + 12] = struct.pack("<II", 64, 64)
    path.write_bytes(data)


def ten_hours(path: Path) -> None:
    """36,000 equal frames, one a second."""
    fast = {"preset": "ultrafast", "g": "36000", "tune": "zerolatency"}
    write_video(path, [portrait(48, 48)] * 36000, rate=1, **fast)


def text(content: str) -> Callable[[Path], object]:
    """A text file."""
    return lambda path: path.write_text(content)


def noise(path: Path) -> None:
    """Frames of random pixels."""
    rng = np.random.default_rng(0)
    write_video(path, list(rng.integers(0, 256, (6, 120, 160, 3), np.uint8)))


def rotated(
    quarters: int, matrix: tuple[int, int, int, int]
) -> Callable[[Path], object]:
    """A video that is stored rotated, with a display matrix in the container."""
    image = np.ascontiguousarray(np.rot90(portrait(200, 240), quarters))
    return lambda path: rotate(write_video(path, film(image)), matrix)


def coded(
    codec: str, image: np.ndarray | None = None, **options
) -> Callable[[Path], object]:
    """A video in a given codec, of a portrait if no image is given."""
    image = portrait(200, 200) if image is None else image
    return lambda path: write_video(path, film(image), codec, **options)


PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{}\n#EXT-X-ENDLIST\n"
SOME = r"only \d+ of \d+ frames could be decoded"

# fmt: off
CASES = [
    Case("damaged", "zero bytes.mp4", text(""), REFUSED, "the file is empty"),
    Case("damaged", "text.mp4", text("no video"), REFUSED, NOT_A_VIDEO),
    *(Case("damaged", f"cut at {share}.mp4", cut(share / 100, False), REFUSED, ".")
      for share in (1, 10, 50, 90, 98)),
    *(Case("damaged", f"index in front, cut at {share}.mp4", cut(share / 100, True),
           REFUSED, ".")
      for share in (1, 10)),
    Case("damaged", "index in front, cut at 50.mp4", cut(0.5, True), REFUSED,
         r"it holds \d+ of 24 frames; none of \d+ frames could be decoded"),
    *(Case("damaged", f"index in front, cut at {share}.mp4", cut(share / 100, True),
           PARTLY, SOME)
      for share in (90, 99)),
    Case("damaged", "moov missing.mp4", patched(b"moov", b"gone"), REFUSED,
         NOT_A_VIDEO),
    Case("damaged", "header only.mp4",
         lambda path: path.write_bytes(good(path).read_bytes()[:32]), REFUSED,
         NOT_A_VIDEO),
    Case("damaged", "audio only.mp4", write_sound, REFUSED, "holds no video stream"),
    Case("no file", "a folder.mp4", Path.mkdir, REFUSED, "a folder, not a video"),
    Case("no file", "dangling link.mp4", lambda path: path.symlink_to("nowhere"),
         REFUSED, "a link to a file that is not there"),
    Case("no file", "link to itself.mp4", lambda path: path.symlink_to(path), REFUSED,
         "cannot be opened"),
    Case("no file", "pipe.mp4", os.mkfifo, REFUSED, "no regular file, not a video"),
    Case("odd", "one frame.mp4", lambda path: good(path, 1)),
    Case("odd", "no frame count.mkv", good),
    Case("odd", "fragments.mp4",
         lambda path: good(path, container={"movflags": "frag_keyframe+empty_moov"})),
    Case("odd", "one frame a second.mp4", lambda path: good(path, rate=1)),
    Case("odd", "variable frame rate.mp4",
         lambda path: good(path, times=[0, 1, 5, 6, 30, 31])),
    Case("odd", "no duration.mp4", zero_durations),
    Case("odd", "tags that are no UTF-8.mp4", latin_tags),
    *(Case("odd", f"{width}x{height}.mov",
           coded("png", portrait(height, width), pixels="rgb24"), REFUSED, NO_FACE)
      for width, height in ((1, 1), (17, 3), (33, 1081))),
    Case("odd", "201x203.webm", coded("libvpx-vp9", portrait(203, 201))),
    Case("odd", "4K portrait.mp4",
         lambda path: write_video(path, film(portrait(3840, 2160), 2),
                                  preset="ultrafast")),
    Case("odd", "turned by 90.mp4", rotated(1, (0, 1, -1, 0))),
    Case("odd", "turned by 180.mp4", rotated(2, (-1, 0, 0, -1))),
    Case("odd", "turned by 270.mp4", rotated(3, (0, -1, 1, 0))),
    Case("odd", "10 bit.mp4", coded("libx265", pixels="yuv420p10le")),
    Case("odd", "10 bit AV1.mkv", coded("libsvtav1", pixels="yuv420p10le")),
    Case("odd", "full range.mp4", coded("libx264", pixels="yuvj420p")),
    Case("odd", "BT.709.mp4",
         coded("libx264", colorspace="bt709", color_primaries="bt709",
               color_trc="bt709")),
    Case("odd", "BT.601.mp4",
         coded("libx264", colorspace="smpte170m", color_primaries="smpte170m")),
    *(Case("format", f"{codec} in {container}.{container}", coded(codec))
      for codec, containers in (
          ("libx264", ("mp4", "mkv", "mov", "avi")),
          ("libx265", ("mp4", "mkv", "mov")),
          ("libvpx-vp9", ("mp4", "webm", "mkv")),
          ("libsvtav1", ("mp4", "webm", "mkv")),
          ("mpeg4", ("mp4", "mkv", "mov", "avi")),
          ("mjpeg", ("mov", "mkv", "avi", "mp4")))
      for container in containers),
    Case("picture", "no face.mp4", lambda path: write_video(path, random_frames(6)),
         REFUSED, NO_FACE),
    Case("picture", "black.mp4",
         lambda path: write_video(path, [np.zeros((96, 128, 3), np.uint8)] * 6),
         REFUSED, NO_FACE),
    Case("picture", "noise.mp4", noise, REFUSED, NO_FACE),
    Case("picture", "face at the border.mp4",
         coded("libx264", np.ascontiguousarray(portrait(300, 300)[:, 120:]))),
    Case("picture", "face over all.mp4",
         coded("libx264",
               cv2.resize(skimage.data.astronaut()[50:210, 160:288], (256, 320)))),
    Case("picture", "eleven faces.mp4", coded("libx264", people(11))),
    *(Case("name", name, good) for name in (
        "with spaces.mp4", "it's \"quoted\".mp4", "two\nlines.mp4",
        "käse 映画 🎬.mp4", "-leading dash.mp4", "--help.mp4", "concat:a|b.mp4",
        "http:x.mp4", "comma,semicolon;.mp4", "%d.mp4", "$(touch x).mp4",
        "CAPITALS.MP4", os.fsdecode(b"not UTF-8 \xff.mp4"))),
    Case("hostile", "hls.mp4", text(PLAYLIST.format("good.mp4")), REFUSED,
         NOT_A_VIDEO),
    Case("hostile", "hls over http.mp4",
         text(PLAYLIST.format("http://127.0.0.1:9/a.ts")), REFUSED, NOT_A_VIDEO),
    Case("hostile", "concat.mp4", text("ffconcat version 1.0\nfile 'good.mp4'\n"),
         REFUSED, NOT_A_VIDEO),
    Case("hostile", "concat of all.mp4",
         text("ffconcat version 1.0\nfile '/etc/passwd'\n"), REFUSED, NOT_A_VIDEO),
    Case("hostile", "sdp.mp4",
         text("v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\n"
              "m=video 9 RTP/AVP 96\n"), REFUSED, NOT_A_VIDEO),
    Case("hostile", "dash.mp4",
         text('<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>'),
         REFUSED, NOT_A_VIDEO),
    Case("hostile", "announces 100000x100000.avi", announced_size(100_000), REFUSED,
         "none of 6 frames"),
    Case("hostile", "announces 12000x12000.avi", announced_size(12_000), REFUSED,
         "announces frames of 12000x12000"),
    Case("hostile", "larger than announced.avi", larger_than_announced, REFUSED,
         "announces frames of 9000x9000"),
    Case("hostile", "announces ten hours.mp4", many_samples(900_000), REFUSED,
         r"none of \d frames"),
    Case("hostile", "announces four billion frames.mp4", many_samples(2**32 - 1),
         REFUSED, "the video holds no frames"),
    Case("hostile", "ten hours.mp4", ten_hours, REFUSED, NO_FACE),
]
# fmt: on


def write_corpus(folder: Path) -> None:
    """Write all cases, and `good.mp4`."""
    folder.mkdir(exist_ok=True)
    good(folder / "good.mp4")
    for case in CASES:
        case.make(folder / case.name)


def write_seeds(folder: Path) -> list[Path]:
    """Write two small clips to damage: H.264 with B frames in MP4, VP9 in WebM."""
    folder.mkdir(exist_ok=True)
    frames = film(people(2, 96)[:, :192], 16)
    h264 = write_video(folder / "seed.mp4", frames, bf="2", g="8")
    vp9 = write_video(
        folder / "seed.webm", frames, "libvpx-vp9", g="8", deadline="realtime"
    )
    return [h264, vp9]


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Damage a file: flip bits, copy, delete or overwrite blocks, or both."""
    damaged = bytearray(data)
    if rng.random() < 0.7:
        for offset in rng.integers(len(damaged), size=int(2 ** rng.uniform(0, 7))):
            damaged[offset] ^= 1 << int(rng.integers(8))
    if rng.random() < 0.5:
        for _ in range(int(rng.integers(1, 4))):
            start, target = rng.integers(len(damaged), size=2)
            block = damaged[start : start + int(2 ** rng.uniform(0, 12))]
            mutation = rng.integers(4)
            if mutation == 0:  # insert a copy
                damaged[target:target] = block
            elif mutation == 1:  # overwrite with a copy
                damaged[target : target + len(block)] = block
            elif mutation == 2 and len(block) < len(damaged):
                del damaged[start : start + len(block)]
            else:
                damaged[start : start + len(block)] = rng.bytes(len(block))
    return bytes(damaged)
