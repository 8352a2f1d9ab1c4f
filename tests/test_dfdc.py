"""Reading DFDC's metadata.json: valid folders, bad entries, path traversal."""

import json

import pytest

from preprocessing.dataset import Unused
from preprocessing.datasets.dfdc import read_dataset
from runtime.cli import UserError


def write_part(root, part, entries, files=None):
    folder = root / f"dfdc_train_part_{part}"
    folder.mkdir(parents=True, exist_ok=True)
    text = entries if isinstance(entries, str) else json.dumps(entries)
    (folder / "metadata.json").write_text(text)
    for name in entries if files is None else files:
        (folder / name).touch()
    return folder


def fake_of(original):
    """The metadata of a fake with the given original."""
    return {"x.mp4": {"label": "FAKE", "original": original}}


GOOD = {"a.mp4": {"label": "REAL"}, "b.mp4": {"label": "FAKE", "original": "a.mp4"}}
BAD_NAMES = [
    "..",
    ".",
    "",
    "...mp4",
    "..mp4",
    ".hidden.mp4",
    "/etc/passwd",
    "a/../../x.mp4",
    "nul\0.mp4",
    "\ud800.mp4",
]
BAD_ORIGINALS = ["..", "../a.mp4", "/a.mp4", ["a.mp4"], {"a": 1}, 5, "\ud800"]
BAD_LABELS = [["REAL"], {}, 1, True, None]


def test_a_good_folder(tmp_path):
    write_part(tmp_path, 7, GOOD)
    write_part(tmp_path, 10, {"c.mp4": {"label": "FAKE", "original": "a.mp4"}})
    dataset = read_dataset(tmp_path)
    found = [
        (video.name, video.fold, video.is_fake, video.original)
        for video in dataset.videos
    ]
    assert found == [("a", 2, False, "a"), ("b", 2, True, "a"), ("c", 2, True, "a")]
    assert not dataset.skipped


@pytest.mark.parametrize(
    "entries, files, words",
    [
        ("{not json", [], ["metadata.json", "not JSON"]),
        (
            '{"x.mp4": {"label": "REAL"}, "x.mp4": {"label": "FAKE"}}',
            [],
            ["metadata.json", "'x.mp4' twice"],
        ),
        ("[1, 2]", [], ["metadata.json", "must map each file name"]),
        (
            {"x.mp4": {"split": "train"}},
            None,
            ["metadata.json", "'x.mp4'", "label None", "REAL or FAKE"],
        ),
        ({"x.mp4": {"label": "FALSE"}}, None, ["'FALSE'"]),
        (fake_of("gone.mp4"), None, ["x.mp4", "original gone", "add the part"]),
        ({"x.mp4": {"label": "FAKE"}}, None, ["x.mp4", 'no "original"']),
        (fake_of("b.mp4"), None, ["x.mp4", "itself a FAKE"]),
        ({"x.mp4": {"label": "REAL"}}, [], ["x.mp4", "no such file"]),
        ({"../x.mp4": {"label": "REAL"}}, [], ["'../x.mp4'", "plain file name"]),
        (fake_of("/etc/a.mp4"), None, ["'/etc/a.mp4'", "plain file name"]),
        ({"a.mp4": {"label": "REAL"}}, None, ["a.mp4", "taken by"]),
        *(
            ({name: {"label": "REAL"}}, [], [repr(name), "plain file name"])
            for name in BAD_NAMES
        ),
        *((fake_of(original), None, ["plain file name"]) for original in BAD_ORIGINALS),
        *(
            ({"x.mp4": {"label": label}}, None, ["REAL or FAKE"])
            for label in BAD_LABELS
        ),
        ("[" * 100_000, [], ["not JSON"]),
    ],
)
def test_a_bad_entry_is_named_and_the_rest_is_kept(tmp_path, entries, files, words):
    write_part(tmp_path, 0, GOOD)
    write_part(tmp_path, 1, entries, files)
    dataset = read_dataset(tmp_path)
    assert [video.name for video in dataset.videos] == ["a", "b"]
    (reason,) = dataset.skipped
    for word in words:
        assert word in f"{reason.file}: {reason.reason}"


def test_nothing_to_work_on_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        read_dataset(tmp_path / "none")
    with pytest.raises(UserError, match="no folder named dfdc_train_part_N"):
        read_dataset(tmp_path)
    write_part(tmp_path, 0, {"x.mp4": {"label": "?"}})
    with pytest.raises(UserError, match="no usable video.*\n.*'x.mp4'"):
        read_dataset(tmp_path)


def test_videos_that_are_not_used_are_said_once_a_part(tmp_path):
    others = ["c.mp4", "d.mp4", "e.mov", "f.mkv", "._a.mp4", "x.ts", "notes.txt"]
    folder = write_part(tmp_path, 7, GOOD, [*GOOD, *others])
    (folder / "more").mkdir()
    dataset = read_dataset(tmp_path)
    assert [video.name for video in dataset.videos] == ["a", "b"]
    assert all(isinstance(each, Unused) for each in dataset.skipped)
    assert [(each.file, each.reason) for each in dataset.skipped] == [
        (str(folder), reason)
        for reason in (
            "4 not used (c.mp4, d.mp4, e.mov, …): no entry in metadata.json",
            "1 not used (._a.mp4): macOS metadata, not videos",
            "1 not used (more): folders, which are not searched",
            "1 not used (x.ts): not read: convert them to .mp4",
        )
    ]


@pytest.mark.parametrize("outer", ["dfdc_train_part_07", "dfdc_train_part_7"])
def test_archives_that_were_unpacked_into_folders_of_their_own(tmp_path, outer):
    write_part(tmp_path / outer, 7, GOOD)
    write_part(tmp_path, 10, {"c.mp4": {"label": "FAKE", "original": "a.mp4"}})
    dataset = read_dataset(tmp_path)
    assert [video.name for video in dataset.videos] == ["a", "b", "c"]
    assert not dataset.skipped
    fake = dataset.videos[1]
    assert fake.original_path == tmp_path / outer / "dfdc_train_part_7" / "a.mp4"


def test_what_lies_beside_the_parts_is_named(tmp_path):
    write_part(tmp_path, 0, GOOD)
    for name in (
        "loose.mp4",
        "x.mp4.crdownload",
        "dfdc_train_part_07.zip",
        "notes.txt",
    ):
        (tmp_path / name).write_text("x")
    for name in ("dfdc_train_part_3 (1)", "DFDC_TRAIN_PART_4", "crops", "other"):
        (tmp_path / name).mkdir()
    reasons = [item.reason for item in read_dataset(tmp_path).skipped]
    expected = """1 not used (dfdc_train_part_07.zip): not unpacked (preprocessing.\
00_unpack_archives)
1 not used (loose.mp4): in no dfdc_train_part_N
1 not used (x.mp4.crdownload): not complete or not unpacked
2 not used (DFDC_TRAIN_PART_4, dfdc_train_part_3 (1)): not read: rename them to \
dfdc_train_part_N"""
    assert sorted(reasons) == expected.split("\n")


def test_metadata_as_notepad_saves_it_and_labels_in_any_case(tmp_path):
    write_part(tmp_path, 0, {"a.mp4": {"label": "Real"}, **fake_of("a.mp4")})
    path = tmp_path / "dfdc_train_part_0" / "metadata.json"
    text = path.read_text().replace("FAKE", "fake")
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_text(text, encoding=encoding)
        dataset = read_dataset(tmp_path)
        assert [video.is_fake for video in dataset.videos] == [False, True]
        assert not dataset.skipped
