"""A DFDC download as it lies on disk: part folders, their metadata.json, and which fake was made from which original.

Reads  DATA/dfdc_train_part_N/metadata.json = {"name.mp4": {"label": "FAKE", "original": "other.mp4"}, …}
Names what the steps write: the functions at the end are the only place where those paths are spelled.
"""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from preprocessing.dataset import Dataset, Skipped, Video
from runtime.cli import UserError

PART_FOLDER = re.compile(r"dfdc_train_part_(\d+)$")
LABELS = {"REAL": False, "FAKE": True}


def read_dataset(root: Path) -> Dataset:
    """Read every part's metadata.json below `root`.

    An entry that cannot be used is left out and named in `skipped`; the rest is kept.

    Raises:
        UserError: there is no such folder, it holds no part folder, or no video in it can be used.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(
            f"{root}: no such folder; give the folder that holds dfdc_train_part_0, dfdc_train_part_1, …"
        )
    parts = sorted(
        (int(m[1]), folder)
        for folder in root.iterdir()
        if (m := PART_FOLDER.search(folder.name))
    )
    if not parts:
        raise UserError(
            f"{root}: holds no folder named dfdc_train_part_N; unpack the DFDC archives into it"
        )
    videos: dict[str, Video] = {}
    skipped: list[Skipped] = []
    for part, folder in parts:
        for item in _read_part(folder, part):
            if isinstance(item, Video) and item.name in videos:
                item = Skipped(
                    str(item.path),
                    f"the name {item.name} is taken by {videos[item.name].path}; rename one",
                )
            if isinstance(item, Skipped):
                skipped.append(item)
            else:
                videos[item.name] = item
    for video in [v for v in videos.values() if v.is_fake]:
        original = videos.get(video.original)
        if original is None or original.is_fake:
            skipped.append(
                Skipped(str(video.path), _no_original(video, original, root))
            )
            del videos[video.name]
    if not videos:
        reasons = "".join(
            f"\n  {reason.file}: {reason.reason}" for reason in skipped[:5]
        )
        raise UserError(
            f"{root}: no usable video in {len(parts)} part folders{reasons}"
        )
    return Dataset(
        root,
        sorted(videos.values(), key=lambda video: (video.part, video.name)),
        skipped,
    )


def read_metadata(path: Path) -> dict[str, dict]:
    """A metadata.json as it is.

    Raises:
        UserError: the file is missing or is not a JSON object of objects.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); unpack this part again"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: not JSON ({error}); unpack this part again"
        ) from error
    if not isinstance(entries, dict) or not all(
        isinstance(entry, dict) for entry in entries.values()
    ):
        raise UserError(
            f'{path}: must map each file name to an object such as {{"label": "REAL"}}'
        )
    return entries


def _read_part(folder: Path, part: int) -> Iterable[Video | Skipped]:
    metadata = folder / "metadata.json"
    try:
        entries = read_metadata(metadata)
    except UserError as error:
        yield Skipped(str(metadata), str(error).removeprefix(f"{metadata}: "))
        return
    present = {entry.name for entry in folder.iterdir()}
    for name, entry in entries.items():
        yield _read_entry(folder, part, name, entry, present)


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
    if not isinstance(label, str) or label not in LABELS:
        return Skipped(
            metadata,
            f"the entry {name!r} has the label {label!r}; it must be REAL or FAKE",
        )
    if name not in present:
        return Skipped(
            str(folder / name),
            "listed in metadata.json, but there is no such file; unpack this part again",
        )
    is_fake = LABELS[label]
    return Video(folder / name, part, is_fake, Path(original if is_fake else name).stem)


def _is_plain(name: str) -> bool:
    """Whether a name from metadata.json names a file in its own folder, and its stem one in ours: no `/`, `..` or the like."""
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


def _no_original(video: Video, original: Video | None, root: Path) -> str:
    if video.original == video.name:
        return 'a FAKE whose metadata.json entry names no "original"; its faces cannot be found without it'
    if original is not None:
        return f"its original {video.original} is itself a FAKE; correct metadata.json"
    return f"its original {video.original} is not among the videos below {root}; add the part that holds it"
