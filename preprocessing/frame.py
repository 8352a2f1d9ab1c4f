"""From a decoded frame to the RGB pixels that a player shows.

`frame_to_rgb` applies the display matrix (rotation, mirroring) and tone-maps HDR to
SDR. SDR frames without a matrix are converted by FFmpeg's swscale alone and are
bit-identical to OpenCV's.

Method: display matrix: ISO/IEC 14496-12, 6.2.2; PQ: SMPTE ST 2084; HLG: ITU-R BT.2100;
       primaries: ITU-R BT.2087; reference white of 203 cd/m²: ITU-R BT.2408; the
       shoulder: Reinhard et al. (2002), extended form with a white point.
"""

import struct
from functools import cache
from typing import Any

import av
import cv2
import numpy as np

# ISO/IEC 23091-2 (H.273) codes of transfer characteristics and primaries
TRC_PQ, TRC_HLG = 16, 18
PRIMARIES_BT2020 = 9

REFERENCE_WHITE = 203.0  # cd/m² of an HDR picture that SDR shows as white (BT.2408)
PEAK = 1000.0  # cd/m²: HLG's nominal peak, and the white point of the shoulder
KNEE = 0.75  # of the SDR range below which the tone curve is the identity
HLG_GAMMA = 1.2  # system gamma of a 1000 cd/m² display (BT.2100)

# linear BT.2020 RGB to linear BT.709 RGB (BT.2087, inverse of its matrix M2)
BT2020_TO_BT709 = np.array(
    [
        [1.6605, -0.5876, -0.0728],
        [-0.1246, 1.1329, -0.0083],
        [-0.0182, -0.1006, 1.1187],
    ],
    np.float32,
)
LEVELS = 2**16


def frame_to_rgb(frame: av.VideoFrame) -> np.ndarray:
    """A decoded frame as a player shows it: (H, W, 3) uint8 RGB, upright, SDR."""
    transfer = getattr(frame, "color_trc", None)
    if transfer in (TRC_PQ, TRC_HLG):
        rgb = _tone_map(to_array(frame, "rgb48le"), int(transfer))
    else:
        rgb = to_array(frame)
    matrix = display_matrix(frame)
    return rgb if matrix is None else apply_display_matrix(rgb, matrix)


def to_array(frame: av.VideoFrame, pixel_format: str = "rgb24") -> np.ndarray:
    """The pixels of a frame as they are stored, (H, W, 3), converted by swscale."""
    # By default PyAV starts threads anew for each frame: slower than the conversion
    # of a small one.
    return frame.to_ndarray(format=pixel_format, threads=1)


def is_hdr(transfer: int | None) -> bool:
    """Whether a stream's transfer characteristics are PQ or HLG."""
    return transfer in (TRC_PQ, TRC_HLG)


def display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int] | None:
    """The entries (a, b, c, d) of the container's display matrix in 16.16 fixed point.

    A pixel at (x, y) is shown at (a x + c y, b x + d y). None where there is no matrix.
    """
    side_data: Any = frame.side_data.get("DISPLAYMATRIX")
    if side_data is None:
        return None
    a, b, _, c, d = struct.unpack("=5i", bytes(side_data)[:20])
    return a, b, c, d


def apply_display_matrix(
    image: np.ndarray, matrix: tuple[int, int, int, int]
) -> np.ndarray:
    """Rotate by the nearest multiple of 90 degrees, and mirror, an image (H, W, 3)."""
    a, b, c, d = matrix
    if abs(b) > abs(a):  # x and y are exchanged: then x' = c y and y' = b x
        image, a, d = image.swapaxes(0, 1), c, b
    image = image[:, ::-1] if a < 0 else image
    image = image[::-1] if d < 0 else image
    return np.ascontiguousarray(image)


def _tone_map(rgb: np.ndarray, transfer: int) -> np.ndarray:
    """PQ or HLG in BT.2020, (H, W, 3) uint16 RGB, to BT.709, (H, W, 3) uint8 RGB.

    Signal to linear light relative to reference white, BT.2020 to BT.709 primaries, the
    tone curve on the largest channel (which keeps the hue), BT.709's transfer function.
    """
    linear = _to_linear(transfer)[rgb]
    if transfer == TRC_HLG:
        luminance = linear @ np.array([0.2627, 0.6780, 0.0593], np.float32)
        gain = luminance ** (HLG_GAMMA - 1) * (PEAK / REFERENCE_WHITE)
        linear = linear * gain[..., None]
    linear = cv2.transform(linear, BT2020_TO_BT709)
    largest = np.maximum(linear.max(axis=2), 1e-6)
    linear = np.clip(linear * (tone_curve(largest) / largest)[..., None], 0, 1)
    signal = np.where(linear < 0.018, 4.5 * linear, 1.099 * linear**0.45 - 0.099)
    return np.rint(signal * 255).astype(np.uint8)


def tone_curve(light: np.ndarray) -> np.ndarray:
    """Linear light, 1 = reference white, to 0..1.

    The identity up to `KNEE`; above it a Reinhard shoulder that reaches 1 at `PEAK`.
    """
    white = (PEAK / REFERENCE_WHITE - KNEE) / (1 - KNEE)
    excess = np.maximum(light - KNEE, 0) / (1 - KNEE)
    shoulder = excess * (1 + excess / white**2) / (1 + excess)
    return np.where(light <= KNEE, light, KNEE + (1 - KNEE) * np.minimum(shoulder, 1))


@cache
def _to_linear(transfer: int) -> np.ndarray:
    """Linear light of each 16-bit signal level, (65536,) float32.

    PQ: relative to reference white. HLG: scene light in 0..1.
    """
    signal = np.arange(LEVELS, dtype=np.float64) / (LEVELS - 1)
    if transfer == TRC_PQ:
        m1, m2 = 2610 / 16384, 2523 / 4096 * 128
        c1, c2, c3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
        power = signal ** (1 / m2)
        light = (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)
        return (light * 10_000 / REFERENCE_WHITE).astype(np.float32)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    light = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    return light.astype(np.float32)
