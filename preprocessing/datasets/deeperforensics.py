"""Read DeeperForensics-1.0.

Reads  DATA/manipulated_videos/KIND/*.mp4
       DATA/original_sequences/youtube/{raw,c23,c40}/videos/*.mp4 of FaceForensics++, the
       targets, which are the real videos by the authors' word (c23)
       DATA/source_videos/…/*.mp4, actors in a studio: the real videos where no target is
       there
       DATA/lists/splits/{train,val,test}.txt, names of fakes, if they are there
Names: 000_M101.mp4 has the frames of FaceForensics++'s 000; technique is KIND. A source
       video is named by its path, with `_` between folders.
Split: of a fake's name by the lists, of a target that of its fakes. The lists name no
       source video; for those, whole actors are drawn.
Source: L. Jiang et al., "DeeperForensics-1.0" (2020),
       github.com/EndlessSora/DeeperForensics-1.0.
"""

from collections.abc import Iterator
from pathlib import Path

from preprocessing.dataset import (
    SPLITS,
    Dataset,
    Skipped,
    Unused,
    Video,
    draw_splits,
    make_dataset,
    note_unused,
    with_splits,
)
from preprocessing.video import sort_files
from runtime.cli import UserError

LAYOUT = "source_videos/, manipulated_videos/KIND/*.mp4, lists/splits/*.txt"
SOURCES, FAKES = "source_videos", "manipulated_videos"
TARGETS = "original_sequences/youtube/*/videos"


def detect(root: Path) -> bool:
    """Whether a folder has manipulated_videos."""
    return (root / FAKES).is_dir()


def read_dataset(root: Path) -> Dataset:
    """Read all videos below `root`."""
    items: list[Video | Skipped] = []
    source_files = [path for path in (root / SOURCES).rglob("*") if path.is_file()]
    targets = sorted(root.glob(TARGETS))[:1]
    for folder in targets:
        items += _read_videos(folder, [*folder.iterdir()])
    if not targets:
        items += _read_videos(root / SOURCES, source_files)
    elif source_files:
        reason = f"{len(source_files)} source videos not used: the targets are there"
        items.append(Unused(str(root / SOURCES), reason))
    for folder in sorted((root / FAKES).iterdir()):
        if folder.is_dir():
            fakes = [path for path in folder.rglob("*") if path.is_file()]
            items += _read_videos(folder, fakes, technique=folder.name)
    videos = [item for item in items if isinstance(item, Video)]
    splits, notes = _read_splits(root, {video.path.name for video in videos})
    if splits:
        target_splits = {
            name.partition("_")[0]: split for name, split in splits.items()
        }
        sources = [video for video in videos if root / SOURCES in video.path.parents]
        drawn = draw_splits({video.name: _actor(root, video) for video in sources})
        known = drawn | target_splits
        items = with_splits(
            items,
            lambda video: splits.get(video.path.name) or known.get(video.name, ""),
        )
    return make_dataset(root, [*items, *notes])


def _actor(root: Path, video: Video) -> str:
    return video.path.relative_to(root / SOURCES).parts[0]


def _read_videos(
    folder: Path, paths: list[Path], technique: str = ""
) -> Iterator[Video | Skipped]:
    videos, unused = sort_files(paths)
    yield from note_unused(folder, unused)
    for path in videos:
        if technique:
            target = path.stem.partition("_")[0]
            name = f"{technique}_{path.stem}"
            yield Video(path, name, True, target, technique=technique)
        else:
            name = "_".join(path.relative_to(folder).with_suffix("").parts)
            yield Video(path, name, False, name)


def _read_splits(root: Path, names: set[str]) -> tuple[dict[str, str], list[Unused]]:
    """The split of each fake's file name, and notes of names that are not there."""
    splits: dict[str, str] = {}
    notes = []
    for split in SPLITS:
        path = root / "lists" / "splits" / f"{split}.txt"
        if not path.exists():
            continue
        lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
        listed = [
            line.strip().replace("\\", "/")
            for line in lines.splitlines()
            if line.strip()
        ]
        splits |= dict.fromkeys((Path(line).name for line in listed), split)
        if missing := [line for line in listed if Path(line).name not in names]:
            notes.append(
                Unused(
                    str(path),
                    f"names {len(missing)} of {len(listed)} videos that are not "
                    f"there, the first is {missing[0]}",
                )
            )
    if splits and not splits.keys() & names:
        raise UserError(f"{root / 'lists/splits'}: names none of the videos there")
    return splits, notes
