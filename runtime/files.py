"""Atomic writes: a file or folder that has its final name is complete.

Everything is written under a temporary name beside its own (`.NAME.tmp`) and renamed.
If the writer fails, the temporary is removed; if it is killed, the next run overwrites
it. What the disk refuses becomes a `MachineError`.
"""

import csv
import errno
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO

from runtime.cli import MachineError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space"),
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS),
        "make the folder writable, or choose another",
    ),
    **dict.fromkeys(
        (errno.EEXIST, errno.ENOTDIR, errno.EISDIR),
        "move away what is in its place, or choose another",
    ),
    errno.EFBIG: "allow larger files, or choose another folder",
}
SKIPPED_FILE = ".left_out"  # in a folder: why a part of it is missing, a reason a line


def file_size(path: Path) -> int:
    """Bytes of a file, 0 where it cannot be read."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def list_names(folder: Path) -> set[str]:
    """The names in a folder; an empty set where there is no such folder."""
    try:
        return set(os.listdir(folder))
    except FileNotFoundError:
        return set()


def open_csv(path: Path, mode: Literal["r", "w"] = "r") -> TextIO:
    """Open a CSV file as UTF-8.

    File names that are no UTF-8 survive a round trip as the bytes they are.
    """
    return open(path, mode, newline="", encoding="utf-8", errors="surrogateescape")


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Raise what the disk refuses inside the block as a `MachineError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        raise MachineError(
            f"{path}: cannot be written ({error.strerror}); {REMEDIES[error.errno]}, "
            "then run the same command again: what is finished is kept"
        ) from error


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a temporary path, renamed to `path` when the block succeeds."""
    temporary = _temporary_path(path)
    with write_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with open(temporary, "rb") as file:
                # the name must not reach the disk before the content
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            remove_partial(path)
            raise


@contextmanager
def atomic_folder(folder: Path, skipped: Sequence[str] = ()) -> Iterator[Path]:
    """Give a temporary folder, renamed to `folder` when the block succeeds.

    Args:
        skipped: reasons why a part of the output is missing. The list may grow inside
            the block; it is stored in the folder, where `skip_reasons` reads it.
    """
    temporary = _temporary_path(folder)
    with write_errors(folder):
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            yield temporary
            if skipped:
                text = "\n".join(skipped)
                (temporary / SKIPPED_FILE).write_text(text, encoding="utf-8")
            temporary.rename(folder)
        except BaseException:
            remove_partial(folder)
            raise


def skip_reasons(folder: Path) -> list[str]:
    """The reasons that `atomic_folder` stored; an empty list for a file."""
    try:
        return (folder / SKIPPED_FILE).read_text(encoding="utf-8").split("\n")
    except (FileNotFoundError, NotADirectoryError):
        return []


def remove_partial(path: Path) -> None:
    """Remove the temporary file or folder of a writer that was killed."""
    temporary = _temporary_path(path)
    if temporary.is_dir():
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        try:
            temporary.unlink(missing_ok=True)
        except OSError:
            pass  # the error that led here says more


@contextmanager
def save_figure(path: Path, width: float, height: float) -> Iterator["Figure"]:
    """Give a matplotlib figure, saved as a PNG when the block ends. Size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    yield figure
    with atomic_file(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))


def write_csv(
    path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]
) -> None:
    """Write a CSV file with a header and `\\n` line ends, atomically."""
    with atomic_file(path) as temporary, open_csv(temporary, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _temporary_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")
