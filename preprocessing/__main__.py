"""Run all preprocessing steps in the same workers; step 6 only with --format wds, clips
only with --clips.

    python -m preprocessing --root-dir DATA

The workers import modules and load networks only once, and steps 1 and 2 decode a REAL
video once if it is undamaged and smaller than 4K.

Reads  DATA/dfdc_train_part_N/{metadata.json, *.mp4}, or another data set (--dataset)
Writes DATA/{boxes, crops, clips, landmarks, diffs, folds.csv, failures.csv, shards}; see the
       `--help` of each step; with --output-dir there
"""

import sys
from importlib import import_module

from preprocessing.crop_table import FORMATS
from preprocessing.step import exit_status, open_dataset, output_root, step_parser
from runtime.cli import run_main
from runtime.device import add_device_option
from runtime.executor import executor_arguments, executor_options, persistent_workers

PACK_STEP = "06_pack_shards"
DETECTION_STEP = "01_detect_faces"
LANDMARK_STEP = "03_extract_landmarks"
CLIP_STEP = "02_extract_clips"
STEPS = (
    DETECTION_STEP,
    "02_extract_crops",
    LANDMARK_STEP,
    "04_make_diffs",
    "05_make_folds",
)
DETECTOR_STEPS = (DETECTION_STEP, LANDMARK_STEP)  # have a --device option


def main(argv: list[str] | None = None) -> int:
    parser = step_parser(__doc__)
    add_device_option(parser)
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="files",
        help="format of the crops for training: files, or also WebDataset shards, "
        "a few large files for a file system that is slow with millions of small ones",
    )
    parser.add_argument(
        "--clips",
        action="store_true",
        help="also cut clips, for networks that see change over time",
    )
    import_module(f"preprocessing.{CLIP_STEP}").add_clips_option(parser)
    import_module(f"preprocessing.{LANDMARK_STEP}").add_landmarks_option(parser)
    options = parser.parse_args(argv)
    common = [
        "--root-dir",
        options.root_dir,
        "--output-dir",
        output_root(options),
        "--dataset",
        options.dataset,
        "--max-failures",
        options.max_failures,
        "--ignore-skipped",
        *executor_arguments(options),
    ]
    steps = [*STEPS]
    if options.clips:
        steps.insert(2, CLIP_STEP)
    if options.format == "wds":
        steps.append(PACK_STEP)
    with persistent_workers(executor_options(options)):
        for step in steps:
            own = ["--device", options.device] if step in DETECTOR_STEPS else []
            if step == DETECTION_STEP:
                own += ["--with-crops"]
            if step == CLIP_STEP:
                own += ["--clips-per-video", str(options.clips_per_video)]
            if step == LANDMARK_STEP:
                own += ["--landmarks", options.landmarks]
                own += ["--points", str(options.points)]
            step_main = import_module(f"preprocessing.{step}").main
            if status := step_main([*map(str, common), *own]):
                print(
                    f"{step}: too many videos failed, see above; "
                    "the steps after it were not run",
                    file=sys.stderr,
                )
                return status
    dataset = open_dataset(options)
    total = len(dataset.videos)
    return exit_status("preprocessing", 0, total, dataset.skipped, options.max_failures)


if __name__ == "__main__":
    run_main(main)
