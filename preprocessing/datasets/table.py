"""Read any data set from a table of its files: videos, or crops that exist already.

Reads  a CSV with the columns path,label and, optionally, original, technique, split,
       video. A row is a video, or a picture that shows one face.
path:  inside DATA, relative to it. label: 0 or 1, or real or fake.
original: of a fake: path of a listed video, or its name. video: the name; several
       pictures of one video share it. If not given, the path without its ending, with
       `_` between folders. Pictures without a split, of a video whose others have one,
       are named NAME_no_split and are in no fold.
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from preprocessing.dataset import (
    SPLITS,
    Dataset,
    Skipped,
    Unused,
    Video,
    make_dataset,
    parse_label,
)
from preprocessing.video import SUFFIXES
from runtime.cli import UserError
from runtime.files import read_csv_rows, readable_names

MAX_NAME = 255  # bytes of a file's name
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def read_dataset(root: Path, file: Path) -> Dataset:
    """Read the rows of a table; those that cannot be used are listed in `skipped`.

    Raises:
        UserError: the table cannot be read or lacks a column.
    """
    rows = read_csv_rows(file, ("path", "label"))
    skipped: list[Skipped] = []
    seen: set[Path] = set()
    present = FilesPresent()
    groups: dict[str, list[tuple[Path, dict[str, str]]]] = defaultdict(list)
    for row in rows:
        try:
            path = resolve_inside(root, row["path"])
            if path in seen:
                raise UserError(f"{row['path']}: is listed twice; the first row counts")
            seen.add(path)
            _check(row)
            if path not in present:
                raise UserError(f"{row['path']}: there is no such file below {root}")
        except UserError as error:
            skipped.append(Skipped(str(file), str(error)))
            continue
        groups[row.get("video") or name_of(row["path"])].append((path, row))
    items: list[Video | Skipped] = []
    name_of_path = {
        path: name for name, members in groups.items() for path, _ in members
    }
    for name, members in groups.items():
        # pictures that the table's split leaves out do not take the others with them
        outside = [member for member in members if not member[1].get("split")]
        if 0 < len(outside) < len(members):
            inside = [member for member in members if member[1].get("split")]
            items += _make_video(file, name, inside)
            items += _make_video(file, f"{name}_no_split", outside)
        else:
            items += _make_video(file, name, members)
    names = {item.name for item in items if isinstance(item, Video)}
    items = [
        _with_original(root, item, name_of_path, names, skipped)
        if isinstance(item, Video) and item.original != item.name
        else item
        for item in items
    ]
    return make_dataset(root, [*items, *skipped])


def _with_original(
    root: Path,
    video: Video,
    name_of_path: dict[Path, str],
    names: set[str],
    notes: list[Skipped],
) -> Video:
    """The video with its original's name, given as a listed path or as a name."""
    try:
        by_path = name_of_path.get(resolve_inside(root, video.original))
    except UserError:
        by_path = None
    if name := by_path or (video.original if video.original in names else None):
        return replace(video, original=name)
    notes.append(
        Unused(str(video.path), f"its original {video.original!r} is not in the table")
    )
    return replace(video, original=video.name)


class FilesPresent:
    """Whether files exist, from one listing of each folder."""

    def __init__(self) -> None:
        self._names: dict[Path, set[str]] = {}

    def __contains__(self, path: Path) -> bool:
        if path.parent not in self._names:
            self._names[path.parent] = readable_names(path.parent)
        return path.name in self._names[path.parent]


def resolve_inside(root: Path, text: str) -> Path:
    """The path of a listed file.

    Raises:
        UserError: it is absolute, has a NUL, leaves the folder, or is no name of a file.
    """
    path = Path(text.replace("\\", "/"))
    try:
        is_name = all(len(os.fsencode(part)) <= MAX_NAME for part in path.parts)
    except UnicodeEncodeError:
        is_name = False
    if (
        not is_name
        or path.is_absolute()
        or ".." in path.parts
        or "\0" in text
        or not path.parts
    ):
        raise UserError(f"{text!r} is no path inside {root}; correct it")
    return root / path


def name_of(path: str) -> str:
    """A file's path as a name: without its ending, `_` between folders."""
    return "_".join(Path(path.replace("\\", "/")).with_suffix("").parts)


def _check(row: dict[str, str]) -> None:
    """Raise a `UserError` for a row with a bad label, split, name or ending."""
    where = row["path"]
    try:
        parse_label(row["label"])
    except ValueError as error:
        raise UserError(
            f"{where}: the label {row['label']!r} must be 0, 1, real or fake"
        ) from error
    if (split := row.get("split", "")) not in ("", *SPLITS):
        raise UserError(f"{where}: the split {split!r} must be {', '.join(SPLITS)}")
    name = row.get("video") or name_of(where)
    if not is_plain(name):
        raise UserError(f"{where}: {name!r} cannot be the name of a video")
    suffix = Path(where).suffix.lower()
    if suffix not in SUFFIXES + PICTURES:
        raise UserError(
            f"{where}: is neither a video ({', '.join(SUFFIXES)}) nor a picture "
            f"({', '.join(PICTURES)})"
        )


def is_plain(name: str) -> bool:
    """Whether a name is safe as the name of a folder."""
    return (
        name != ""
        and Path(name).name == name
        and not name.startswith(".")
        and name.isprintable()
        and len(name.encode()) <= MAX_NAME - len(".json")
    )


def check_pictures(name: str, pictures: Sequence[Path]) -> None:
    """Raise a `UserError` if they cannot be the crops of one video.

    One folder holds them, and each stem is there once: it names landmarks.
    """
    if len({path.parent for path in pictures}) > 1:
        raise UserError(
            f"{name}: its pictures are in several folders; name a video for each"
        )
    if len({path.stem for path in pictures}) < len(pictures):
        raise UserError(f"{name}: two of its pictures differ in their ending only")


def _make_video(
    file: Path, name: str, members: Sequence[tuple[Path, dict[str, str]]]
) -> Iterable[Video | Skipped]:
    """One video, or the crops of one, from its rows."""
    path, first = members[0]
    crops = tuple(each for each, _ in members if each.suffix.lower() in PICTURES)
    if len(members) > 1 and len(crops) < len(members):
        yield Skipped(
            str(file), f"{name}: {len(members)} rows have this name; one video each"
        )
        return
    try:
        check_pictures(name, crops)
    except UserError as error:
        yield Skipped(str(file), str(error))
        return
    for _, row in members:
        if changed := [
            column
            for column in ("label", "technique", "split", "original")
            if row.get(column) != first.get(column)
        ]:
            yield Skipped(
                str(file),
                f"{name}: its rows differ in {changed[0]} "
                f"({first.get(changed[0])!r} and {row.get(changed[0])!r})",
            )
            return
    yield Video(
        path,
        name,
        bool(parse_label(first["label"])),
        first.get("original") or name,
        technique=first.get("technique", ""),
        split=first.get("split", ""),
        crops=crops,
    )
