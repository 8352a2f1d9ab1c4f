"""Shared by the numbered steps: options, resume, failures.csv, exit status.

Writes DATA/failures.csv: step,file,reason for each file that was skipped or failed
"""

import argparse
import csv
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeVar

from preprocessing.dataset import Dataset, Skipped, Unused
from preprocessing.datasets import AUTO, list_readers, read_dataset
from preprocessing.layout import written_tables
from runtime.cli import MachineError, UserError, fraction, make_parser
from runtime.executor import (
    add_executor_options,
    error_reason,
    executor_options,
    map_items,
)
from runtime.files import (
    file_size,
    list_names,
    open_csv,
    remove_partial,
    skip_reasons,
    write_csv,
    write_errors,
)

MAX_FAILURES = 0.02  # fraction of the videos; DFDC has a few that cannot be decoded
MAX_SHOWN = 5  # skipped files printed to stderr


class StepItem(Protocol):
    """An input of a step: a video, or a shard."""

    @property
    def path(self) -> Path: ...

    @property
    def name(self) -> str: ...


Item = TypeVar("Item", bound=StepItem)


def step_parser(
    description: str | None, has_dataset: bool = True
) -> argparse.ArgumentParser:
    """A parser with the common options of all numbered steps.

    Args:
        has_dataset: whether the step takes `--dataset` and `--output-dir`.
    """
    parser = make_parser(description)
    parser.add_argument(
        "--root-dir",
        type=Path,
        required=True,
        help="folder that holds the data set: dfdc_train_part_0, …, or another layout",
    )
    if has_dataset:
        parser.add_argument(
            "--output-dir",
            type=Path,
            help="for all that the steps write; --root-dir if not given",
        )
        parser.add_argument(
            "--dataset",
            default=AUTO,
            metavar="NAME",
            help=f"the layout: {', '.join(list_readers())} or auto, by what is there; "
            "faceforensics/c23 for one compression; or a table of any other, FILE.csv "
            "with path,label,original,technique,split,video, or DeepfakeBench's "
            "FILE.json",
        )
    parser.add_argument(
        "--max-failures",
        type=fraction,
        default=MAX_FAILURES,
        help="fraction of the videos that may fail before the exit status is 1, 0 to 1",
    )
    # for `python -m preprocessing`, which counts them once
    parser.add_argument("--ignore-skipped", action="store_true", help=argparse.SUPPRESS)
    add_executor_options(parser)
    return parser


def output_root(options: argparse.Namespace) -> Path:
    """The folder of the steps' outputs."""
    return getattr(options, "output_dir", None) or options.root_dir


def open_dataset(options: argparse.Namespace) -> Dataset:
    """Read the data set that `step_parser`'s options name.

    Raises:
        UserError: there is none, or no usable video.
    """
    own = options.root_dir / options.dataset
    if (
        own.resolve() in map(Path.resolve, written_tables(output_root(options)))
        and own.exists()
    ):
        raise UserError(
            f"{own}: would be overwritten by step 5; rename it, or give --output-dir"
        )
    dataset = read_dataset(options.root_dir, options.dataset)
    return replace(dataset, root=output_root(options))


def run_step(
    task: Callable[[Item], None],
    items: Sequence[Item],
    output: Callable[[Item], Path],
    options: argparse.Namespace,
    step: str,
    skipped: Sequence[Skipped] = (),
    unit: str = "video",
    imports: Sequence[str] = (),
) -> int:
    """Run one numbered step over the items whose `output` does not exist yet.

    Args:
        task: writes one item's output atomically, with the skip reasons of its missing
            parts (`atomic_folder`).
        options: options of `step_parser`.
        step: the step's name in the progress bar and in failures.csv.
        skipped: what `read_dataset` skipped; counts as failed, but for `Unused`.
        imports: as for `map_items`.

    Returns:
        exit status: 0, or 1 if more than `--max-failures` of the items failed.

    Raises:
        MachineError: the disk or the GPU failed.
    """
    folders = {output(item).parent for item in items}
    present = {folder: list_names(folder) for folder in folders}
    missing = [
        item for item in items if output(item).name not in present[output(item).parent]
    ]
    # large files first, so that all workers stay busy until the end
    missing.sort(key=lambda item: file_size(item.path), reverse=True)
    failed: dict[str, Skipped] = {}
    executor = executor_options(options)
    probe: AbstractContextManager[Path] = nullcontext(Path())
    if executor.is_cluster:
        probe = _shared_path_probe(output_root(options))
    with probe as shared_path:
        for item, _, error in map_items(
            task, missing, executor, step, unit, shared_path, imports
        ):
            if isinstance(error, MachineError):
                raise error
            if error is not None:
                reason = error_reason(error, item.path)
                failed[item.name] = Skipped(str(item.path), reason)
                remove_partial(output(item))
    all_skipped = [*skipped]
    for item in items:
        reasons = skip_reasons(output(item))
        partial = [Skipped(str(item.path), reason) for reason in reasons]
        all_skipped += [failed[item.name]] if item.name in failed else partial
    report = _write_failures(output_root(options) / "failures.csv", step, all_skipped)
    done, present_count = len(missing) - len(failed), len(items) - len(missing)
    print(
        f"{step}: {done} {unit}s done, {present_count} were there, "
        f"{len(failed)} failed{report}"
    )
    counted = [] if options.ignore_skipped else skipped
    return exit_status(step, len(failed), len(items), counted, options.max_failures)


def exit_status(
    name: str,
    failed: int,
    total: int,
    skipped: Sequence[Skipped],
    max_failures: float,
) -> int:
    """0, or 1 with a line on stderr where more than `max_failures` of all failed.

    Args:
        failed, total: of the videos that were worked on.
        skipped: by the reader of the data set.
    """
    left_out = sum(not isinstance(each, Unused) for each in skipped)
    if failed + left_out <= max_failures * (total + left_out):
        return 0
    print(
        f"{name}: {failed + left_out} of {total + left_out} failed or were skipped, "
        f"more than --max-failures {max_failures:g} allows",
        file=sys.stderr,
    )
    return 1


@contextmanager
def _shared_path_probe(root: Path) -> Iterator[Path]:
    """A temporary file in DATA: a machine that does not see it has other data."""
    with write_errors(root):
        root.mkdir(parents=True, exist_ok=True)
    with (
        write_errors(root),
        tempfile.NamedTemporaryFile(prefix=".worked_on_", dir=root) as file,
    ):
        yield Path(file.name)


def _write_failures(path: Path, step: str, skipped: Sequence[Skipped]) -> str:
    """Replace this step's rows in failures.csv and print the first of them."""
    kept: list[list[str]] = []
    if path.exists():
        with open_csv(path) as file:
            rows = [row for row in csv.reader(file) if row]
        kept = [row for row in rows if row[0] not in (step, "step")]
    rows = kept + [[step, item.file, item.reason] for item in skipped]
    if rows or path.exists():
        write_csv(path, ["step", "file", "reason"], rows)
    for item in skipped[:MAX_SHOWN]:
        print(f"{step}: {item.file}: {item.reason}", file=sys.stderr)
    if len(skipped) > MAX_SHOWN:
        more = len(skipped) - MAX_SHOWN
        print(f"{step}: … and {more} more in {path}", file=sys.stderr)
    return f"; {len(skipped)} skipped or failed, listed in {path}" if skipped else ""
