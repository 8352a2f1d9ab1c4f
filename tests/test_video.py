"""Reading videos: pixels equal to OpenCV's, frame selection, rotation, bad files."""

import cv2
import numpy as np
import pytest

from preprocessing import video
from preprocessing.video import VideoError, probe, read_frames
from tests.media import random_frames, rotate, write_sound, write_video


def opencv_frames(path):
    """The reference: all frames, decoded by OpenCV, (H, W, 3) uint8 RGB."""
    capture, frames = cv2.VideoCapture(str(path)), []
    while (got := capture.read())[0]:
        frames.append(cv2.cvtColor(got[1], cv2.COLOR_BGR2RGB))
    return frames


@pytest.mark.parametrize(
    "name, codec",
    [
        ("a.mp4", "libx264"),
        ("a.mkv", "libx264"),
        ("a.avi", "mpeg4"),
        ("a.webm", "libvpx-vp9"),
        ("a.mov", "mjpeg"),
    ],
)
def test_pixels_equal_opencv(tmp_path, name, codec):
    path = write_video(tmp_path / name, random_frames(12), codec)
    expected = opencv_frames(path)
    frames = dict(read_frames(path, range(10**9)))
    assert list(frames) == list(range(12)) and len(expected) == 12
    for number, frame in frames.items():
        np.testing.assert_array_equal(frame, expected[number])


def test_chosen_frames_are_those_of_the_whole_video(tmp_path):
    path = write_video(tmp_path / "b-frames.mp4", random_frames(30), bf="3")
    everything = dict(read_frames(path, range(30)))
    chosen = dict(read_frames(path, [0, 7, 8, 29, 45]))
    assert list(chosen) == [0, 7, 8, 29]
    for number, frame in chosen.items():
        np.testing.assert_array_equal(frame, everything[number])
    assert list(dict(read_frames(path, range(0, 10**9, 10)))) == [0, 10, 20]
    assert list(read_frames(path, [])) == []


@pytest.mark.parametrize(
    "codec, threads", [("libx264", 1), ("libx264", 2), ("libx265", 1), ("libx265", 2)]
)
def test_frames_that_nothing_needs_are_left_out(tmp_path, codec, threads, monkeypatch):
    path = write_video(tmp_path / "a.mp4", random_frames(60, 96, 128), codec, bf="3")
    wanted = [0, 7, 8, 21, 40, 59]
    everything = opencv_frames(path)
    monkeypatch.setattr(cv2, "getNumThreads", lambda: threads)
    monkeypatch.setattr(video, "decode", None)  # the fallback is not used
    frames = dict(read_frames(path, wanted))
    assert list(frames) == wanted
    for number, frame in frames.items():
        np.testing.assert_array_equal(frame, everything[number])


def test_a_damaged_video_gives_what_is_left(tmp_path):
    """400 random bytes in the middle of the data.

    No crash, all decoded frames have the right size, and the first frames are intact.
    """
    path = tmp_path / "whole.mp4"
    write_video(path, random_frames(60, 96, 128), bf="3", g="20")
    everything, data = dict(read_frames(path, range(60))), bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    middle = start + (len(data) - start) // 2
    data[middle : middle + 400] = np.random.default_rng(0).bytes(400)
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(data)
    wanted = list(range(0, 60, 3))
    frames = dict(read_frames(damaged, wanted))
    assert set(frames) <= set(wanted) and len(frames) >= 10
    assert all(frame.shape == (96, 128, 3) for frame in frames.values())
    for number in (0, 3, 6, 9):
        np.testing.assert_array_equal(frames[number], everything[number])


def test_frames_are_counted_where_the_header_is_silent(tmp_path):
    assert probe(write_video(tmp_path / "a.mkv", random_frames(17))).frames == 17
    info = probe(write_video(tmp_path / "a.mp4", random_frames(17), rate=10))
    assert (info.frames, info.fps) == (17, 10.0)


@pytest.mark.parametrize("matrix", [(0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)])
def test_rotated_video_comes_upright_as_in_opencv(tmp_path, matrix):
    path = rotate(write_video(tmp_path / "a.mp4", random_frames(3)), matrix)
    expected = opencv_frames(path)
    frames = [frame for _, frame in read_frames(path, range(3))]
    assert frames[0].shape == expected[0].shape
    np.testing.assert_array_equal(np.stack(frames), np.stack(expected))


def test_what_is_no_video_is_named(tmp_path):
    (tmp_path / "text.mp4").write_text("not a video at all")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    write_sound(tmp_path / "sound.mp4")
    for name in ("text.mp4", "empty.mp4", "folder.mp4", "sound.mp4", "none.mp4"):
        with pytest.raises(VideoError, match=name):
            probe(tmp_path / name)
        with pytest.raises(VideoError, match=name):
            list(read_frames(tmp_path / name, [0]))
