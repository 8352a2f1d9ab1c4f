"""Read Celeb-DF v1, v2 and Celeb-DF++.

Reads  DATA/{Celeb-real, YouTube-real, Celeb-synthesis}/*.mp4, each with or without
       videos/ below it; Celeb-DF++: Celeb-synthesis/KIND/METHOD/*.mp4, technique METHOD
       (a fake's last folder)
       DATA/List_of_testing_videos.txt, lines such as `1 YouTube-real/00170.mp4`: there
       1 means REAL and 0 fake. The label is taken from the folder.
Names: id0_id16_0009.mp4 has the frames of Celeb-real/id0_0009.mp4; in Celeb-DF++ the
       name of a fake begins with its method.
Split: test for the listed videos, train for all others; nothing without the list.
Source: Y. Li et al., "Celeb-DF" (2020), github.com/yuezunli/celeb-deepfakeforensics;
       Celeb-DF++ (2025), github.com/OUC-VAS/Celeb-DF-PP.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from preprocessing.dataset import (
    Dataset,
    Skipped,
    Unused,
    Video,
    make_dataset,
    note_unused,
    with_splits,
)
from preprocessing.video import sort_files
from runtime.cli import UserError

LAYOUT = "{Celeb-real, YouTube-real, Celeb-synthesis}/*.mp4"
REAL_FOLDERS = ("Celeb-real", "YouTube-real", "Youtube-real")
FAKE_FOLDER = "Celeb-synthesis"
TEST_LIST = "List_of_testing_videos.txt"
FAKE_NAME = re.compile(r"(id\d+)_id\d+_(\d+)")


def detect(root: Path) -> bool:
    """Whether a folder has Celeb-synthesis or Celeb-real."""
    return any((root / name).is_dir() for name in ("Celeb-real", FAKE_FOLDER))


def read_dataset(root: Path) -> Dataset:
    """Read all videos below `root`."""
    items: list[Video | Skipped] = []
    for name in (*REAL_FOLDERS, FAKE_FOLDER):
        if (root / name).is_dir():
            items += _read_folder(root / name, is_fake=name == FAKE_FOLDER)
    videos = [item for item in items if isinstance(item, Video)]
    listed, notes = _read_list(root, videos)
    if listed is not None:
        items = with_splits(
            items, lambda video: "test" if video.path in listed else "train"
        )
    return make_dataset(root, [*items, *notes])


def _read_folder(folder: Path, is_fake: bool) -> Iterator[Video | Skipped]:
    """All videos below one of the three folders; a fake's last folder is its method."""
    videos, unused = sort_files(path for path in folder.rglob("*") if path.is_file())
    yield from note_unused(folder, unused)
    for path in videos:
        kinds = [
            part for part in path.relative_to(folder).parts[:-1] if part != "videos"
        ]
        method = kinds[-1] if is_fake and kinds else ""
        name = f"{method}_{path.stem}" if method else path.stem
        original = name
        if is_fake and (match := FAKE_NAME.match(path.stem)):
            original = f"{match[1]}_{match[2]}"
        yield Video(path, name, is_fake, original, technique=method)


def _read_list(
    root: Path, videos: list[Video]
) -> tuple[set[Path] | None, list[Skipped]]:
    """The videos of the test list, None without one, and what is wrong with it."""
    path = root / TEST_LIST
    if not path.is_file():
        return None, []
    by_place = {_place(video.path.relative_to(root)): video for video in videos}
    listed: dict[Path, str] = {}
    missing: list[str] = []
    notes: list[Skipped] = []
    for number, line in enumerate(
        path.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines(), 1
    ):
        if not line.strip():
            continue
        mark, _, name = line.strip().partition(" ")
        if mark not in ("0", "1") or not name:
            notes.append(
                Skipped(
                    str(path),
                    f"line {number}: {line!r} must be 0 or 1, a blank, and a video",
                )
            )
        elif video := by_place.get(_place(Path(name.strip().replace("\\", "/")))):
            listed[video.path] = mark
        else:
            missing.append(name.strip())
    if missing:
        notes.append(
            Unused(
                str(path),
                f"names {len(missing)} videos that are not there, the first is "
                f"{missing[0]}",
            )
        )
    if not listed:
        raise UserError(f"{path}: names none of the videos that are there")
    return set(listed), notes + _reversed_marks(path, videos, listed)


def _reversed_marks(
    path: Path, videos: list[Video], listed: dict[Path, str]
) -> list[Skipped]:
    """A note if the list's 1 stands for fakes, as in no list of Celeb-DF."""
    ones = [video for video in videos if listed.get(video.path) == "1"]
    if not ones or not all(video.is_fake for video in ones):
        return []
    return [
        Unused(
            str(path),
            f"all {len(ones)} videos marked 1 are in {FAKE_FOLDER}, but 1 means REAL "
            "in this list; the labels are taken from the folders",
        )
    ]


def _place(path: Path) -> tuple[str, ...]:
    """A video's path without `videos`, which some copies have; `Youtube` too."""
    return tuple(part.lower() for part in path.parts if part != "videos")
