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
from preprocessing.datasets.table import PICTURES, is_plain, resolve_inside
from runtime.cli import UserError
from runtime.files import list_names

COMPRESSIONS = ("raw", "c23", "c40")


class _Entry(NamedTuple):
    label: str
    split: str
    compression: str
    video: str
    frames: list[str]


def read_dataset(root: Path, file: Path) -> Dataset:
    """Read the videos whose frames are there.

    Raises:
        UserError: the file is not of this form.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
        entries = [*_entries(content)]
    except (OSError, ValueError, RecursionError, AttributeError, TypeError) as error:
        raise UserError(
            f"{file}: is no JSON of DeepfakeBench, {{dataset: {{label: {{split: "
            f"{{video: …}}}}}}}} ({error})"
        ) from error
    several = len({entry.compression for entry in entries}) > 1
    names: dict[Path, set[str]] = {}
    items: list[Video | Skipped] = []
    missing: list[str] = []
    for entry in entries:
        parts = (entry.label, entry.compression if several else "", entry.video)
        name = "_".join(filter(None, parts))
        try:
            frames = [resolve_inside(root, frame) for frame in entry.frames]
            if not is_plain(name) or entry.split not in SPLITS:
                raise UserError(f"{name!r}, {entry.split!r}: no name or no split")
        except UserError as error:
            items.append(Skipped(str(file), str(error)))
            continue
        for folder in {frame.parent for frame in frames} - names.keys():
            names[folder] = list_names(folder)
        crops = tuple(
            sorted(
                (
                    frame
                    for frame in frames
                    if frame.suffix.lower() in PICTURES
                    and frame.name in names[frame.parent]
                ),
                key=_frame_number,
            )
        )
        if not crops:
            missing.append(name)
            continue
        is_fake = not entry.label.lower().endswith("real")
        items.append(
            Video(
                crops[0],
                name,
                is_fake,
                name,
                technique=entry.label if is_fake else "",
                split=entry.split,
                crops=crops,
            )
        )
    if missing:
        reason = (
            f"names {len(missing)} of {len(entries)} videos whose frames are not "
            f"there, the first is {missing[0]}"
        )
        items.append(Unused(str(file), reason))
    return make_dataset(root, items)


def _entries(content: dict) -> Iterator[_Entry]:
    for labels in content.values():
        for label, splits in labels.items():
            for split, videos in splits.items():
                by_compression = {"": videos}
                if videos and set(videos) <= set(COMPRESSIONS):
                    by_compression = videos
                for compression, each in by_compression.items():
                    for video, entry in each.items():
                        yield _Entry(label, split, compression, video, entry["frames"])


def _frame_number(path: Path) -> tuple[int, str]:
    return (int(path.stem) if path.stem.isdecimal() else 0), path.name
