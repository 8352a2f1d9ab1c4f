"""Strong compression of crops: JPEG, H.264, or fewer pixels; of clips: all of it.

What DFDC's organisers and the internet do to videos. The winner's augmentation has JPEG
of quality 60 to 100 only.
"""

import io
from collections.abc import Callable

import av
import cv2
import numpy as np

from preprocessing.frame import to_array
from preprocessing.video import X264_OPTIONS

JPEG_QUALITIES = (40, 100)
SCALES = (0.25, 1.0)
RATE_FACTORS = (17, 39)  # x264's CRF
FRAME_RATES = (15, 29)  # of a clip that is encoded again, frames a second
MIN_SIDE = 16  # pixels


def compress(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Apply one of the three, as likely each, with a random strength.

    Args:
        image: (H, W, 3) uint8 RGB.
    """
    methods: tuple[Callable[[], np.ndarray], ...] = (
        lambda: jpeg(
            image, int(rng.integers(JPEG_QUALITIES[0], JPEG_QUALITIES[1] + 1))
        ),
        lambda: fewer_pixels(image, rng.uniform(*SCALES)),
        lambda: h264(image, int(rng.integers(RATE_FACTORS[0], RATE_FACTORS[1] + 1))),
    )
    return methods[rng.integers(len(methods))]()


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """An image (H, W, 3) uint8 RGB after JPEG of this quality, 0 to 100."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", bgr, (cv2.IMWRITE_JPEG_QUALITY, quality))
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB), np.uint8)


def fewer_pixels(image: np.ndarray, scale: float) -> np.ndarray:
    """Scale an image down by averaging, and up again linearly."""
    height, width = image.shape[:2]
    shrunk = _shrink(image, scale)
    return cv2.resize(shrunk, (width, height), interpolation=cv2.INTER_LINEAR)


def _shrink(image: np.ndarray, scale: float) -> np.ndarray:
    height, width = image.shape[:2]
    small = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, small, interpolation=cv2.INTER_AREA)


def h264(image: np.ndarray, rate_factor: int) -> np.ndarray:
    """An image after H.264: a video of this one frame, as `encode_again`."""
    return encode_again(image[None], rate_factor)[0]


def encode_clip(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The frames of a clip (T, H, W, 3) uint8 RGB with fewer pixels, after H.264.

    Method: NtechLab's (third place) augmentation of its sequence network.
    """
    scale = rng.uniform(*SCALES)
    rate_factor = int(rng.integers(RATE_FACTORS[0], RATE_FACTORS[1] + 1))
    small = np.stack([_shrink(frame, scale) for frame in frames])
    size = frames.shape[2], frames.shape[1]
    return np.stack(
        [
            cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR)
            for frame in encode_again(small, rate_factor)
        ]
    )


def encode_again(frames: np.ndarray, rate_factor: int) -> np.ndarray:
    """Frames (T, H, W, 3) uint8 RGB after H.264, YUV 4:2:0.

    Frames with a side below `MIN_SIDE` are returned as they are.
    """
    height, width = frames.shape[1:3]
    if min(height, width) < MIN_SIDE:
        return frames
    # 4:2:0 needs even sides
    borders = ((0, 0), (0, height % 2), (0, width % 2), (0, 0))
    even = np.pad(frames, borders, "edge").astype(np.uint8)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        options = X264_OPTIONS | {"crf": str(rate_factor), "preset": "ultrafast"}
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.height, stream.width = even.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in even:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    buffer.seek(0)
    with av.open(buffer, "r") as video:
        decoded = [to_array(picture) for picture in video.decode(video=0)]
    return np.ascontiguousarray(np.stack(decoded)[:, :height, :width])
