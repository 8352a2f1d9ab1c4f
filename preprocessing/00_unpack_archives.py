"""Step 0, optional: check and unpack the archives of the DFDC training set.

    python -m preprocessing.00_unpack_archives --archive-dir ZIPS --root-dir DATA \\
        [--delete-archives]

Reads  ZIPS/dfdc_train_part_NN.zip, Kaggle's fifty (docs/data.md), 472 GB in all
Writes DATA/dfdc_train_part_N/{metadata.json, *.mp4}. A part that has its name is
       complete: the check sums of all its files were right. DATA/failures.csv names
       damaged archives; download those again and type the same line.
       --delete-archives: each archive is deleted as soon as its part is complete, so
       that the disk needs room for the data set and one archive a worker.
"""

import re
import shutil
import sys
import zipfile
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from preprocessing.datasets.dfdc import PART_FOLDER
from preprocessing.step import run_step, step_parser
from runtime.cli import MachineError, UserError, run_main
from runtime.files import atomic_folder, list_names

ARCHIVE = re.compile(r"dfdc_train_part_(\d+)\.zip")
TIME_LIMIT = 4 * 3600.0  # seconds for an archive of 10 GB on a slow disk


@dataclass(frozen=True)
class Archive:
    """One archive, and the part that it holds."""

    path: Path
    part: int

    @property
    def name(self) -> str:
        return f"dfdc_train_part_{self.part}"


def unpack_archive(archive: Archive, root: Path, delete: bool) -> None:
    """Unpack one archive into DATA/dfdc_train_part_N, atomically.

    Raises:
        UserError: it is damaged, is no archive of a part, or a name in it leaves the
            folder.
        MachineError: there is no room for it.
    """
    try:
        with zipfile.ZipFile(archive.path) as file:
            members = [member for member in file.infolist() if not member.is_dir()]
            _check(archive, members, root)
            with atomic_folder(root / archive.name) as folder:
                for member in members:
                    # the check sum is verified at the end of the file
                    with (
                        file.open(member) as source,
                        open(folder / Path(member.filename).name, "xb") as target,
                    ):
                        shutil.copyfileobj(source, target, 1 << 20)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise UserError(
            f"{archive.path}: is damaged ({error}); download it again"
        ) from error
    except RuntimeError as error:  # encrypted
        raise UserError(f"{archive.path}: cannot be unpacked ({error})") from error
    if delete:
        archive.path.unlink()


def _check(archive: Archive, members: list[zipfile.ZipInfo], root: Path) -> None:
    """Refuse what is no part of DFDC, and what does not fit on the disk."""
    folders = {str(Path(member.filename).parent) for member in members}
    names = [Path(member.filename).name for member in members]
    if len({*names}) < len(names) or not {"", ".", ".."}.isdisjoint(names):
        raise UserError(f"{archive.path}: has a name twice, or one that is no file's")
    if "metadata.json" not in names or len(folders) > 1:
        raise UserError(
            f"{archive.path}: holds no dfdc_train_part_N/metadata.json; is this one of "
            "Kaggle's training archives?"
        )
    (folder,) = folders
    match = PART_FOLDER.fullmatch(folder)
    if folder != "." and not match:
        raise UserError(f"{archive.path}: holds the folder {folder!r}, no part of DFDC")
    if match and int(match[1]) != archive.part:
        raise UserError(
            f"{archive.path}: holds part {match[1]}, its name says {archive.part}; "
            "rename it"
        )
    root.mkdir(parents=True, exist_ok=True)
    needed = sum(member.file_size for member in members)
    free = shutil.disk_usage(root).free
    if needed > free:
        raise MachineError(
            f"{root}: {archive.path.name} needs {needed / 1e9:.1f} GB, "
            f"{free / 1e9:.1f} GB are free; free some space, or use --delete-archives, "
            "then run the same command again"
        )


def is_unpacked(archive: Archive, folder: Path) -> bool:
    """Whether a folder holds all files of an archive, with the right check sums."""
    try:
        with zipfile.ZipFile(archive.path) as file:
            return all(
                zlib.crc32((folder / Path(member.filename).name).read_bytes())
                == member.CRC
                for member in file.infolist()
                if not member.is_dir()
            )
    except (OSError, zipfile.BadZipFile, zlib.error):
        return False


def find_archives(folder: Path) -> list[Archive]:
    """The archives in a folder, by part."""
    matches = {
        folder / name: match
        for name in list_names(folder)
        if (match := ARCHIVE.fullmatch(name))
    }
    archives = [Archive(path, int(match[1])) for path, match in matches.items()]
    return sorted(archives, key=lambda archive: (archive.part, archive.path.name))


def main(argv: list[str] | None = None) -> int:
    parser = step_parser(__doc__, has_dataset=False)
    parser.add_argument(
        "--archive-dir", type=Path, required=True, help="folder of the archives"
    )
    parser.add_argument(
        "--delete-archives",
        action="store_true",
        help="delete each archive when its part is complete",
    )
    parser.set_defaults(time_limit=TIME_LIMIT, max_failures=0.0)
    options = parser.parse_args(argv)
    archives = find_archives(options.archive_dir)
    done = [
        name for name in list_names(options.root_dir) if PART_FOLDER.fullmatch(name)
    ]
    if not archives and not done:
        raise UserError(
            f"{options.archive_dir}: holds no dfdc_train_part_NN.zip; docs/data.md says "
            "where to get them"
        )
    status = run_step(
        partial(unpack_archive, root=options.root_dir, delete=options.delete_archives),
        archives,
        lambda archive: options.root_dir / archive.name,
        options,
        "0 unpack archives",
        unit="archive",
    )
    if options.delete_archives:
        # of parts that an earlier run unpacked
        for archive in archives:
            folder = options.root_dir / archive.name
            if not archive.path.exists() or not folder.is_dir():
                continue
            if is_unpacked(archive, folder):
                archive.path.unlink()
            else:
                print(
                    f"{archive.path}: kept, because {folder} does not hold all of its "
                    "files; move that folder away to unpack it again",
                    file=sys.stderr,
                )
                status = 1
    return status


if __name__ == "__main__":
    run_main(main)
