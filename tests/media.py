"""Helpers that write small synthetic videos and data sets for the tests."""

import json
import struct
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from demo.make_dataset import Clip, make_clip
from preprocessing.video import X264_OPTIONS

REAL, FAKE, LONE = "aaaaaaaaaa", "bbbbbbbbbb", "cccccccccc"


def random_frames(
    count: int, height: int = 48, width: int = 64, seed: int = 0
) -> list[np.ndarray]:
    """Smooth moving colour patterns (H, W, 3) uint8 RGB; all frames differ."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    phase = rng.uniform(0, 6, 3)

    def frame(t: int) -> np.ndarray:
        angles = [(x + 2 * y) / 9 + phase[c] + t * (c + 1) / 5 for c in range(3)]
        return (127 + 120 * np.sin(np.stack(angles, -1))).astype(np.uint8)

    return [frame(t) for t in range(count)]


def write_video(
    path: Path,
    frames: list[np.ndarray],
    codec: str = "libx264",
    rate: int = 25,
    pixels: str = "",
    times: Sequence[int] = (),
    container: dict[str, str] | None = None,
    aspect: Fraction | None = None,
    **options: str,
) -> Path:
    """Encode frames.

    Args:
        frames: (H, W, 3) uint8 RGB.
        pixels: FFmpeg's pixel format.
        times: presentation time of each frame, in frames; 0, 1, 2, … if not given.
        container: FFmpeg's options of the container.
        aspect: of a pixel, width to height.
        options: FFmpeg's options of the encoder.
    """
    if codec == "libx264":
        options = X264_OPTIONS | options
    with av.open(str(path), "w", options=container or {}) as target:
        stream = target.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels or ("yuvj420p" if codec == "mjpeg" else "yuv420p")
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts = times[number] if times else number
            picture.time_base = Fraction(1, rate)
            target.mux(stream.encode(picture))
        target.mux(stream.encode())
    return path


def write_streams(path: Path, films: Sequence[list[np.ndarray]], **chosen) -> Path:
    """Encode several films as streams of one file.

    `dispositions`: of each stream, an `av.stream.Disposition` or None; `audio`: whether
    there is sound too; `codecs`: of each stream, libx264 if not given.
    """
    codecs = chosen.get("codecs") or ["libx264"] * len(films)
    with av.open(str(path), "w") as target:
        streams = []
        for codec, frames in zip(codecs, films):
            options = X264_OPTIONS if codec == "libx264" else {}
            stream = target.add_stream(codec, rate=25, options=options)
            stream.height, stream.width = frames[0].shape[:2]
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            streams.append(stream)
        for stream, each in zip(streams, chosen.get("dispositions", [])):
            if each is not None:
                stream.disposition = each
        if chosen.get("audio"):
            sound = target.add_stream("aac", rate=16000, layout="mono")
            frame = av.AudioFrame.from_ndarray(
                np.zeros((1, 4096), np.float32), "fltp", "mono"
            )
            frame.sample_rate = 16000
            target.mux(sound.encode(frame))
            target.mux(sound.encode())
        for stream, frames in zip(streams, films):
            for number, image in enumerate(frames):
                picture = av.VideoFrame.from_ndarray(image, format="rgb24")
                picture.pts, picture.time_base = number, Fraction(1, 25)
                target.mux(stream.encode(picture))
            target.mux(stream.encode())
    return path


def remux(source: Path, target: Path, shift: int = 0, keep=None, **options) -> Path:
    """Copy a video's packets, `shift` frames earlier, into another container.

    Frames with a negative time are hidden by an edit list in an MP4. `keep`: a function
    of a packet's number that says whether it is copied.
    """
    container = {"avoid_negative_ts": "disabled"} | options.pop("container", {})
    with (
        av.open(str(source)) as reader,
        av.open(str(target), "w", options=container, **options) as writer,
    ):
        stream = writer.add_stream_from_template(reader.streams.video[0])
        source_stream = reader.streams.video[0]
        step = round(1 / (source_stream.average_rate * source_stream.time_base))
        for number, packet in enumerate(reader.demux(video=0)):
            if packet.size and (keep is None or keep(number)):
                packet.pts -= shift * step
                packet.dts -= shift * step
                packet.stream = stream
                writer.mux(packet)
    return target


def rotate(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Replace the identity display matrix in the track header of an MP4.

    Args:
        matrix: the entries (a, b, c, d) of the rotation.
    """
    data = path.read_bytes()
    # 16.16 fixed point; the last entry is 2.30
    identity = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    a, b, c, d = (v << 16 for v in matrix)
    rotation = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    start = data.rindex(identity)  # the first one is in the movie header
    path.write_bytes(data[:start] + rotation + data[start + len(identity) :])
    return path


def write_sound(path: Path) -> Path:
    """Write a file with an audio stream only."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        silence = np.zeros((1, 4096), np.float32)
        frame = av.AudioFrame.from_ndarray(silence, "fltp", "mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_dfdc(root: Path, frames: int = 24) -> Path:
    """Write a DFDC folder of three videos.

    Part 0 holds a real video and its fake; part 3 a real video of two people, without a
    fake.
    """
    real = {"label": "REAL", "split": "train"}
    fake = {"label": "FAKE", "split": "train", "original": f"{REAL}.mp4"}
    metadata = {
        0: {f"{REAL}.mp4": real, f"{FAKE}.mp4": fake},
        3: {f"{LONE}.mp4": real},
    }
    for part, entries in metadata.items():
        folder = root / f"dfdc_train_part_{part}"
        folder.mkdir(parents=True)
        (folder / "metadata.json").write_text(json.dumps(entries))
    first, third = root / "dfdc_train_part_0", root / "dfdc_train_part_3"
    original = Clip(first / f"{REAL}.mp4", (1,), 100, frames)
    make_clip(original)
    swap = replace(
        original,
        path=first / f"{FAKE}.mp4",
        donors=(2,),
        technique="swap",
        difficulty=0.2,
        original=original.path.name,
    )
    make_clip(swap)
    make_clip(Clip(third / f"{LONE}.mp4", (3, 4), 300, frames))
    return root
