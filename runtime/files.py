"""Atomic writes, and tables as users save them.

A file or folder that has its final name is complete: everything is written under a
temporary name beside its own (`.NAME.tmp`) and renamed. If the writer fails, the
temporary is removed; if it is killed, the next run overwrites it. What the disk refuses
becomes a `MachineError`.

The project's own CSV files are UTF-8 with commas (`open_csv`, `write_csv`). A table
that comes from a user is read by `read_csv_rows`, also as Excel and editors save it.
"""

import codecs
import csv
import errno
import io
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO

from runtime.cli import MachineError, UserError

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
DELIMITERS: tuple[str, ...] = (",", ";", "\t")
# Excel's first line that names the delimiter, `sep=;`
DELIMITER_LINE = re.compile(r'"?sep=([^\w "\r\n])"?[\s,;]*$', re.IGNORECASE)
CONTROL_CHARACTER = re.compile(r"[\x00-\x08\x0e-\x1f]")
MAX_QUOTED = 100  # characters of a user's file in an error


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


def readable_names(folder: Path) -> set[str]:
    """`list_names`; an empty set also where the folder cannot be read or is a file."""
    try:
        return list_names(folder)
    except OSError:
        return set()


def open_csv(path: Path, mode: Literal["r", "w"] = "r") -> TextIO:
    """Open a CSV file as UTF-8.

    File names that are no UTF-8 survive a round trip as the bytes they are.
    """
    return open(path, mode, newline="", encoding="utf-8", errors="surrogateescape")


def read_csv_rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Read a table that a user has made, perhaps with Excel or an editor.

    The delimiter is the one of `DELIMITERS` that gives the columns, or the one that a
    first line `sep=;` names; the encoding UTF-8, with or without a byte order mark, or
    UTF-16 with one. Blank lines are ignored, and blanks around cells are removed. Names
    of files may begin or end with a blank: in the first of `columns` they are removed
    only where the header, or every row after its delimiter, has one.

    Args:
        columns: that every row must have; the first identifies the row.

    Returns:
        The cells of each row by column; those that are missing at its end are empty.

    Raises:
        UserError: the file cannot be read, is no CSV, lacks a column, or has a row
            without one of the columns or with more cells than the header.
    """
    text = _read_text(path)
    lines = list(io.StringIO(text, newline=""))
    delimiters = DELIMITERS
    if lines and (match := DELIMITER_LINE.match(lines[0])):
        delimiters = (match[1], *DELIMITERS)
        lines[0] = "\n"  # so that the other lines keep their numbers
    try:
        headers = {
            delimiter: next(_split_rows(lines, delimiter), (0, []))[1]
            for delimiter in delimiters
        }
        for delimiter, header in headers.items():
            if {*columns} <= {name.strip() for name in header}:
                rows = list(_split_rows(lines, delimiter))[1:]
                return _rows_by_column(path, columns, header, rows)
    except csv.Error as error:
        raise UserError(
            f"{path}: is not a CSV file ({error}); close its quotation marks"
        ) from error
    if CONTROL_CHARACTER.search(text):
        raise _not_csv(path)
    widest = max(headers.values(), key=len)
    found = ",".join(widest).strip()
    raise UserError(
        f"{path}: must have the columns {','.join(columns)}; "
        + (f"it has {_quote(found, '')}" if found else "it is empty")
    )


def _read_text(path: Path) -> str:
    """The text of a file of UTF-8, or of UTF-16 with a byte order mark.

    Other bytes are kept as in `open_csv`.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            text = content.decode("utf-16")
        else:
            text = content.decode("utf-8-sig", errors="surrogateescape")
    except UnicodeDecodeError as error:
        raise _not_csv(path) from error
    text = text.rstrip("\x1a")  # DOS's end of a file
    if "\0" in text:
        raise _not_csv(path)
    return text


def _not_csv(path: Path) -> UserError:
    return UserError(f"{path}: is not a CSV text file; save it as CSV (UTF-8)")


def _split_rows(
    lines: Sequence[str], delimiter: str
) -> Iterator[tuple[int, list[str]]]:
    """The number of its first line and the cells of each row that is not blank."""
    # a cell that is quoted after a blank; otherwise the blank may belong to a name
    quoted = any(f'{delimiter} "' in line for line in lines)
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=quoted)
    number = 1
    for cells in reader:
        if any(cell.strip() for cell in cells):
            yield number, cells
        number = reader.line_num + 1


def _rows_by_column(
    path: Path,
    columns: Sequence[str],
    header: Sequence[str],
    numbered_rows: Sequence[tuple[int, list[str]]],
) -> list[dict[str, str]]:
    """The cells by the header's names; see `read_csv_rows`."""
    names = [name.strip() for name in header]
    if twice := [column for column in columns if names.count(column) > 1]:
        raise UserError(f"{path}: has the column {twice[0]} twice; remove one of them")
    rows = []
    for number, cells in numbered_rows:
        where = f"{path}: line {number}: {_quote(','.join(cells))}"
        if extra := [cell.strip() for cell in cells[len(names) :] if cell.strip()]:
            raise UserError(
                f"{where} has more columns than the header, {_quote(extra[0])} is the "
                "first; remove it, or put quotation marks around a cell with a comma"
            )
        cells += [""] * (len(names) - len(cells))
        row = {name: cell for name, cell in zip(names, cells) if name}
        if missing := [column for column in columns if not row[column].strip()]:
            raise UserError(
                f"{where} has no {missing[0]}; complete this row or remove it"
            )
        rows.append(row)
    key = columns[0]
    is_padded = key not in header or (
        key != names[0] and all(row[key][0].isspace() for row in rows)
    )
    return [
        {
            name: cell.strip() if name != key or is_padded else cell
            for name, cell in row.items()
        }
        for row in rows
    ]


def _quote(text: str, mark: str = "'") -> str:
    """A part of a user's file in one line that is not too long."""
    shown = repr(text)[1:-1]
    if len(shown) > MAX_QUOTED:
        shown = f"{shown[:MAX_QUOTED]}…"
    return f"{mark}{shown}{mark}"


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
                # names in it may be no UTF-8, see `open_csv`
                data = text.encode("utf-8", "surrogateescape")
                (temporary / SKIPPED_FILE).write_bytes(data)
            temporary.rename(folder)
        except BaseException:
            remove_partial(folder)
            raise


def skip_reasons(folder: Path) -> list[str]:
    """The reasons that `atomic_folder` stored; an empty list for a file."""
    try:
        data = (folder / SKIPPED_FILE).read_bytes()
        return data.decode("utf-8", "surrogateescape").split("\n")
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
