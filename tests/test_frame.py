"""Display matrix and tone mapping, beside slow obvious versions."""

import av
import numpy as np
import pytest

from preprocessing.frame import (
    REFERENCE_WHITE,
    TRC_HLG,
    TRC_PQ,
    _to_linear,
    apply_display_matrix,
    frame_to_rgb,
    tone_curve,
)
from preprocessing.video import probe, read_frames
from tests.media import random_frames, rotate, write_video

MATRICES = [
    (a, b, c, d)
    for a, b, c, d in [
        *((1, 0, 0, 1), (-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1)),
        *((0, 1, 1, 0), (0, 1, -1, 0), (0, -1, 1, 0), (0, -1, -1, 0)),
    ]
]


@pytest.mark.parametrize("matrix", MATRICES)
def test_each_pixel_goes_where_the_matrix_sends_it(matrix):
    image = np.random.default_rng(0).integers(0, 256, (3, 5, 3), np.uint8)
    a, b, c, d = matrix
    places = {
        (a * x + c * y, b * x + d * y): image[y, x] for y in range(3) for x in range(5)
    }
    left, top = (min(place[axis] for place in places) for axis in (0, 1))
    shown = apply_display_matrix(image, tuple(65536 * value for value in matrix))
    assert shown.shape[:2] == ((3, 5) if a else (5, 3))
    for (x, y), pixel in places.items():
        np.testing.assert_array_equal(shown[y - top, x - left], pixel)


@pytest.mark.parametrize("matrix", MATRICES[1:])
def test_a_mirrored_video_comes_as_a_player_shows_it(tmp_path, matrix):
    plain = write_video(tmp_path / "plain.mp4", random_frames(3))
    turned = rotate(write_video(tmp_path / "turned.mp4", random_frames(3)), matrix)
    scaled = tuple(65536 * value for value in matrix)
    for (_, frame), (_, other) in zip(
        read_frames(plain, range(3)), read_frames(turned, range(3)), strict=True
    ):
        np.testing.assert_array_equal(apply_display_matrix(frame, scaled), other)


def test_pq_and_hlg_by_the_standards_own_numbers():
    """BT.2408: PQ 58 % is 203 cd/m2, ST 2084: full signal is 10,000; BT.2100: HLG's 75 %
    is 203 of 1000 cd/m2 on the nominal display, so 0.265 of scene light."""
    pq, hlg = _to_linear(TRC_PQ), _to_linear(TRC_HLG)
    assert pq[round(0.5807 * 65535)] == pytest.approx(1, rel=2e-3)
    assert pq[-1] * REFERENCE_WHITE == pytest.approx(10_000, rel=1e-4)
    assert pq[0] == 0 and hlg[0] == 0
    assert hlg[round(0.75 * 65535)] == pytest.approx(0.265, abs=1e-3)
    assert hlg[-1] == pytest.approx(1, abs=1e-4)


def test_the_tone_curve_is_the_identity_then_a_shoulder():
    light = np.linspace(0, 20, 2001)
    curve = tone_curve(light)
    np.testing.assert_allclose(curve[light <= 0.75], light[light <= 0.75])
    assert (np.diff(curve) >= 0).all() and curve.max() == 1
    assert curve[light < 4.9].max() < 1  # highlights up to the peak stay apart


@pytest.mark.parametrize("transfer", [TRC_PQ, TRC_HLG])
def test_an_hdr_film_is_shown_as_its_sdr_version(tmp_path, transfer):
    """Encode a picture as HDR by the inverse formulas, in BT.2020's YCbCr by hand."""
    sdr = random_frames(1, 64, 96)[0][:, :, [0, 0, 0]]  # grey: no change of primaries
    signal = sdr[..., 0] / 255
    light = np.where(
        signal < 0.081, signal / 4.5, ((signal + 0.099) / 1.099) ** (1 / 0.45)
    )
    light = np.minimum(light, 0.7)  # below the shoulder
    expected = np.where(light < 0.018, 4.5 * light, 1.099 * light**0.45 - 0.099)
    if transfer == TRC_PQ:
        power = (light * REFERENCE_WHITE / 10_000) ** (2610 / 16384)
        coded = ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    else:
        scene = (light * REFERENCE_WHITE / 1000) ** (1 / 1.2)
        coded = np.where(
            scene <= 1 / 12,
            np.sqrt(3 * scene),
            0.17883277 * np.log(12 * scene - 0.28466892 + 1e-12) + 0.55991073,
        )
    frame = av.VideoFrame(96, 64, "yuv420p10le")
    luma = np.rint(64 + 876 * coded).astype(np.uint16)
    for plane, values in zip(frame.planes, (luma, None, None)):
        rows = np.full((plane.height, plane.line_size // 2), 512, np.uint16)
        if values is not None:
            rows[:, : values.shape[1]] = values
        plane.update(rows.tobytes())
    frame.color_range, frame.colorspace = 1, 9
    frame.color_trc, frame.color_primaries = transfer, 9
    shown = frame_to_rgb(frame).astype(float)
    assert np.abs(shown - 255 * expected[..., None]).mean() < 1.5
    assert np.abs(shown - 255 * expected[..., None]).max() < 6


def test_hdr_is_said(tmp_path):
    frames = random_frames(6, 96, 128)
    params = "colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc"
    path = write_video(
        tmp_path / "a.mp4",
        frames,
        "libx265",
        pixels="yuv420p10le",
        **{"x265-params": params},
    )
    assert probe(path).notes == ("HDR, tone-mapped to SDR",)
    assert probe(write_video(tmp_path / "b.mp4", frames)).notes == ()
