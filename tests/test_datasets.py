"""Data sets other than DFDC, in made trees with the names of the real ones."""

import csv
import importlib
import json
import shutil
import zipfile

import numpy as np
import pytest

from preprocessing.__main__ import STEPS
from preprocessing.crops import write_image
from preprocessing.dataset import connected_groups, draw_splits
from preprocessing.datasets import list_readers, read_dataset
from runtime.cli import UserError
from tests import corpus
from training.dataset import train_val_split

ORIGINALS, FAKES = "original_sequences", "manipulated_sequences"

# By layout: its videos, and of each name, label, original and technique as expected.
FACEFORENSICS = {
    f"{ORIGINALS}/youtube/c23/videos/000.mp4": ("000", 0, "000", ""),
    f"{ORIGINALS}/youtube/c23/videos/003.mp4": ("003", 0, "003", ""),
    f"{ORIGINALS}/actors/c23/videos/01__kitchen_pan.mp4": (
        "01__kitchen_pan",
        0,
        "01__kitchen_pan",
        "",
    ),
    f"{FAKES}/Deepfakes/c23/videos/000_003.mp4": (
        "Deepfakes_000_003",
        1,
        "000",
        "Deepfakes",
    ),
    f"{FAKES}/Face2Face/c23/videos/000_003.mp4": (
        "Face2Face_000_003",
        1,
        "000",
        "Face2Face",
    ),
    # its original is not there: searched itself
    f"{FAKES}/FaceSwap/c23/videos/005_006.mp4": (
        "FaceSwap_005_006",
        1,
        "FaceSwap_005_006",
        "FaceSwap",
    ),
    f"{FAKES}/DeepFakeDetection/c23/videos/01_02__kitchen_pan__ABC.mp4": (
        "DeepFakeDetection_01_02__kitchen_pan__ABC",
        1,
        "01__kitchen_pan",
        "DeepFakeDetection",
    ),
}
CELEBDF = {
    "Celeb-real/id0_0000.mp4": ("id0_0000", 0, "id0_0000", ""),
    "Celeb-real/id1_0001.mp4": ("id1_0001", 0, "id1_0001", ""),
    "YouTube-real/00170.mp4": ("00170", 0, "00170", ""),
    "Celeb-synthesis/id0_id1_0000.mp4": ("id0_id1_0000", 1, "id0_0000", ""),
    "Celeb-synthesis/id9_id1_0000.mp4": ("id9_id1_0000", 1, "id9_id1_0000", ""),
}
CELEBDF_PLUS = {
    "Celeb-real/videos/id0_0000.mp4": ("id0_0000", 0, "id0_0000", ""),
    "Celeb-synthesis/FaceSwap/Ghost/videos/id0_id1_0000.mp4": (
        "Ghost_id0_id1_0000",
        1,
        "id0_0000",
        "Ghost",
    ),
    "Celeb-synthesis/TalkingFace/SadTalker/id0_id1_0000.mp4": (
        "SadTalker_id0_id1_0000",
        1,
        "id0_0000",
        "SadTalker",
    ),
}
PREVIEW = {
    "original_videos/12/12_A.mp4": (
        "original_videos_12_12_A",
        0,
        "original_videos_12_12_A",
        "",
    ),
    "method_A/12/12_34/12_A.mp4": (
        "method_A_12_12_34_12_A",
        1,
        "original_videos_12_12_A",
        "method_A",
    ),
    "method_B/12/12_34/12_A.mp4": (
        "method_B_12_12_34_12_A",
        1,
        "method_B_12_12_34_12_A",
        "method_B",
    ),
}
DEEPERFORENSICS = {
    f"{ORIGINALS}/youtube/c23/videos/000.mp4": ("000", 0, "000", ""),
    "manipulated_videos/end_to_end/000_M101.mp4": (
        "end_to_end_000_M101",
        1,
        "000",
        "end_to_end",
    ),
    "manipulated_videos/reenact_postprocess/000_M101.mp4": (
        "reenact_postprocess_000_M101",
        1,
        "000",
        "reenact_postprocess",
    ),
}
DEEPERFORENSICS_ALONE = {
    "source_videos/M101/neutral/front.mp4": (
        "M101_neutral_front",
        0,
        "M101_neutral_front",
        "",
    ),
    "manipulated_videos/end_to_end/000_M101.mp4": (
        "end_to_end_000_M101",
        1,
        "end_to_end_000_M101",
        "end_to_end",
    ),
}
TABLE = {
    "a/one.mp4": ("a_one", 0, "a_one", ""),
    "a/two.mov": ("second", 1, "a_one", "mine"),
    "three.mp4": ("three", 1, "three", ""),
}
LISTS = {
    "faceforensics": {
        "splits/train.json": json.dumps([["000", "003"]]),
        "splits/test.json": json.dumps([["005", "006"]]),
    },
    "celebdf": {
        "List_of_testing_videos.txt": "1 YouTube-real/00170.mp4\n"
        "0 Celeb-synthesis/id9_id1_0000.mp4\n"
        "0 Celeb-synthesis\\FaceSwap\\Ghost\\id0_id1_0000.mp4\n"
    },
    "dfdc_preview": {
        "dataset.json": json.dumps(
            {
                "original_videos/12/12_A.mp4": {"label": "real", "set": "train"},
                "method_A/12/12_34/12_A.mp4": {
                    "label": "fake",
                    "set": "train",
                    "original": "original_videos/12/12_A.mp4",
                },
                "method_B/12/12_34/12_A.mp4": {"label": "fake", "set": "test"},
            }
        )
    },
    "deeperforensics": {"lists/splits/val.txt": "000_M101.mp4\n"},
    "list.csv": {
        "list.csv": "path,label,original,technique,video,split\n"
        "a/one.mp4,real,,,,train\na/two.mov,FAKE,a/one.mp4,mine,second,train\n"
        "three.mp4,1,,,,test\n"
    },
}
SPLITS = {
    "faceforensics": {
        **dict.fromkeys(("000", "003", "Deepfakes_000_003"), "train"),
        **dict.fromkeys(("FaceSwap_005_006", "01__kitchen_pan"), "test"),
    },
    "celebdf": {"00170": "test", "id9_id1_0000": "test", "id0_id1_0000": "train"},
    "dfdc_preview": {
        "method_A_12_12_34_12_A": "train",
        "method_B_12_12_34_12_A": "test",
    },
    "deeperforensics": {
        **dict.fromkeys(("000", "end_to_end_000_M101"), "val"),
        "M101_neutral_front": "test",  # drawn: the only actor
    },
    "list.csv": {"a_one": "train", "second": "train", "three": "test"},
}
LAYOUTS = [
    ("faceforensics", FACEFORENSICS),
    ("celebdf", CELEBDF),
    ("celebdf", CELEBDF_PLUS),
    ("dfdc_preview", PREVIEW),
    ("deeperforensics", DEEPERFORENSICS),
    ("deeperforensics", DEEPERFORENSICS_ALONE),
    ("list.csv", TABLE),
]


