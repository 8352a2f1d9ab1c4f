"""Dataset records: videos, crops that exist already, and skipped files.

Readers in `preprocessing.datasets` create them; the numbered steps process them.
"""

import hashlib
import os
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from preprocessing.video import describe_unused

FOLDS = 16
NO_FOLD = -1  # of test videos, and of those that a data set's split leaves out
SPLITS = ("train", "val", "test")
LABELS = {"REAL": False, "FAKE": True}
# Shares of the videos where a data set has no split of its own: FaceForensics++'s
VAL_SHARE = TEST_SHARE = 0.14
SEED = 777


@dataclass(frozen=True)
class Video:
    """One video of the dataset, or the crops of one.

    path: its file; of crops, the first.
    name: unique in the data set; its outputs have this name.
    original: the name of the video that a fake was made from, which has its boxes and
        landmarks. A real video is its own original, and so is a fake whose original is
        not there.
    original_path: the file of a fake's original.
    technique: that made a fake; empty where it is real or nobody knows.
    split: train, val, test, or empty.
    fold: 0 to 15, or `NO_FOLD`.
    crops: files of crops that exist already.
    """

    path: Path
    name: str
    is_fake: bool
    original: str
    original_path: Path | None = None
    technique: str = ""
    split: str = ""
    fold: int = 0
    crops: tuple[Path, ...] = ()

    @property
    def has_own_boxes(self) -> bool:
        """Whether its faces are searched in itself, not in its original."""
        return self.original == self.name


@dataclass(frozen=True)
class Skipped:
    """A file that was skipped completely or in part, and the reason."""

    file: str
    reason: str


@dataclass(frozen=True)
class Unused(Skipped):
    """Files that are no part of the data set; they do not count as failures."""


@dataclass(frozen=True)
class Dataset:
    """The usable videos in order, and the skipped files.

    root: the folder of the numbered steps' outputs.
    """

    root: Path
    videos: list[Video]
    skipped: list[Skipped]

    @property
    def reals(self) -> list[Video]:
        return [video for video in self.videos if not video.is_fake]

    @property
    def fakes(self) -> list[Video]:
        return [video for video in self.videos if video.is_fake]


def note_unused(folder: Path, unused: Mapping[str, Sequence[Path]]) -> list[Unused]:
    """A note for each reason of `preprocessing.video.sort_files`."""
    return [
        Unused(str(folder), describe_unused(reason, paths))
        for reason, paths in unused.items()
    ]


def with_splits(
    items: Iterable[Video | Skipped], split_of: Callable[[Video], str]
) -> list[Video | Skipped]:
    """The items, each video with its split."""
    return [
        replace(item, split=split_of(item)) if isinstance(item, Video) else item
        for item in items
    ]


def parse_label(text: str) -> int:
    """0 or 1 of a number, or of real or fake in any case; else a ValueError."""
    if text.upper() in LABELS:
        return int(LABELS[text.upper()])
    number = parse_number(text)
    if number not in (0, 1):
        raise ValueError(f"{text} is no class")
    return int(number)


def parse_number(text: str) -> float:
    """A number with a decimal point or a decimal comma; else a ValueError."""
    if "_" in text:  # which Python allows between digits
        raise ValueError(f"{text} is no number")
    has_comma = text.count(",") == 1 and "." not in text
    return float(text.replace(",", ".") if has_comma else text)


def make_dataset(
    root: Path,
    items: Iterable[Video | Skipped],
    groups: Mapping[str, str] | None = None,
) -> Dataset:
    """Link fakes with their originals, choose folds, and check names and classes.

    The fold of a test video is `NO_FOLD`, of a validation video 0. Other videos share
    the folds by whole groups: 1 to 15 where there are validation videos, else 0 to 15.

    Args:
        items: what a reader found; a fake's `original` may be a name that is not there.
        groups: by a video's name; videos of one group show the same people. Its
            original's name where it is not given.
    """
    videos: dict[str, Video] = {}
    skipped: list[Skipped] = []
    for item in items:
        if isinstance(item, Video) and (other := videos.get(item.name)):
            reason = f"the name {item.name} is taken by {other.path}; rename one"
            skipped.append(Skipped(str(item.path), reason))
        elif isinstance(item, Video):
            videos[item.name] = item
        else:
            skipped.append(item)
    splits = {video.split for video in videos.values()}
    usable = []
    for video in videos.values():
        original = videos.get(video.original, video)
        if not video.is_fake or original.is_fake:
            original = video
        group = (groups or {}).get(video.name, original.name)
        usable.append(
            replace(
                video,
                original=original.name,
                original_path=None if original is video else original.path,
                fold=_choose_fold(video.split, splits, group),
            )
        )
    return Dataset(root, usable, skipped + _one_class_splits(root, usable))


def _choose_fold(split: str, splits: set[str], group: str) -> int:
    if split == "val":
        return 0
    if split == "test" or (not split and splits != {""}):
        return NO_FOLD
    number = int.from_bytes(hashlib.sha256(os.fsencode(group)).digest()[:8], "big")
    return 1 + number % (FOLDS - 1) if "val" in splits else number % FOLDS


def _one_class_splits(root: Path, videos: Iterable[Video]) -> list[Skipped]:
    """A note for each split that has fakes and no real video, or the reverse."""
    counts = Counter((video.split, video.is_fake) for video in videos)
    notes: list[Skipped] = []
    for split in dict.fromkeys(split for split, _ in counts):
        where = f"the split {split} has" if split else "there are"
        for is_fake, missing in ((True, "real"), (False, "fake")):
            if not counts[split, not is_fake]:
                there = "fake" if is_fake else "real"
                count = counts[split, is_fake]
                notes.append(
                    Unused(
                        str(root),
                        f"{where} {count} {there} videos and no {missing} one, so "
                        "nothing can be learned from them or compared",
                    )
                )
    return notes


def connected_groups(pairs: Iterable[tuple[str, ...]]) -> dict[str, str]:
    """Group names that are connected by pairs.

    Returns:
        by name the first name of its group.
    """
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        leader.setdefault(name, name)
        while leader[name] != name:
            leader[name] = leader[leader[name]]
            name = leader[name]
        return name

    for first, *others in pairs:
        for other in others or [first]:
            one, two = sorted((find(first), find(other)))
            leader[two] = one
    return {name: find(name) for name in [*leader]}


def draw_splits(groups: Mapping[str, str], seed: int = SEED) -> dict[str, str]:
    """Choose a split for each name, the same for all names of a group.

    Groups in an order drawn by `seed` fill test, then validation, up to their shares.
    """
    members: dict[str, list[str]] = defaultdict(list)
    for name, group in sorted(groups.items()):
        members[group].append(name)
    order = sorted(members)
    random.Random(seed).shuffle(order)
    splits: dict[str, str] = {}
    wanted = {"test": TEST_SHARE * len(groups), "val": VAL_SHARE * len(groups)}
    for group in order:
        split = next((name for name, left in wanted.items() if left > 0), "train")
        if split != "train":
            wanted[split] -= len(members[group])
        splits |= dict.fromkeys(members[group], split)
    return splits
