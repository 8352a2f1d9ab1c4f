"""All preprocessing steps, one after the other, in the same workers: they import and load once. Step 6 if --format asks.

    python -m preprocessing --root-dir DATA

Reads  DATA/dfdc_train_part_N/{metadata.json, *.mp4}
Writes DATA/{boxes, crops, landmarks, diffs, folds.csv, failures.csv, shards}; `--help` of each step says more
"""

import sys
from importlib import import_module

from preprocessing.crop_table import FORMATS
from preprocessing.step import step_parser
from runtime.cli import run_main
from runtime.device import add_device_option
from runtime.executor import executor_arguments, executor_options, persistent_workers

PACKING = "06_pack_shards"
STEPS = (
    "01_detect_faces",
    "02_extract_crops",
    "03_extract_landmarks",
    "04_make_diffs",
    "05_make_folds",
)
DETECTING = ("01_detect_faces", "03_extract_landmarks")


def main(argv: list[str] | None = None) -> int:
    parser = step_parser(__doc__)
    add_device_option(parser)
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="files",
        help="of the crops for training: files, or WebDataset "
        "shards as well, some large files for a file system that does not like millions",
    )
    options = parser.parse_args(argv)
    common = [
        "--root-dir",
        options.root_dir,
        "--max-failures",
        options.max_failures,
        *executor_arguments(options),
    ]
    with persistent_workers(executor_options(options)):
        for step in (*STEPS, PACKING) if options.format == "wds" else STEPS:
            device = ["--device", options.device] if step in DETECTING else []
            if status := import_module(f"preprocessing.{step}").main(
                [*map(str, common), *device]
            ):
                print(
                    f"{step}: too many videos failed, see above; the steps after it were not run",
                    file=sys.stderr,
                )
                return status
    return 0


if __name__ == "__main__":
    run_main(main)