@pytest.fixture(scope="module")
def film(make_once):
    """A video of one face, six frames of 200 x 200 pixels."""
    return make_once("film", lambda folder: corpus.good(folder / "film.mp4"))


@pytest.fixture
def write_tree(film, tmp_path):
    """Write a data set of copies of one video, and its lists."""

    def write(paths, name=""):
        root = tmp_path / "data"
        for path in paths:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(film / "film.mp4", root / path)
        for path, text in LISTS.get(name, {}).items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        return root

    return write


def run(number, root, *options):
    main = importlib.import_module(f"preprocessing.{STEPS[number - 1]}").main
    return main(["--root-dir", str(root), "--workers", "0", *map(str, options)])


def read_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_every_reader_has_a_tree_here():
    assert {*list_readers(), "list.csv"} == {name for name, _ in LAYOUTS} | {"dfdc"}


@pytest.mark.parametrize(
    "name, videos",
    LAYOUTS,
    ids=["ff", "celeb", "celeb++", "preview", "deeper", "deeper alone", "csv"],
)
def test_a_layout_through_steps_1_2_and_5(write_tree, tmp_path, name, videos):
    """Names, labels, originals, techniques and splits; outputs elsewhere."""
    root, out = write_tree(videos, name), tmp_path / "out"
    before = sorted(root.rglob("*"))
    options = ["--output-dir", out, "--dataset", name if "." in name else "auto"]
    dataset = read_dataset(root, options[-1])
    found = {
        video.path.relative_to(root).as_posix(): (
            *(video.name, int(video.is_fake), video.original, video.technique),
        )
        for video in dataset.videos
    }
    assert found == videos
    splits = {video.name: video.split for video in dataset.videos}
    for video, split in SPLITS[name].items():
        assert splits.get(video, split) == split
    for number in (1, 2, 5):
        assert run(number, root, *options) == 0
    assert sorted(root.rglob("*")) == before
    assert {path.stem for path in (out / "boxes").iterdir()} == {
        video for video, _, original, _ in videos.values() if original == video
    }
    rows = read_rows(out / "folds.csv")
    # one face in frame 0 of each
    assert sorted(row["video"] for row in rows) == sorted(v[0] for v in videos.values())
    by_video = {row["video"]: row for row in rows}
    for video, label, original, technique in videos.values():
        row = by_video[video]
        assert (row["label"], row["original"]) == (str(label), original)
        assert row.get("technique", "") == technique
        assert row["split"] == splits[video]
        assert (row["fold"] == "-1") == (splits[video] == "test")
        assert (out / "crops" / video / row["file"]).exists()
    listed = {
        row["filename"]: row["label"]
        for path in out.glob("videos*.csv")
        for row in read_rows(path)
    }
    assert listed == {path: str(video[1]) for path, video in videos.items()}


