"""The crop table against the csv module, its transfer to processes, bad input."""

import csv
import os
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch.multiprocessing  # noqa: F401  (pickles tensors as shared memory)

from preprocessing import crop_table as table
from preprocessing.crop_table import COLUMNS, read_crop_table
from preprocessing.dataset import Video
from preprocessing.step import run_step, step_parser
from runtime.cli import UserError

NAMES = ["plain", "mit Leer zeichen", 'quo"te', "a,b", "ünï", "\udce9t\udce9", "-dash"]
TEXT = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}


def write(root, count):
    """Write a folds.csv of `count` rows with unusual names, and some blank lines."""
    rng = np.random.default_rng(0)
    with open(root / "folds.csv", "w", **TEXT) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for number in range(count):
            name = f"{NAMES[number % 7]}{number // 30}"
            crop, frame = f"{number % 30}0_0.png", 10 * (number % 30)
            label, fold = number % 2, rng.integers(16)
            writer.writerow([name, crop, label, f"o{name}", frame, fold])
            if number % 400 == 7:
                file.write("\n")


def test_every_row_is_that_of_the_csv_module(tmp_path):
    write(tmp_path, 3 * table.CHUNK_ROWS + 17)
    crops = read_crop_table(tmp_path)
    with open(tmp_path / "folds.csv", **TEXT) as file:
        expected = list(csv.DictReader(file))
    assert len(crops) == len(expected) == 3 * table.CHUNK_ROWS + 17
    for row, values in enumerate(expected):
        for column in ("video", "file", "original"):
            assert crops.name(column, row) == values[column]
        for column in ("label", "frame", "fold"):
            assert int(crops[column][row]) == int(values[column])
    some = crops.select(crops["fold"] == 3)
    wanted = [values["video"] for values in expected if values["fold"] == "3"]
    assert [some.name("video", row) for row in range(len(some))] == wanted


def test_blank_lines_are_no_rows(tmp_path):
    """More blank lines than one chunk of rows."""
    (tmp_path / "folds.csv").write_text(
        ",".join(COLUMNS) + "\n" * (2 * table.CHUNK_ROWS) + "a,0_0.png,1,a,0,0\n"
    )
    assert len(read_crop_table(tmp_path)) == 1


@pytest.mark.parametrize(
    "bad, words",
    [
        ("a,0_0.png,x,a,0,0", "invalid literal"),
        ("a,0_0.png,1,a,0", "5 values for 6 columns"),
        ("a,0_0.png,1,a,0,99999", "99999"),
    ],
)
def test_a_bad_line_far_down_is_named(tmp_path, bad, words):
    lines = [",".join(COLUMNS), *["a,0_0.png,1,a,0,0"] * 2000]
    lines[1234] = bad
    (tmp_path / "folds.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=f"folds.csv: line 1235: .*{words}"):
        read_crop_table(tmp_path)


def test_another_process_gets_a_handle_not_a_copy(tmp_path):
    write(tmp_path, 20_000)
    crops = read_crop_table(tmp_path)
    many = crops.select(np.tile(np.arange(len(crops)), 10))
    assert (crops.rows.nbytes, many.rows.nbytes) == (400_000, 4_000_000)
    # a pickle holds the names and a handle of the rows
    sizes = [len(ForkingPickler.dumps(each)) for each in (crops, many)]
    assert abs(sizes[0] - sizes[1]) < 200


def test_a_step_looks_at_its_output_folder_once(tmp_path, monkeypatch, capsys):
    """Independent of the number of videos, done or not."""
    listed, real = [], os.listdir
    monkeypatch.setattr(
        os, "listdir", lambda path=".": listed.append(str(path)) or real(path)
    )
    options = step_parser("").parse_args(
        ["--root-dir", str(tmp_path), "--workers", "0"]
    )
    for count in (10, 40):
        videos = [
            Video(tmp_path / "in" / f"{number}", f"{number}", False, f"{number}")
            for number in range(count)
        ]
        (tmp_path / "out").mkdir(exist_ok=True)
        for repeat in range(2):
            listed.clear()
            done = run_step(
                lambda video: (tmp_path / "out" / video.name).touch(),
                videos,
                lambda video: tmp_path / "out" / video.name,
                options,
                "a step",
            )
            assert done == 0 and listed == [str(tmp_path / "out")]
    assert "0 videos done, 40 were there" in capsys.readouterr().out
