"""Predict a folder of videos with an ensemble of checkpoints.

    python -m inference.predict --test-dir VIDEOS --output submission.csv \\
        --weights-dir weights --models A B …

Reads  the videos in --test-dir (or one video file), the checkpoints WEIGHTS_DIR/MODEL,
       or ONNX files of `inference.export`;
       --list FILE.csv: which videos, by their paths below --test-dir in the column
       filename (or path), such as Kaggle's sample_submission.csv
Writes the submission: filename,label with label = probability of FAKE
       submission.report.csv beside it: why a video has 0.5 or was read only in part
       --faces-csv FILE: every face's score; --report DIR: pages to look at
Method: the winner's: 32 evenly spaced frames, MTCNN 0.7/0.8/0.8 at half resolution,
       crops centred on black, each network on all faces, his confidence rule for each
       network (--rule for others), the mean over networks.
"""

from pathlib import Path

from inference.aggregate import NO_ANSWER, RULES, TOP_FACES
from inference.members import add_model_options
from inference.submission import is_answered, report_path
from inference.videos import find_test_videos
from preprocessing.faces import DETECTOR_IMPORTS
from runtime.cli import make_parser, non_negative_int, run_main
from runtime.device import add_device_option
from runtime.executor import add_executor_options
from runtime.process import share_imports


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--test-dir", type=Path, required=True, help="folder of videos, or one video"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--list",
        type=Path,
        metavar="FILE.csv",
        help="predict the videos of its column filename (or path), in its order; paths "
        "are relative to --test-dir; one that is not there has 0.5 and the reason",
    )
    which.add_argument(
        "--recursive",
        action="store_true",
        help="predict the videos of all folders below --test-dir too, by their paths",
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="the submission's CSV"
    )
    add_model_options(parser)
    parser.add_argument(
        "--rule",
        choices=RULES,
        help="from the scores of a video's faces to its label (default: winner, or the "
        "ensemble file's); winner-exact keeps two accidents of the winner's code, "
        "confidence is the third-placed team's, vote the fourth's",
    )
    parser.add_argument(
        "--faces-csv", type=Path, help="write every face's score to this file"
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="DIR",
        help="write an HTML report: DIR/index.html",
    )
    parser.add_argument(
        "--grad-cam",
        type=non_negative_int,
        default=0,
        metavar="N",
        help="in the report, Grad-CAM heatmaps of the first network, and the residuals "
        "that it sees if it has that stem (`srm`), for the N faces of "
        f"each video with the highest scores (at most {TOP_FACES})",
    )
    add_executor_options(parser)
    add_device_option(parser)
    options = parser.parse_args(argv)
    wanted = find_test_videos(options.test_dir, options.list, options.recursive)
    if options.workers != 0 and options.executor == "local":
        share_imports(*DETECTOR_IMPORTS)
    # here, since PyTorch takes seconds to load, now in two processes at a time
    from inference.run import predict

    entries = predict(wanted, options)
    with_reason = sum(bool(entry["reason"]) for entry in entries.values())
    unanswered = sum(not is_answered(entry) for entry in entries.values())
    print(
        f"{options.output}: {len(entries)} videos, "
        f"{unanswered} of them without an answer ({NO_ANSWER})"
    )
    if with_reason:
        others = with_reason - unanswered
        print(f"{report_path(options.output)}: why, for these and {others} others")
    if options.report:
        print(f"{options.report / 'index.html'}: open it in a browser")
    return 0


if __name__ == "__main__":
    run_main(main)
