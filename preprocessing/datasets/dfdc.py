"""Read a DFDC download: part folders, labels, and the original of each fake.

Reads  DATA/dfdc_train_part_N/metadata.json =
       {"name.mp4": {"label": "FAKE", "original": "other.mp4"}, …}
Folds: the winner's 16 by part number: fold i holds parts 3i to 3i + 2, the last one all
       parts from 45. No actor appears in two parts. A fake is in its original's fold.
"""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from preprocessing.dataset import (
    FOLDS,
    LABELS,
    Dataset,
    Skipped,
    Unused,
    Video,
    note_unused,
)
from preprocessing.video import sort_files
from runtime.cli import UserError

PART_FOLDER = re.compile(r"dfdc_train_part_(\d+)$")
OUTPUTS = ("boxes", "crops", "landmarks", "diffs", "shards")
LAYOUT = "dfdc_train_part_N/{metadata.json, *.mp4}"
PARTS_PER_FOLD = 3  # 50 parts // 16 folds; the remaining parts go to the last fold


def fold_of_part(part: int) -> int:
    """The fold that a DFDC part belongs to, 0 to 15."""
    return min(part // PARTS_PER_FOLD, FOLDS - 1)


def detect(root: Path) -> bool:
    """Whether a folder holds DFDC parts."""
    return bool(_find_parts(root))


def read_dataset(root: Path) -> Dataset:
    """Read every part's metadata.json below `root`.

    Entries that cannot be used are listed in `skipped`.

    Raises:
        UserError: the folder does not exist, has no part folder or no usable video.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(
            f"{root}: no such folder; "
            "give the folder that holds dfdc_train_part_0, dfdc_train_part_1, …"
        )
    parts = _find_parts(root)
    if not parts:
        raise UserError(
            f"{root}: holds no folder named dfdc_train_part_N; "
            "unpack the DFDC archives into it"
        )
    videos: dict[str, Video] = {}
    skipped: list[Skipped] = []
    for part, folder in parts:
        for item in _read_part(folder, part):
            if isinstance(item, Video) and item.name in videos:
                other = videos[item.name].path
                reason = f"the name {item.name} is taken by {other}; rename one"
                item = Skipped(str(item.path), reason)
            if isinstance(item, Skipped):
                skipped.append(item)
            else:
                videos[item.name] = item
    skipped += _unused_at_the_top(root)
    skipped += _remove_fakes_without_original(videos, root)
    for name, video in videos.items():
        if video.is_fake:
            original = videos[video.original]
            videos[name] = replace(
                video, original_path=original.path, fold=original.fold
            )
    if not videos:
        reasons = "".join(f"\n  {item.file}: {item.reason}" for item in skipped[:5])
        raise UserError(
            f"{root}: no usable video in {len(parts)} part folders{reasons}"
        )
    part_of = {folder: part for part, folder in parts}
    usable = sorted(
        videos.values(), key=lambda video: (part_of[video.path.parent], video.name)
    )
    return Dataset(root, usable, skipped)


def _find_parts(root: Path) -> list[tuple[int, Path]]:
    """Part numbers and folders, also where each archive was unpacked into its own."""
    parts = []
    for folder in root.iterdir():
        if not (match := PART_FOLDER.search(folder.name)) or not folder.is_dir():
            continue
        inner = [each for each in folder.iterdir() if PART_FOLDER.search(each.name)]
        if inner and not (folder / "metadata.json").exists():
            parts += _find_parts(folder)
        else:
            parts.append((int(match[1]), folder))
    return sorted(parts)


def _unused_at_the_top(root: Path) -> list[Unused]:
    """What lies beside the parts and looks as if it were one, or belonged to one."""
    others = [path for path in sorted(root.iterdir()) if path.name not in OUTPUTS]
    videos, unused = sort_files(path for path in others if path.is_file())
    if videos:
        unused = {"in no dfdc_train_part_N": videos, **unused}
    near = [path for path in others if "dfdc_train_part" in path.name.lower()]
    archives = [path for path in near if path.suffix.lower() == ".zip"]
    if archives:
        unused["not unpacked (preprocessing.00_unpack_archives)"] = archives
    odd = [path for path in near if path.is_dir() and not PART_FOLDER.search(path.name)]
    if odd:
        unused["not read: rename them to dfdc_train_part_N"] = odd
    return note_unused(root, unused)


def read_metadata(path: Path) -> dict[str, dict]:
    """Read a metadata.json without interpreting its entries.

    Raises:
        UserError: the file cannot be read or is not a JSON object of objects.
    """
    try:
        # bytes: json finds UTF-8 and UTF-16, with or without a mark
        entries = json.loads(path.read_bytes(), object_pairs_hook=_unique_keys)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); download or unpack it again"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: not JSON ({error}); correct it, or download it again"
        ) from error
    if not isinstance(entries, dict) or not all(
        isinstance(entry, dict) for entry in entries.values()
    ):
        raise UserError(
            f'{path}: must map each file name to an object such as {{"label": "REAL"}}'
        )
    return entries


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object; of two values with one name the reader would keep the last."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has {twice!r} twice")
    return entries


def _read_part(folder: Path, part: int) -> Iterable[Video | Skipped | Unused]:
    metadata = folder / "metadata.json"
    try:
        entries = read_metadata(metadata)
    except UserError as error:
        yield Skipped(str(metadata), str(error).removeprefix(f"{metadata}: "))
        return
    present = {entry.name for entry in folder.iterdir()}
    for name, entry in entries.items():
        yield _read_entry(folder, part, name, entry, present)
    videos, unused = sort_files(folder / name for name in present - entries.keys())
    if videos:
        unused = {"no entry in metadata.json": videos, **unused}
    yield from note_unused(folder, unused)


def _read_entry(
    folder: Path, part: int, name: str, entry: dict, present: set[str]
) -> Video | Skipped:
    metadata = str(folder / "metadata.json")
    label, original = entry.get("label"), entry.get("original") or name
    for text in (name, original):
        if not isinstance(text, str) or not _is_plain(text):
            return Skipped(
                metadata,
                f"{text!r} is not a plain file name; correct the entry {name!r}",
            )
    if not isinstance(label, str) or label.upper() not in LABELS:
        return Skipped(
            metadata,
            f"the entry {name!r} has the label {label!r}; it must be REAL or FAKE",
        )
    if name not in present:
        return Skipped(
            str(folder / name),
            "listed in metadata.json, but there is no such file; "
            "unpack this part again",
        )
    is_fake = LABELS[label.upper()]
    stem = Path(name).stem
    return Video(
        path=folder / name,
        name=stem,
        is_fake=is_fake,
        original=Path(original).stem if is_fake else stem,
        fold=fold_of_part(part),
    )


def _is_plain(name: str) -> bool:
    """Whether a name from metadata.json is safe as a file and its stem as a folder.

    It has no path separator or NUL, does not start with a dot and can be encoded.
    """
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return (
        name != ""
        and Path(name).name == name
        and not name.startswith(".")
        and "\0" not in name
    )


def _remove_fakes_without_original(
    videos: dict[str, Video], root: Path
) -> list[Skipped]:
    skipped = []
    for video in [video for video in videos.values() if video.is_fake]:
        original = videos.get(video.original)
        if original is None or original.is_fake:
            reason = _original_error(video, original, root)
            skipped.append(Skipped(str(video.path), reason))
            del videos[video.name]
    return skipped


def _original_error(video: Video, original: Video | None, root: Path) -> str:
    """Why a fake has no usable original."""
    if video.original == video.name:
        return (
            'a FAKE whose metadata.json entry names no "original"; '
            "its faces cannot be found without it"
        )
    if original is not None:
        return f"its original {video.original} is itself a FAKE; correct metadata.json"
    return (
        f"its original {video.original} is not among the videos below {root}; "
        "add the part that holds it"
    )
