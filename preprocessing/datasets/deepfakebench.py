"""Read a JSON file of DeepfakeBench: frames that are cropped already.

Reads  DATASET.json = {dataset: {label: {split: {[compression:] {video: {"label": label,
       "frames": [path, …]}}}}}}; the compression, raw, c23 or c40, is there for
       FaceForensics++ only. Paths are relative to DATA; folders are separated by / or \\
Labels: names that end in "real" are 0, all others 1; technique is the label's name.
Names: LABEL_VIDEO, or LABEL_COMPRESSION_VIDEO where there are several.
Source: github.com/SCLBD/DeepfakeBench, preprocessing/rearrange.py.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from preprocessing.dataset import SPLITS, Dataset, Skipped, Unused, Video, make_dataset
from preprocessing.datasets.table import (
    PICTURES,
    FilesPresent,
    check_pictures,
    is_plain,
    resolve_inside,
)
from runtime.cli import UserError

COMPRESSIONS = ("raw", "c23", "c40")


class _Entry(NamedTuple):
    label: str
    split: str
    compression: str
    video: str
    frames: list[str]


def read_dataset(root: Path, file: Path) -> Dataset:
    """Read the videos whose frames are there.

    A video that is in several splits, as all of Celeb-DF's test videos are, is a test
    video before a validation and a training one.

    Raises:
        UserError: the file is not of this form.
    """
    notes: list[Skipped] = []
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
        entries = [*_entries(content, str(file), notes)]
    except (OSError, ValueError, RecursionError, AttributeError, TypeError) as error:
        raise UserError(
            f"{file}: is no JSON of DeepfakeBench, {{dataset: {{label: {{split: "
            f"{{video: …}}}}}}}} ({error})"
        ) from error
    several = len({entry.compression for entry in entries}) > 1
    present = FilesPresent()
    videos: dict[str, Video] = {}
    missing: list[str] = []
    repeated: list[str] = []
    for entry in sorted(entries, key=lambda entry: -SPLITS.index(entry.split)):
        parts = (entry.label, entry.compression if several else "", entry.video)
        name = "_".join(filter(None, parts))
        if name in videos:
            repeated.append(name)
            continue
        try:
            video = _make_video(root, name, entry, present)
        except UserError as error:
            notes.append(Skipped(str(file), str(error)))
            continue
        if video is None:
            missing.append(name)
        else:
            videos[name] = video
    if missing:
        notes.append(
            Unused(
                str(file),
                f"names {len(missing)} of {len(entries)} videos whose frames are not "
                f"there, the first is {missing[0]}",
            )
        )
    if repeated:
        notes.append(
            Unused(
                str(file),
                f"has {len(repeated)} videos in several splits, the first is "
                f"{repeated[0]}; test counts before val, val before train",
            )
        )
    return make_dataset(root, [*videos.values(), *notes])


def _make_video(
    root: Path, name: str, entry: _Entry, present: FilesPresent
) -> Video | None:
    """A video of its frames that are there; None without any."""
    if not is_plain(name):
        raise UserError(f"{name!r} cannot be the name of a video")
    frames = [resolve_inside(root, frame) for frame in entry.frames]
    crops = tuple(
        sorted(
            (
                frame
                for frame in frames
                if frame.suffix.lower() in PICTURES and frame in present
            ),
            key=_frame_number,
        )
    )
    if not crops:
        return None
    check_pictures(name, crops)
    is_fake = not entry.label.lower().endswith("real")
    return Video(
        crops[0],
        name,
        is_fake,
        name,
        technique=entry.label if is_fake else "",
        split=entry.split,
        crops=crops,
    )


def _entries(content: dict, file: str, notes: list[Skipped]) -> Iterator[_Entry]:
    """The entries of all splits; those of another form are added to `notes`."""
    for labels in content.values():
        for label, splits in labels.items():
            for split, videos in splits.items():
                by_compression = {"": videos}
                if videos and set(videos) <= set(COMPRESSIONS):
                    by_compression = videos
                for compression, each in by_compression.items():
                    for video, entry in each.items():
                        frames = entry.get("frames") if isinstance(entry, dict) else 0
                        if (
                            split not in SPLITS
                            or not isinstance(frames, list)
                            or not all(isinstance(frame, str) for frame in frames)
                        ):
                            reason = f"{label}, {split}, {video!r}: is no video"
                            notes.append(Skipped(file, reason))
                        else:
                            yield _Entry(label, split, compression, video, frames)


def _frame_number(path: Path) -> tuple[int, str]:
    return (int(path.stem) if path.stem.isdecimal() else 0), path.name
