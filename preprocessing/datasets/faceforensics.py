"""Read FaceForensics++ with DeepFakeDetection and FaceShifter, as its script downloads.

Reads  DATA/original_sequences/{youtube,actors}/{raw,c23,c40}/videos/*.mp4
       DATA/manipulated_sequences/TECHNIQUE/{raw,c23,c40}/videos/*.mp4
       DATA/splits/{train,val,test}.json = [["071", "054"], …], if they are there
Names: TARGET_SOURCE.mp4 has the frames of youtube/TARGET.mp4; in DeepFakeDetection
       T_S__SCENE__CODE.mp4 has those of actors/T__SCENE.mp4.
Split: of the target, by the lists. Without them, whole groups of people who are
       connected by fakes are drawn. Actors and DeepFakeDetection, which no list names,
       are test, unless there is nothing else.
Source: A. Rössler et al., "FaceForensics++" (2019), github.com/ondyari/FaceForensics.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from preprocessing.dataset import (
    SPLITS,
    Dataset,
    Skipped,
    Unused,
    Video,
    connected_groups,
    draw_splits,
    make_dataset,
    note_unused,
    with_splits,
)
from preprocessing.video import sort_files
from runtime.cli import UserError

LAYOUT = (
    "original_sequences/{youtube,actors}/{raw,c23,c40}/videos/*.mp4, "
    "manipulated_sequences/TECHNIQUE/{raw,c23,c40}/videos/*.mp4"
)
COMPRESSIONS = ("raw", "c23", "c40")  # masks/ is beside them
ACTOR = "actor "  # before an actor's number, which youtube videos have too
ORIGINALS, FAKES = "original_sequences", "manipulated_sequences"
YOUTUBE_FAKE = re.compile(r"(\d+)_(\d+)")
ACTORS_FAKE = re.compile(r"(\d+)_(\d+)__(.+)__\w+")
ACTORS_REAL = re.compile(r"(\d+)__.+")


def detect(root: Path) -> bool:
    """Whether a folder has manipulated_sequences with videos."""
    return any(folder.parents[2].name == FAKES for folder in _find_folders(root))


def read_dataset(root: Path, compression: str = "") -> Dataset:
    """Read the videos of one compression.

    Args:
        compression: raw, c23 or c40; may be left out where there is only one.

    Raises:
        UserError: there are several compressions, or none of this name.
    """
    folders = _find_folders(root)
    present = sorted({folder.parent.name for folder in folders})
    if not compression and len(present) > 1:
        raise UserError(
            f"{root}: holds {' and '.join(present)}; choose one, such as "
            f"--dataset faceforensics/{present[0]}"
        )
    compression = compression or "".join(present)
    if compression not in present:
        raise UserError(f"{root}: holds no {compression}, but {', '.join(present)}")
    items: list[Video | Skipped] = []
    for folder in folders:
        if folder.parent.name == compression:
            items += _read_folder(folder)
    videos = [item for item in items if isinstance(item, Video)]
    groups = connected_groups(_people(video) for video in videos)
    group_of = {video.name: groups[_people(video)[0]] for video in videos}
    splits, notes = _read_splits(root, {video.name for video in videos})
    if not splits:
        youtube = {
            video.name: group_of[video.name]
            for video in videos
            if not _people(video)[0].startswith(ACTOR)
        }
        splits = draw_splits(youtube or group_of)
    items = with_splits(items, lambda video: _split_of(video, splits))
    return make_dataset(root, [*items, *notes], group_of)


def _find_folders(root: Path) -> list[Path]:
    """All videos/ folders: originals first."""
    return [
        folder
        for kind in (ORIGINALS, FAKES)
        for folder in sorted((root / kind).glob("*/*/videos"))
        if folder.parent.name in COMPRESSIONS
    ]


def _read_folder(folder: Path) -> Iterator[Video | Skipped]:
    videos, unused = sort_files(folder.iterdir())
    yield from note_unused(folder, unused)
    technique = folder.parent.parent.name
    is_fake = folder.parents[2].name == FAKES
    for path in videos:
        stem = path.stem
        if not is_fake:
            yield Video(path, stem, False, stem)
        else:
            original = _original_of(stem)
            name = f"{technique}_{stem}"
            yield Video(path, name, True, original or name, technique=technique)


def _original_of(stem: str) -> str | None:
    """The name of a fake's original; None where the name is of another form."""
    if match := YOUTUBE_FAKE.fullmatch(stem):
        return match[1]
    if match := ACTORS_FAKE.fullmatch(stem):
        return f"{match[1]}__{match[3]}"
    return None


def _people(video: Video) -> tuple[str, ...]:
    """Who is seen in a video: one or two names, of actors with a mark."""
    stem = video.path.stem
    if match := ACTORS_FAKE.fullmatch(stem):
        return f"{ACTOR}{match[1]}", f"{ACTOR}{match[2]}"
    if match := ACTORS_REAL.fullmatch(stem):
        return (f"{ACTOR}{match[1]}",)
    if match := YOUTUBE_FAKE.fullmatch(stem):
        return match[1], match[2]
    return (stem,)


def _read_splits(root: Path, names: set[str]) -> tuple[dict[str, str], list[Unused]]:
    """The split of each target in splits/*.json, and notes of names not there.

    Raises:
        UserError: a file is no list of pairs.
    """
    splits: dict[str, str] = {}
    notes = []
    for split in SPLITS:
        path = root / "splits" / f"{split}.json"
        if not path.exists():
            continue
        try:
            pairs = json.loads(path.read_text(encoding="utf-8-sig"))
            if not all(isinstance(pair, list) for pair in pairs):
                raise TypeError("a list of lists is needed")
            listed = [name for pair in pairs for name in pair]
            if not all(isinstance(name, str) for name in listed):
                raise TypeError("names must be strings")
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise UserError(
                f'{path}: is no list of pairs such as [["071", "054"]] ({error}); '
                "download it again"
            ) from error
        splits |= dict.fromkeys(listed, split)
        if missing := sorted(set(listed) - names):
            notes.append(
                Unused(
                    str(path),
                    f"names {len(missing)} of {len(set(listed))} videos that are not "
                    f"there, the first is {missing[0]}",
                )
            )
    if splits and not splits.keys() & names:
        raise UserError(
            f"{root / 'splits'}: names none of the videos that are there, the first is "
            f"{next(iter(splits))!r}"
        )
    return splits, notes


def _split_of(video: Video, splits: dict[str, str]) -> str:
    """The split of its own name or of its target; test for actors."""
    target = _people(video)[0]
    other = "test" if target.startswith(ACTOR) else ""
    return splits.get(video.name) or splits.get(target) or other
