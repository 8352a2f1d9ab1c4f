"""Which videos are predicted: a folder's, those of a list, or one file."""

import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from preprocessing.datasets.table import resolve_inside
from preprocessing.video import SUFFIXES, describe_unused, sort_files
from runtime.cli import UserError
from runtime.files import read_csv_rows, readable_names


class TestVideos(NamedTuple):
    """What is to be predicted.

    paths: of the videos, by the name in the submission.
    missing: why a listed name has no video.
    order: all of these names, in the submission's order.
    unused: by reason the files and folders that are not used.
    """

    paths: dict[str, Path]
    missing: dict[str, str]
    order: list[str]
    unused: dict[str, list[Path]]


def find_test_videos(
    test_dir: Path, listed: Path | None = None, recursive: bool = False
) -> TestVideos:
    """The videos of a folder, or those that a list names, in its order.

    Raises:
        UserError: there is nothing to predict, or the list cannot be read.
    """
    if listed:
        return _read_list(test_dir, listed)
    videos, unused = find_videos(test_dir, recursive)
    top = test_dir if test_dir.is_dir() else test_dir.parent
    paths = {path.relative_to(top).as_posix(): path for path in videos}
    return TestVideos(paths, {}, sorted(paths), unused)


def _read_list(test_dir: Path, listed: Path) -> TestVideos:
    """The videos of a list; a name that is there twice counts once."""
    if not test_dir.is_dir():
        raise UserError(f"{test_dir}: no such folder; --list names videos in a folder")
    column, rows = _list_rows(listed)
    if not rows:
        raise UserError(f"{listed}: lists no video")
    paths: dict[str, Path] = {}
    missing: dict[str, str] = {}
    order: dict[Path, str] = {}
    similar = _SimilarNames()
    for row in rows:
        name, reason = row[column], ""
        try:
            path = resolve_inside(test_dir, name)
        except UserError as error:
            path, reason = Path(name), str(error)
        if path in order:
            print(
                f"{listed}: {name} is listed twice; the submission has it once",
                file=sys.stderr,
            )
            continue
        order[path] = name
        if not reason and not path.is_file():
            path = similar.find(path) or path
        if not reason and path.is_file():
            paths[name] = path
        else:
            missing[name] = reason or f"listed, but {path} is no file"
    return TestVideos(paths, missing, [*order.values()], {})


class _SimilarNames:
    """Finds files whose names differ by the ending, its case or blanks around."""

    def __init__(self) -> None:
        self._folders: dict[Path, dict[str, list[Path]]] = {}

    def find(self, path: Path) -> Path | None:
        """The only video of this name, without an ending too; None if there is none."""
        if path.parent not in self._folders:
            found: dict[str, list[Path]] = defaultdict(list)
            for name in readable_names(path.parent):
                each = path.parent / name
                if each.suffix.strip().lower() in SUFFIXES:
                    full = name.strip()
                    for key in {full.lower(), Path(full).stem}:
                        found[key].append(each)
            self._folders[path.parent] = found
        name = path.name.strip()
        names = self._folders[path.parent]
        matches = names.get(name.lower()) or names.get(name) or []
        return matches[0] if len(matches) == 1 else None


def _list_rows(listed: Path) -> tuple[str, list[dict[str, str]]]:
    """The rows of a list, and the column of its videos: filename or path."""
    try:
        return "filename", read_csv_rows(listed, ("filename",))
    except UserError as error:
        try:
            return "path", read_csv_rows(listed, ("path",))
        except UserError as other:
            # which of the two columns the user has decides which error helps
            has_path = "must have the columns" not in str(other)
            raise (other if has_path else error) from None


def find_videos(
    test_dir: Path, recursive: bool = False
) -> tuple[list[Path], dict[str, list[Path]]]:
    """The videos of a folder, sorted by name, or the one file given.

    Args:
        recursive: search the folders below it too.

    Returns:
        the videos, and by reason the files and folders that are not used.

    Raises:
        UserError: there is nothing there to predict.
    """
    if test_dir.is_file():
        return [test_dir], {}
    if not test_dir.is_dir():
        raise UserError(f"{test_dir}: no such folder or video")
    found = (
        (path for path in test_dir.rglob("*") if path.is_file())
        if recursive
        else test_dir.iterdir()
    )
    videos, unused = sort_files(found)
    if not videos:
        others = "".join(f"; {describe_unused(*each)}" for each in unused.items())
        raise UserError(f"{test_dir}: holds no video ({', '.join(SUFFIXES)}){others}")
    return videos, unused
