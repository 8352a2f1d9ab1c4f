"""Helpers that write small synthetic videos and data sets for the tests."""

import json
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from demo.make_dataset import Clip, make_clip

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
    **options: str,
) -> Path:
    """Encode frames.

    Args:
        frames: (H, W, 3) uint8 RGB.
        pixels: FFmpeg's pixel format.
        times: presentation time of each frame, in frames; 0, 1, 2, … if not given.
        container: FFmpeg's options of the container.
        options: FFmpeg's options of the encoder.
    """
    with av.open(str(path), "w", options=container or {}) as target:
        stream = target.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels or ("yuvj420p" if codec == "mjpeg" else "yuv420p")
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts = times[number] if times else number
            picture.time_base = Fraction(1, rate)
            target.mux(stream.encode(picture))
        target.mux(stream.encode())
    return path


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
    make_clip(Clip(first / f"{REAL}.mp4", (1,), 100, frames))
    make_clip(Clip(first / f"{FAKE}.mp4", (1,), 100, frames, (2,), 0.2, f"{REAL}.mp4"))
    make_clip(Clip(third / f"{LONE}.mp4", (3, 4), 300, frames))
    return root