def test_crops_that_exist_are_listed_where_they_are(tmp_path, portrait):
    """A CSV of pictures and a JSON of DeepfakeBench, by hand."""
    root, out = tmp_path / "data", tmp_path / "out"
    for number, name in enumerate(
        ("FF/real/000/000.png", "FF/real/000/014.png", "FF/fake/000_003/007.jpg")
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_image((root / name).with_suffix(".png"), portrait[:99, : 99 + number])
        (root / name).with_suffix(".png").rename(root / name)
    (root / "crops.csv").write_text(
        "path,label,technique,video,split\nFF/real/000/000.png,0,,r,val\n"
        "FF/real/000/014.png,0,,r,val\nFF/fake/000_003/007.jpg,1,swap,f,val\n"
    )
    video = {
        "label": "FF-real",
        "frames": ["FF\\real\\000\\014.png", "FF/real/000/000.png"],
    }
    fake = {"label": "FF-DF", "frames": ["FF/fake/000_003/007.jpg", "FF/none.png"]}
    absent = {"label": "FF-DF", "frames": ["FF/none/000.png"]}
    content = {
        "FF-real": {"val": {"c23": {"000": video}}},
        "FF-DF": {"val": {"c23": {"000_003": fake, "001_870": absent}}},
    }
    (root / "FF.json").write_text(json.dumps({"FaceForensics++": content}))
    expected = {
        "crops.csv": {
            ("r", "000.png", "0", "0", "", "val"),
            ("r", "014.png", "0", "14", "", "val"),
            ("f", "007.jpg", "1", "7", "swap", "val"),
        },
        "FF.json": {
            ("FF-real_000", "000.png", "0", "0", "", "val"),
            ("FF-real_000", "014.png", "0", "14", "", "val"),
            ("FF-DF_000_003", "007.jpg", "1", "7", "FF-DF", "val"),
        },
    }
    columns = ("video", "file", "label", "frame", "technique", "split")
    for name, rows in expected.items():
        assert run(5, root, "--dataset", name, "--output-dir", out) == 0
        found = read_rows(out / "folds.csv")
        assert {tuple(row[column] for column in columns) for row in found} == rows
        assert all((out / row["folder"] / row["file"]).exists() for row in found)
    (skipped,) = read_dataset(root, "FF.json").skipped
    assert "names 1 of 3 videos whose frames are not there" in skipped.reason


def test_a_bench_file_whose_videos_are_in_several_splits(tmp_path, portrait):
    """As Celeb-DF's: all in train, the listed ones again in val and test."""

    def video(name, frames=("0.png", "7.png")):
        return {
            "label": "CelebDFv2_real",
            "frames": [f"{name}/{each}" for each in frames],
        }

    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        for frame in ("0.png", "7.png"):
            write_image(tmp_path / name / frame, portrait[:60, :60])
    both = {"label": "CelebDFv2_real", "frames": ["a/0.png", "b/7.png"]}
    content = {
        "CelebDFv2_real": {
            "train": {"a": video("a"), "b": video("b"), "both": both},
            "val": {"b": video("b"), "c": video("c")},
            "test": {"b": video("b")},
        },
        "DFDC_Fake": {"val": {"label": "DFDC_Fake", "frames": ["x.png"]}},
    }
    (tmp_path / "C.json").write_text(json.dumps({"Celeb": content}))
    dataset = read_dataset(tmp_path, "C.json")
    found = {video.name: (video.split, video.fold) for video in dataset.videos}
    assert found["CelebDFv2_real_b"] == ("test", -1)
    assert found["CelebDFv2_real_c"] == ("val", 0)
    assert found["CelebDFv2_real_a"][0] == "train" and len(found) == 3
    reasons = " ".join(item.reason for item in dataset.skipped)
    assert "2 videos in several splits, the first is CelebDFv2_real_b" in reasons
    assert "both: its pictures are in several folders" in reasons
    assert "DFDC_Fake, val, 'label': is no video" in reasons


def test_an_original_by_path_or_by_name(write_tree):
    root = write_tree(["real/1.mp4", "fake/1.MP4", "fake/2.mp4"])
    (root / "t.csv").write_text(
        "path,label,original,video\nreal/1.mp4,0,,R\nfake/1.MP4,1,real\\1.mp4,F\n"
        "fake/2.mp4,1,R,G\n"
    )
    dataset = read_dataset(root, "t.csv")
    assert [video.original for video in dataset.videos] == ["R", "R", "R"]
    assert len({video.fold for video in dataset.videos}) == 1 and not dataset.skipped


def test_without_lists_deepfakedetection_is_test(write_tree):
    """The drawn shares are those of the other videos; alone it is drawn itself."""
    youtube = [f"{ORIGINALS}/youtube/c40/videos/{n:03}.mp4" for n in range(20)]
    youtube += [f"{FAKES}/X/c40/videos/{n:03}_{n + 1:03}.mp4" for n in range(0, 20, 2)]
    actors = [name for name in FACEFORENSICS if "actors" in name or "Detection" in name]
    actors = [name.replace("c23", "c40") for name in actors]
    splits = {
        video.name: video.split
        for video in read_dataset(write_tree(youtube + actors)).videos
    }
    assert {split for name, split in splits.items() if "kitchen" in name} == {"test"}
    drawn = [split for name, split in splits.items() if "kitchen" not in name]
    assert 4 <= drawn.count("val") <= 6 and 4 <= drawn.count("test") <= 6
    pairs = {name: name.split("_")[-2:] for name in splits if name.startswith("X_")}
    assert all(splits[a] == splits[b] == splits[x] for x, (a, b) in pairs.items())


def test_celeb_df_with_folders_at_other_depths(write_tree):
    root = write_tree(
        [
            "Celeb-real/sub/id0_0000.MP4",
            "Celeb-synthesis/Ghost/videos/id0_id1_0000.mp4",
            "Celeb-synthesis/id0_id2_0000.mp4",
        ]
    )
    (root / "Celeb-synthesis" / "Ghost" / ".DS_Store").write_text("")
    found = {(video.name, video.technique) for video in read_dataset(root).videos}
    assert found == {
        ("id0_0000", ""),
        ("Ghost_id0_id1_0000", "Ghost"),
        ("id0_id2_0000", ""),
    }


def test_a_table_is_not_overwritten(write_tree, tmp_path):
    root = write_tree(TABLE)
    text = "path,label\na/one.mp4,0\nthree.mp4,1\n"
    for name in ("videos.csv", "folds.csv", "videos_test.csv"):
        (root / name).write_text(text)
        with pytest.raises(UserError, match="would be overwritten"):
            run(5, root, "--dataset", name)
        assert (root / name).read_text() == text
    assert run(1, root, "--dataset", "videos.csv", "--output-dir", tmp_path / "o") == 0


def test_training_sees_neither_test_nor_what_the_split_leaves_out(tmp_path):
    from preprocessing.crop_table import read_crop_table

    rows = [
        f"{split}{label}{number},0_0.png,{label},{split}{label}{number},0,{fold},t,{split}"
        for split, fold in (("train", 1), ("val", 0), ("test", -1), ("", -1))
        for label in (0, 1)
        for number in range(3)
    ]
    header = "video,file,label,original,frame,fold,technique,split"
    (tmp_path / "folds.csv").write_text("\n".join([header, *rows]) + "\n")
    table = read_crop_table(tmp_path)
    training, validation = train_val_split(table, 0, 20)
    for part, split in ((training, "train"), (validation, "val")):
        assert part.counts() == {"real": 3, "t": 3}
        assert {part.name("split", row) for row in range(6)} == {split}
    # a table of another program, whose test rows have a fold
    text = (tmp_path / "folds.csv").read_text().replace(",-1,t,test", ",5,t,test")
    (tmp_path / "folds.csv").write_text(text)
    training, _ = train_val_split(read_crop_table(tmp_path), 0, 20)
    assert training.counts() == {"real": 3, "t": 3}


def test_groups_and_drawn_splits():
    """Two chains of people and twenty who are alone; whole groups share a split."""
    pairs = [("a", "b"), ("c", "b"), ("d", "e"), *((f"{n}",) for n in range(20))]
    groups = connected_groups(pairs)
    assert groups["a"] == groups["b"] == groups["c"] != groups["d"] == groups["e"]
    splits = draw_splits(groups)
    assert splits == draw_splits(dict(reversed(groups.items())))
    assert splits["a"] == splits["b"] == splits["c"] and splits["d"] == splits["e"]
    counts = {split: [*splits.values()].count(split) for split in ("val", "test")}
    assert all(
        4 <= count <= 6 for count in counts.values()
    )  # 14 % of 25, then the group
    assert draw_splits(groups, seed=1) != splits


NOTES = [
    (
        "faceforensics",
        FACEFORENSICS,
        {"splits/train.json": '[["000", "003"], ["010", "011"]]'},
        "names 2 of 4 videos that are not there, the first is 010",
    ),
    (
        "celebdf",
        CELEBDF,
        {"List_of_testing_videos.txt": "1 Celeb-synthesis/id0_id1_0000.mp4\n"},
        "all 1 videos marked 1 are in Celeb-synthesis, but 1 means REAL",
    ),
    (
        "celebdf",
        CELEBDF,
        {"List_of_testing_videos.txt": "1 YouTube-real/00170.mp4\nfake x\n"},
        "line 2: 'fake x' must be 0 or 1",
    ),
    (
        "celebdf",
        [name for name in CELEBDF if "synthesis" in name],
        {},
        "there are 2 fake videos and no real one",
    ),
    (
        "dfdc_preview",
        PREVIEW,
        {"dataset.json": '{"../a.mp4": {"label": "real"}}'},
        "'../a.mp4' is no path inside",
    ),
    (
        "dfdc_preview",
        PREVIEW,
        {"dataset.json": '{"a/a.mp4": {"label": "real", "set": "/../x"}}'},
        "has the set '/../x'; it must be train or test",
    ),
    (
        "dfdc_preview",
        PREVIEW,
        {"dataset.json": '{"a/a.mp4": {"label": "fake", "original": ["x"]}}'},
        "has the original ['x']",
    ),
    (
        "faceforensics",
        FACEFORENSICS,
        {"splits/train.json": '{"train": ["000", "003"]}'},
        "is no list of pairs",
    ),
    (
        "faceforensics",
        FACEFORENSICS,
        {"splits/train.json": '[["000.mp4", "003.mp4"]]'},
        "names none of the videos that are there, the first is '000.mp4'",
    ),
    (
        "celebdf",
        CELEBDF,
        {"List_of_testing_videos.txt": ""},
        "names none of the videos that are there",
    ),
    (
        "deeperforensics",
        DEEPERFORENSICS,
        {"lists/splits/test.txt": "no.mp4\n"},
        "names none of the videos there",
    ),
    (
        "list.csv",
        TABLE,
        {
            "list.csv": "path,label,original\na/one.mp4/x.png,0,\na/one.mp4,0,\n"
            f"{'n' * 300}.mp4,0,\nthree.mp4,1,no.mp4\n"
        },
        """a/one.mp4/x.png: there is no such file
is no path inside
its original 'no.mp4' is not in the table""",
    ),
    (
        "dfdc_preview",
        PREVIEW,
        {"dataset.json": '{"a/a.mp4": {"label": "maybe"}}'},
        "the entry 'a/a.mp4' has the label 'maybe'",
    ),
    (
        "dfdc_preview",
        PREVIEW,
        {"dataset.json": '{"original_videos/12/12_A.mp4": {"label": "real"}}'},
        "2 not used (12_A.mp4, 12_A.mp4): no entry in dataset.json",
    ),
    (
        "list.csv",
        TABLE,
        {
            "list.csv": "path,label\na/one.mp4,0\na/one.mp4,1\n../x.mp4,1\n/x.mp4,0\n"
            "no.mp4,0\nthree.mp4,2\na/two.mov,1\nlist.csv,1\n"
        },
        """a/one.mp4: is listed twice; the first row counts
'../x.mp4' is no path inside
'/x.mp4' is no path inside
no.mp4: there is no such file
three.mp4: the label '2' must be
list.csv: is neither a video""",
    ),
    (
        "list.csv",
        TABLE,
        {"list.csv": "path,label,split\na/one.mp4,0,Train\nthree.mp4,1,val\n"},
        "a/one.mp4: the split 'Train' must be train, val, test",
    ),
    (
        "list.csv",
        TABLE,
        {"list.csv": "path,label,video\na/one.mp4,0,x\na/two.mov,0,x\nthree.mp4,1,y\n"},
        "x: 2 rows have this name; one video each",
    ),
    (
        "list.csv",
        TABLE,
        {"list.csv": "path,label,video\na/one.mp4,0,x/y\nthree.mp4,1,y\n"},
        "a/one.mp4: 'x/y' cannot be the name of a video",
    ),
]


@pytest.mark.parametrize("name, videos, lists, words", NOTES)
def test_what_is_wrong_is_said_and_the_rest_is_read(
    write_tree, name, videos, lists, words
):
    root = write_tree(videos)
    for path, text in lists.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    try:
        reasons = [item.reason for item in read_dataset(root, name).skipped]
    except UserError as error:  # nothing is left
        reasons = [str(error)]
    for line in words.split("\n"):
        assert any(line in reason for reason in reasons), reasons
    assert all("\n" not in item for item in reasons) or len(reasons) == 1


@pytest.mark.parametrize(
    "paths, name, words",
    [
        ([], "auto", "no such folder"),
        (["x.mp4"], "auto", "is none of the known data sets"),
        (["x.mp4"], "dfcd", "give auto, celebdf, deeperforensics, dfdc"),
        (["x.mp4"], "none.csv", "none.csv: cannot be read"),
        (
            ["Celeb-real/a.mp4", f"{FAKES}/X/c23/videos/a.mp4"],
            "auto",
            "looks like celeb",
        ),
        (
            [f"{FAKES}/X/{each}/videos/1_2.mp4" for each in ("c23", "c40")],
            "auto",
            "holds c23 and c40; choose one, such as --dataset faceforensics/c23",
        ),
        (
            [f"{FAKES}/X/c23/videos/1_2.mp4"],
            "faceforensics/raw",
            "holds no raw, but c23",
        ),
        (["Celeb-real/a.mp4"], "celebdf/c23", "celebdf has no compressions"),
    ],
)
def test_folders_and_names_that_are_none(write_tree, paths, name, words):
    root = write_tree(paths)
    with pytest.raises(UserError, match=words):
        read_dataset(root, name)


def test_a_table_without_a_column_or_a_json_of_another_form(write_tree):
    root = write_tree(["a.mp4"])
    (root / "list.csv").write_text("file,label\na.mp4,0\n")
    with pytest.raises(UserError, match="columns path,label; it has file,label"):
        read_dataset(root, "list.csv")
    for text in ("[1]", "{", '{"a": {"b": {"c": 1}}}', '{"a": 1}'):
        (root / "list.json").write_text(text)
        with pytest.raises(UserError, match="is no JSON of DeepfakeBench"):
            read_dataset(root, "list.json")


@pytest.fixture
def archives(tmp_path, dfdc):
    """Kaggle's archives of two parts, and one that is damaged."""
    folder = tmp_path / "zips"
    folder.mkdir()
    source = dfdc / "dfdc_train_part_0"
    for part in (0, 7, 12):
        with zipfile.ZipFile(folder / f"dfdc_train_part_{part:02}.zip", "w") as file:
            for path in sorted(source.iterdir()):
                file.write(path, f"dfdc_train_part_{part}/{path.name}")
    data = bytearray((folder / "dfdc_train_part_12.zip").read_bytes())
    data[len(data) // 2] ^= 255
    (folder / "dfdc_train_part_12.zip").write_bytes(data)
    return folder, source


def unpack(folder, root, *options):
    main = importlib.import_module("preprocessing.00_unpack_archives").main
    arguments = [f"--archive-dir={folder}", f"--root-dir={root}", "--workers=0"]
    return main([*arguments, *options])


def test_archives_are_checked_and_unpacked(archives, tmp_path, capsys):
    folder, source = archives
    root = tmp_path / "data"
    assert unpack(folder, root) == 1
    printed = capsys.readouterr()
    assert "2 archives done, 0 were there, 1 failed" in printed.out
    assert "dfdc_train_part_12.zip: is damaged" in printed.err
    assert "download it again" in printed.err
    for part in (0, 7):
        target = root / f"dfdc_train_part_{part}"
        assert {path.name: path.read_bytes() for path in target.iterdir()} == {
            path.name: path.read_bytes() for path in source.iterdir()
        }
    assert not (root / "dfdc_train_part_12").exists()
    assert unpack(folder, root, "--delete-archives", "--max-failures=1") == 0
    assert "0 archives done, 2 were there" in capsys.readouterr().out
    assert [path.name for path in folder.iterdir()] == ["dfdc_train_part_12.zip"]
    assert len(read_dataset(root).videos) == 2  # the second part has the same names


@pytest.mark.parametrize(
    "names, words",
    [
        (["../evil/metadata.json"], "'../evil', no part of DFDC"),
        (["/metadata.json"], "no part of DFDC"),
        (["a/metadata.json", "b/x.mp4"], "is this one of Kaggle's training archives"),
        (["x.mp4"], "is this one of Kaggle's training archives"),
        (["dfdc_train_part_9/metadata.json"], "holds part 9, its name says 3"),
        (["dfdc_train_part_3/..", "dfdc_train_part_3/metadata.json"], "is no file's"),
        (["metadata.json", "metadata.json"], "has a name twice"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_of_something_else_are_refused(tmp_path, names, words, capsys):
    with zipfile.ZipFile(tmp_path / "dfdc_train_part_3.zip", "w") as file:
        for name in names:
            file.writestr(name, "{}")
    before = sorted(tmp_path.rglob("*"))
    assert unpack(tmp_path, tmp_path / "data") == 1
    assert words in capsys.readouterr().err
    left = {path for path in tmp_path.rglob("*")} - {*before}
    assert {path.name for path in left} <= {"data", "failures.csv"}


def test_archives_are_deleted_only_if_all_of_them_is_unpacked(
    archives, tmp_path, capsys
):
    folder, source = archives
    root = tmp_path / "data"
    (root / "dfdc_train_part_7").mkdir(parents=True)  # another program's, half done
    shutil.copy(source / "metadata.json", root / "dfdc_train_part_7")
    assert unpack(folder, root, "--delete-archives") == 1
    assert sorted(path.name for path in folder.iterdir()) == [
        "dfdc_train_part_07.zip",
        "dfdc_train_part_12.zip",
    ]
    assert "does not hold all of its files" in capsys.readouterr().err


def test_a_folder_without_archives(tmp_path):
    with pytest.raises(UserError, match="holds no dfdc_train_part_NN.zip"):
        unpack(tmp_path, tmp_path / "data")


def test_crops_that_exist_are_scored_as_they_are(tmp_path, portrait, checkpoints):
    """Beside a loop over files: read, resize, normalise, classify, sigmoid."""
    import torch

    from evaluation.crops import main
    from preprocessing.crops import read_image
    from training.augment import plain_transform
    from training.checkpoint import load_classifier
    from training.model import Normalize

    root = tmp_path / "data"
    root.mkdir()
    for number in range(6):
        write_image(root / f"{number}.png", portrait[number : 150 + number, 200:320])
    (root / "crops.csv").write_text(
        "path,label,video,split\n0.png,0,v0,test\n1.png,0,v0,test\n2.png,1,v1,test\n"
        "3.png,1,v1,test\n4.png,1,v2,test\n5.png,1,v3,train\n"
    )
    assert run(5, root, "--dataset", "crops.csv") == 0
    folder, names = checkpoints, ["one", "two"]
    arguments = [
        *("--data-dir", root, "--weights-dir", folder, "--models", *names),
        *("--output", tmp_path / "s.csv", "--faces-csv", tmp_path / "f.csv"),
        *("--workers", 0, "--device", "cpu"),
    ]
    assert main([*map(str, arguments)]) == 0
    rows = read_rows(tmp_path / "f.csv")
    assert len(rows) == 5 * len(names)
    for row in rows:
        model, settings = load_classifier(folder / row["model"])
        image = plain_transform(read_image(root / f"{row['frame']}.png"), settings.size)
        inputs = Normalize(settings.mean, settings.std)(torch.from_numpy(image[None]))
        with torch.inference_mode():
            expected = torch.sigmoid(model(inputs)).item()
        assert float(row["probability"]) == pytest.approx(expected, abs=1e-5)
        assert row["time"] == "" and row["x2"] == "120"
    submission = read_rows(tmp_path / "s.csv")
    assert [row["filename"] for row in submission] == ["v0", "v1", "v2"]
    scores = [float(row["probability"]) for row in rows if row["video"] == "v0"]
    assert float(submission[0]["label"]) == pytest.approx(np.mean(scores), abs=1e-6)
