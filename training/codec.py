"""Strong compression of single crops: JPEG, H.264, or fewer pixels.

What DFDC's organisers and the internet do to videos. The winner's augmentation has JPEG
of quality 60 to 100 only.
"""

import io
from collections.abc import Callable

import av
import cv2
import numpy as np

from preprocessing.video import X264_OPTIONS

JPEG_QUALITIES = (40, 100)
SCALES = (0.25, 1.0)
RATE_FACTORS = (17, 39)  # x264's CRF
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
    small = tuple(max(1, round(side * scale)) for side in (width, height))
    shrunk = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
    return cv2.resize(shrunk, (width, height), interpolation=cv2.INTER_LINEAR)


def h264(image: np.ndarray, rate_factor: int) -> np.ndarray:
    """An image after H.264: a video of this one frame, YUV 4:2:0.

    Images with a side below `MIN_SIDE` are returned as they are.
    """
    height, width = image.shape[:2]
    if min(height, width) < MIN_SIDE:
        return image
    # 4:2:0 needs even sides
    even = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), "edge")
    picture = av.VideoFrame.from_ndarray(even.astype(np.uint8), format="rgb24")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        options = X264_OPTIONS | {"crf": str(rate_factor), "preset": "ultrafast"}
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.height, stream.width = even.shape[:2]
        stream.pix_fmt = "yuv420p"
        container.mux(stream.encode(picture))
        container.mux(stream.encode())
    buffer.seek(0)
    with av.open(buffer, "r") as video:
        frame = next(video.decode(video=0)).to_ndarray(format="rgb24")
    return np.ascontiguousarray(frame[:height, :width])
