"""Small made videos and data sets for the tests. Not a test itself."""

import json
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
    """Smooth moving colour frames (H, W, 3) uint8 RGB, no two alike."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    phase = rng.uniform(0, 6, 3)
    return [
        np.stack(
            [
                127 + 120 * np.sin((x + 2 * y) / 9 + phase[c] + t * (c + 1) / 5)
                for c in range(3)
            ],
            -1,
        ).astype(np.uint8)
        for t in range(count)
    ]


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
    """Encode frames (H, W, 3) uint8 RGB. `times`: of each frame, in frames; `container`, `options`: FFmpeg's of these."""
    with av.open(str(path), "w", options=container or {}) as target:
        stream = target.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels or ("yuvj420p" if codec == "mjpeg" else "yuv420p")
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = (
                times[number] if times else number,
                Fraction(1, rate),
            )
            target.mux(stream.encode(picture))
        target.mux(stream.encode())
    return path


def turn(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Write a display matrix (a, b, c, d) into the track header of an MP4 that has none."""
    data = path.read_bytes()
    # identity in 16.16 fixed point, and 2.30 for the last number
    identity = b"".join(
        int(v).to_bytes(4, "big") for v in (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    )
    place = data.rindex(identity)  # the first one is the movie header's
    a, b, c, d = (v * 65536 for v in matrix)
    turned = b"".join(
        v.to_bytes(4, "big", signed=True) for v in (a, b, 0, c, d, 0, 0, 0, 1 << 30)
    )
    path.write_bytes(data[:place] + turned + data[place + len(identity) :])
    return path


def write_sound(path: Path) -> Path:
    """A file with a sound stream only."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 4096), np.float32), "fltp", "mono"
        )
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_dfdc(root: Path, frames: int = 24) -> Path:
    """A DFDC folder: part 0 with a real video and its fake, part 3 with a real video of two people without a fake."""
    metadata = {
        0: {
            f"{REAL}.mp4": {"label": "REAL", "split": "train"},
            f"{FAKE}.mp4": {
                "label": "FAKE",
                "split": "train",
                "original": f"{REAL}.mp4",
            },
        },
        3: {f"{LONE}.mp4": {"label": "REAL", "split": "train"}},
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
