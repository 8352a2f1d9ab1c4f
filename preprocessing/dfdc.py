"""A DFDC download as it lies on disk: part folders, their metadata.json, and which fake was made from which original.

Reads  DATA/dfdc_train_part_N/metadata.json = {"name.mp4": {"label": "FAKE", "original": "other.mp4"}, …}
Names what the steps write: the functions at the end are the only place where those paths are spelled.
"""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from preprocessing.cli import UserError
from preprocessing.files import names_in

PART_FOLDER = re.compile(r"dfdc_train_part_(\d+)$")
LABELS = {"REAL": False, "FAKE": True}


@dataclass(frozen=True)
class Video:
    """One listed video. `original` is the video that a fake was made from; a real video is its own original."""

    path: Path
    part: int
    is_fake: bool
    original: str  # without its suffix, as `name`

    @property
    def name(self) -> str:
        return self.path.stem


@dataclass(frozen=True)
class Trouble:
    """A file that had to be left out, or part of it, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class Dataset:
    """All usable videos of a DFDC folder, sorted by part and name, and what had to be left out."""

    root: Path
    videos: list[Video]
    troubles: list[Trouble]

    @property
    def reals(self) -> list[Video]:
        return [video for video in self.videos if not video.is_fake]

    @property
    def fakes(self) -> list[Video]:
        return [video for video in self.videos if video.is_fake]


def read_dataset(root: Path) -> Dataset:
    """Read every part's metadata.json below `root`.

    An entry that cannot be used is left out and named in `troubles`; the rest is kept.

    Raises:
        UserError: there is no such folder, it holds no part folder, or no video in it can be used.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the folder that holds dfdc_train_part_0, dfdc_train_part_1, …")
    parts = sorted((int(m[1]), folder) for folder in root.iterdir() if (m := PART_FOLDER.search(folder.name)))
    if not parts:
        raise UserError(f"{root}: holds no folder named dfdc_train_part_N; unpack the DFDC archives into it")
    videos: dict[str, Video] = {}
    troubles: list[Trouble] = []
    for part, folder in parts:
        for item in _read_part(folder, part):
            if isinstance(item, Video) and item.name in videos:
                item = Trouble(str(item.path), f"the name {item.name} is taken by {videos[item.name].path}; rename one")
            if isinstance(item, Trouble):
                troubles.append(item)
            else:
                videos[item.name] = item
    for video in [v for v in videos.values() if v.is_fake]:
        original = videos.get(video.original)
        if original is None or original.is_fake:
            troubles.append(Trouble(str(video.path), _no_original(video, original, root)))
            del videos[video.name]
    if not videos:
        reasons = "".join(f"\n  {trouble.file}: {trouble.reason}" for trouble in troubles[:5])
        raise UserError(f"{root}: no usable video in {len(parts)} part folders{reasons}")
    return Dataset(root, sorted(videos.values(), key=lambda video: (video.part, video.name)), troubles)


def read_metadata(path: Path) -> dict[str, dict]:
    """A metadata.json as it is.

    Raises:
        UserError: the file is missing or is not a JSON object of objects.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); unpack this part again") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); unpack this part again") from error
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise UserError(f'{path}: must map each file name to an object such as {{"label": "REAL"}}')
    return entries


def _read_part(folder: Path, part: int) -> Iterable[Video | Trouble]:
    metadata = folder / "metadata.json"
    try:
        entries = read_metadata(metadata)
    except UserError as error:
        yield Trouble(str(metadata), str(error).removeprefix(f"{metadata}: "))
        return
    present = {entry.name for entry in folder.iterdir()}
    for name, entry in entries.items():
        yield _read_entry(folder, part, name, entry, present)


def _read_entry(folder: Path, part: int, name: str, entry: dict, present: set[str]) -> Video | Trouble:
    metadata = str(folder / "metadata.json")
    label, original = entry.get("label"), entry.get("original") or name
    for text in (name, original):
        if not isinstance(text, str) or not _is_plain(text):
            return Trouble(metadata, f"{text!r} is not a plain file name; correct the entry {name!r}")
    if not isinstance(label, str) or label not in LABELS:
        return Trouble(metadata, f"the entry {name!r} has the label {label!r}; it must be REAL or FAKE")
    if name not in present:
        return Trouble(str(folder / name), "listed in metadata.json, but there is no such file; unpack this part again")
    is_fake = LABELS[label]
    return Video(folder / name, part, is_fake, Path(original if is_fake else name).stem)


def _is_plain(name: str) -> bool:
    """Whether a name from metadata.json names a file in its own folder, and its stem one in ours: no `/`, `..` or the like."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return name != "" and Path(name).name == name and not name.startswith(".") and "\0" not in name


def _no_original(video: Video, original: Video | None, root: Path) -> str:
    if video.original == video.name:
        return 'a FAKE whose metadata.json entry names no "original"; its faces cannot be found without it'
    if original is not None:
        return f"its original {video.original} is itself a FAKE; correct metadata.json"
    return f"its original {video.original} is not among the videos below {root}; add the part that holds it"


def boxes_file(root: Path, video: str) -> Path:
    return root / "boxes" / f"{video}.json"


def crops_folder(root: Path, video: str) -> Path:
    return root / "crops" / video


def cropped_videos(root: Path) -> set[str]:
    """The names of the videos that step 2 has cut, in one look at the disk."""
    return names_in(root / "crops")


def landmarks_folder(root: Path, video: str) -> Path:
    return root / "landmarks" / video


def diffs_folder(root: Path, video: str) -> Path:
    return root / "diffs" / video


def folds_file(root: Path) -> Path:
    return root / "folds.csv"


def index_file(root: Path) -> Path:
    """Of the shards of step 6, which lie beside it."""
    return root / "shards" / "index.csv"
