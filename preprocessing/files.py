"""Files that are written whole or not at all: what has its final name is complete, whatever interrupted the writer.

A file or folder is made under a temporary name beside its own (`.NAME.tmp`) and renamed. If the work inside fails, the
temporary is removed; if the process is killed, the next run overwrites it. What the disk refuses is a `MachineError`.
"""

import csv
import errno
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from preprocessing.cli import MachineError

REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "make the folder writable, or choose another"),
    **dict.fromkeys((errno.EEXIST, errno.ENOTDIR, errno.EISDIR), "move away what is in its place, or choose another"),
    errno.EFBIG: "allow larger files, or choose another folder",
}
LEFT_OUT = ".left_out"  # in a folder: what could not be made of it, one reason a line

# How tables are read and written: file names that are no UTF-8 come back as the bytes they are.
TABLE = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}


def file_size(path: Path) -> int:
    """Bytes of a file, 0 where it cannot be read. Large files first keeps all processes busy to the end."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def names_in(folder: Path) -> set[str]:
    """The names of what is in a folder, in one look; none where there is no such folder."""
    try:
        return set(os.listdir(folder))
    except FileNotFoundError:
        return set()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise what the disk refuses inside the block as a `MachineError` that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        remedy = f"{REMEDIES[error.errno]}, then run the same command again: what is finished is kept"
        raise MachineError(f"{path}: cannot be written ({error.strerror}); {remedy}") from error


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name when the block ends without an error."""
    temporary = _temporary(path)
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())  # the name must not reach the disk before the content
            temporary.replace(path)
        except BaseException:
            remove_unfinished(path)
            raise


@contextmanager
def whole_folder(folder: Path, left_out: Sequence[str] = ()) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its name when the block ends without an error.

    `left_out` may grow inside the block; what it holds then is kept in the folder, and `reasons` reads it.
    """
    temporary = _temporary(folder)
    with writing(folder):
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            yield temporary
            if left_out:
                (temporary / LEFT_OUT).write_text("\n".join(left_out), encoding="utf-8")
            temporary.rename(folder)
        except BaseException:
            remove_unfinished(folder)
            raise


def reasons(folder: Path) -> list[str]:
    """What `whole_folder` was told had to be left out; nothing for a file."""
    try:
        return (folder / LEFT_OUT).read_text(encoding="utf-8").split("\n")
    except (FileNotFoundError, NotADirectoryError):
        return []


def remove_unfinished(path: Path) -> None:
    """Remove what a writer of this file or folder left when it was killed."""
    temporary = _temporary(path)
    if temporary.is_dir():
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        try:
            temporary.unlink(missing_ok=True)
        except OSError:
            pass  # the error that brought us here says more


@contextmanager
def whole_picture(path: Path, width: float, height: float) -> Iterator["matplotlib.figure.Figure"]:  # noqa: F821
    """A matplotlib figure of so many inches, which is written as a PNG when the block ends without an error."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    yield figure
    with whole_file(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    """A UTF-8 CSV file with a header and plain line ends."""
    with whole_file(path) as temporary, open(temporary, "w", **TABLE) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")
