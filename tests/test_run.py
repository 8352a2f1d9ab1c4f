import csv
import os
import time
from pathlib import Path

import pytest

from preprocessing.cli import UserError
from preprocessing.dfdc import Trouble, Video
from preprocessing.files import whole_file, whole_folder
from preprocessing.run import map_videos, run_step, step_parser


def square(number: int) -> int:
    if number == 3:
        raise ValueError("three is bad")
    return number * number


def kill_itself(number: int) -> None:
    if number == 1:
        os._exit(9)
    time.sleep(0.2)


def write_name(video: Video) -> list[str]:
    if video.name == "bad":
        raise UserError(f"{video.path}: cannot be read")
    video.path.write_text(video.name)
    return ["a part is missing"] if video.name == "partly" else []


@pytest.mark.parametrize("workers", [1, 2])
def test_results_equal_a_plain_loop(workers):
    got = {item: (result, str(error)) for item, result, error in map_videos(square, range(8), workers, "test")}
    assert got == {n: (None, "three is bad") if n == 3 else (n * n, "None") for n in range(8)}


def test_a_killed_worker_ends_the_run_with_a_message():
    with pytest.raises(UserError, match="fewer --workers"):
        list(map_videos(kill_itself, range(4), 2, "test"))


def step(tmp_path, names, *options):
    videos = [Video(tmp_path / name, 0, False, name) for name in names]
    parsed = step_parser("").parse_args(["--root-dir", str(tmp_path), "--workers", "1", *options])
    return run_step(write_name, videos, lambda video: video.path, parsed, "a step", [Trouble("x.mp4", "left out")])


def rows(tmp_path):
    with open(tmp_path / "failures.csv", newline="") as file:
        return [tuple(row) for row in csv.reader(file)]


def test_failures_are_listed_counted_and_tried_again(tmp_path):
    names = ["good", "partly", "bad"]
    assert step(tmp_path, names) == 1
    bad = ("a step", str(tmp_path / "bad"), "cannot be read")
    left_out, partly = ("a step", "x.mp4", "left out"), ("a step", str(tmp_path / "partly"), "a part is missing")
    assert rows(tmp_path) == [("step", "file", "reason"), left_out, partly, bad]
    (tmp_path / "good").write_text("not made again")
    assert step(tmp_path, names, "--max-failures", "0.4") == 0
    assert (tmp_path / "good").read_text() == "not made again"
    assert rows(tmp_path) == [("step", "file", "reason"), left_out, bad]


def test_what_is_half_written_never_takes_the_name(tmp_path):
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "folder") as folder:
        (folder / "half").touch()
        raise RuntimeError
    with pytest.raises(RuntimeError), whole_file(tmp_path / "file") as file:
        Path(file).write_text("half")
        raise RuntimeError
    assert not (tmp_path / "folder").exists() and not (tmp_path / "file").exists()
    with whole_folder(tmp_path / "folder") as folder:
        (folder / "whole").touch()
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["whole"]
