"""Reading videos: pixels equal to OpenCV's, frame selection, rotation, bad files."""

from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from av.stream import Disposition

from preprocessing import video
from preprocessing.video import VideoError, probe, read_frames
from tests.media import (
    random_frames,
    remux,
    rotate,
    write_sound,
    write_streams,
    write_video,
)


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


def test_a_video_is_encoded_to_the_same_bytes_each_time(tmp_path):
    """x264's AVX-512 code does not: 26 of 200 of these differed on an AMD EPYC."""
    written = {
        write_video(tmp_path / "a.mp4", random_frames(3)).read_bytes()
        for _ in range(30)
    }
    assert len(written) == 1


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


def all_frames_are_opencvs(path, count):
    """Number, pixels and selection are those of decoding everything by OpenCV."""
    expected = opencv_frames(path)
    info = probe(path)
    assert info.frames == len(expected) == count
    selected = [0, count // 2, count - 1]
    frames = dict(read_frames(path, selected, info))
    assert list(frames) == selected
    for number, frame in frames.items():
        np.testing.assert_array_equal(frame, expected[number])


@pytest.mark.parametrize("bf", ["0", "2"])
def test_frames_that_an_edit_list_hides_are_not_counted(tmp_path, bf):
    whole = write_video(tmp_path / "whole.mp4", random_frames(60), bf=bf, g="10")
    cut = remux(whole, tmp_path / "cut.mp4", shift=35)
    with av.open(str(cut)) as container:
        assert container.streams.video[0].frames > 25  # what the header says
    all_frames_are_opencvs(cut, 25)


@pytest.mark.parametrize("flags", ["frag_keyframe", "frag_keyframe+empty_moov"])
def test_frames_of_all_fragments_are_counted(tmp_path, flags):
    frames, container = random_frames(60), {"movflags": flags}
    path = write_video(tmp_path / "a.mp4", frames, g="10", container=container)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames < 60
    all_frames_are_opencvs(path, 60)


@pytest.mark.parametrize("announced", [1, 5, 400])
def test_an_avi_header_that_lies_is_not_believed(tmp_path, announced):
    path = write_video(tmp_path / "a.avi", random_frames(60), "mpeg4")
    data = bytearray(path.read_bytes())
    place = data.index(b"strh") + 8 + 32  # dwLength
    assert data[place : place + 4] == (60).to_bytes(4, "little")
    data[place : place + 4] = announced.to_bytes(4, "little")
    path.write_bytes(data)
    all_frames_are_opencvs(path, 60)


def test_alternate_reference_frames_of_vp8_are_not_counted(tmp_path):
    path = tmp_path / "a.webm"
    options = {"auto-alt-ref": "1", "lag-in-frames": "16", "b": "100k"}
    write_video(path, random_frames(60, 96, 128), "libvpx", **options)
    assert probe(path).frames == sum(1 for _ in read_frames(path, range(99))) == 60


def test_a_file_that_is_cut_short_says_so(tmp_path):
    container = {"movflags": "faststart"}
    path = write_video(tmp_path / "a.mp4", random_frames(60), container=container)
    path.write_bytes(path.read_bytes()[:-3000])
    info = probe(path)
    (note,) = info.notes
    assert note == f"the file is cut short: it holds {info.frames} of 60 frames"
    assert 5 < info.frames < 60
    whole = write_video(tmp_path / "b.mp4", random_frames(60))
    assert probe(remux(whole, tmp_path / "c.mp4", shift=35)).notes == ()


def test_times_are_the_frames_own(tmp_path):
    """Two frames a second apart after ten at 25 a second; a start that is not zero."""
    times = [*range(10), 35, 60]
    path = write_video(tmp_path / "a.mkv", random_frames(12), times=times, bf="2")
    info = probe(path)
    assert [info.time(number) for number in (0, 9, 10, 11)] == pytest.approx(
        [0, 0.36, 1.4, 2.4], abs=2e-3
    )
    late = write_video(tmp_path / "b.mkv", random_frames(5), times=[50, 51, 52, 53, 60])
    info = probe(late)
    assert info.start == pytest.approx(2, abs=0.1)
    assert info.time(4) == pytest.approx(0.4, abs=2e-3)


DEFAULT, NOT_DEFAULT = Disposition.default, Disposition(0)
COVER = Disposition.attached_pic
FILM, OTHER, PICTURE = random_frames(8), random_frames(12, seed=1), random_frames(1)


@pytest.mark.parametrize(
    "name, films, codecs, dispositions, chosen, note",
    [
        ("a.mp4", [PICTURE, FILM], "mjpeg libx264", [], 1, ""),
        ("b.mp4", [FILM, PICTURE], "libx264 mjpeg", [], 0, ""),
        ("c.mp4", [PICTURE, FILM], "mjpeg libx264", [COVER, DEFAULT], 1, ""),
        ("d.mkv", [OTHER, FILM], None, [NOT_DEFAULT, DEFAULT], 1, "marked as default"),
        ("e.mkv", [FILM, OTHER], None, [DEFAULT, NOT_DEFAULT], 0, "marked as default"),
        ("f.mkv", [FILM, OTHER], None, [NOT_DEFAULT, NOT_DEFAULT], 0, "the first"),
    ],
)
def test_which_stream_is_the_video(
    tmp_path, name, films, codecs, dispositions, chosen, note
):
    codecs = codecs.split() if codecs else None
    path = tmp_path / name
    write_streams(path, films, codecs=codecs, dispositions=dispositions)
    info = probe(path)
    assert info.frames == len(films[chosen])
    frames = [frame for _, frame in read_frames(path, range(99))]
    assert len(frames) == len(films[chosen])
    assert np.abs(frames[0].astype(float) - films[chosen][0]).mean() < 12
    expected = [f"holds 2 video streams; stream {chosen} is used, {note}"]
    assert list(info.notes) == (expected if note else [])


def test_sound_with_a_cover_is_no_video(tmp_path):
    path = tmp_path / "a.mp4"
    write_streams(path, [PICTURE], codecs=["mjpeg"], dispositions=[COVER], audio=True)
    with pytest.raises(VideoError, match="holds no video stream"):
        probe(path)


@pytest.mark.parametrize(
    "start, name",
    [
        (b"\x00\x00\x01\xba" + bytes(40), "MPEG-PS"),
        (b"FLV\x01\x05" + bytes(40), "Flash Video"),
        (b"GIF89a" + bytes(40), "GIF"),
    ],
)
def test_other_containers_are_named(tmp_path, start, name):
    (tmp_path / "it's.mp4").write_bytes(start)
    with pytest.raises(VideoError, match=f"is {name}, which is not opened; convert it"):
        probe(tmp_path / "it's.mp4")


@pytest.mark.parametrize("container", ["mpegts", "m2ts"])
def test_a_transport_stream_is_named(tmp_path, container):
    whole = write_video(tmp_path / "whole.mp4", random_frames(30))
    options = {"mpegts_m2ts_mode": "1"} if container == "m2ts" else {}
    path = tmp_path / "a.mp4"
    remux(whole, path, format="mpegts", container=options)
    with pytest.raises(VideoError, match="is MPEG-TS.*ffmpeg -i .*a.mp4 -c copy"):
        probe(path)


def test_pixels_that_are_not_square_are_said(tmp_path):
    path = write_video(tmp_path / "a.mkv", random_frames(3), aspect=Fraction(4, 3))
    (note,) = probe(path).notes
    assert note.startswith("pixels are not square (4:3)")


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
def test_a_file_of_two_films_that_is_cut_anywhere_is_no_traceback(tmp_path, name):
    """Without a packet before the cut the container cannot be rewound."""
    path = write_streams(tmp_path / name, [FILM, random_frames(40)])
    data = path.read_bytes()
    for length in range(100, len(data), len(data) // 60):
        path.write_bytes(data[:length])
        try:
            probe(path)
        except VideoError:
            pass


def test_lost_packets_do_not_change_the_numbers_of_others(tmp_path):
    """Frames 0 to 19 cannot be decoded: the first group's key frame is lost."""
    whole = write_video(tmp_path / "a.mp4", random_frames(60), bf="0", g="20")
    cut = remux(whole, tmp_path / "b.mkv", keep=lambda number: number >= 5)
    info = probe(cut)
    expected = dict(read_frames(whole, range(60)))
    found = dict(read_frames(cut, range(55), info))
    assert len(found) == 40 and min(found) == 15
    for number, frame in found.items():
        np.testing.assert_array_equal(frame, expected[number + 5])
        assert info.time(number) == pytest.approx(number / 25, abs=2e-3)
