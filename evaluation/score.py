"""Score a submission, or the scores of single faces, against the labels.

    python -m evaluation.score --submission submission.csv --labels labels.csv \\
        [--group-by COLUMN …] [--json FILE] [--plot FILE]

Reads  a submission, or a faces CSV (`inference.predict --faces-csv`), and the labels:
       see `evaluation.tables` for the forms that are read
Prints log loss, accuracy, AUC, EER and others with 95 % confidence intervals; then the
       same for each value of the columns to group by, and of `technique` where there is
       one: its fakes against all real videos. From a faces CSV at three levels: videos
       by --rule; videos by the mean over their frames, which most papers publish;
       single frames. A frame's score is that of its most suspicious face, a video
       without a face has 0.5.
Writes --json FILE, all numbers; --plot FILE, a PNG of ROC, calibration and the
       histogram of the scores; --export FILE.csv or .npz, the scores of frames
Method: `evaluation.metrics`.
"""

import argparse
import json
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score, roc_curve

from evaluation.metrics import (
    ALPHA,
    CLIP,
    RESAMPLES,
    Scores,
    calibration_bins,
    calibration_error,
    check_same_videos,
    group_names,
    json_number,
    score,
    score_frames,
)
from evaluation.tables import (
    frame_scores,
    is_faces_csv,
    match_names,
    read_column,
    read_faces,
    read_labels,
    read_submission,
    scores_by_model,
)
from inference.aggregate import (
    NO_ANSWER,
    RULES,
    TRACKED,
    Aggregation,
    ensemble_label,
)
from preprocessing.dataset import SPLITS
from preprocessing.datasets.table import name_of
from runtime.cli import (
    UserError,
    make_parser,
    non_negative_int,
    positive_float,
    run_main,
)
from runtime.files import atomic_file, save_figure, write_csv

TECHNIQUE = "technique"  # grouped by without being asked


class Predictions:
    """What is scored: probabilities of videos, and of frames where they are known.

    Attributes:
        levels: by the level's name, the probability by video; the first is the main one.
        frames: by video, by frame number; None for a submission.

    Args:
        rule: of `inference.aggregate.RULES`, for a faces CSV.
        more: whether the file may hold videos that have no label.

    Raises:
        UserError: a video of one file is missing in the other.
    """

    def __init__(
        self, path: Path, labels: dict[str, int], rule: str, more: bool = False
    ):
        self.frames: dict[str, dict[int, float]] | None = None
        if not is_faces_csv(path):
            probabilities = match_names(read_submission(path), labels)
            self.levels = {"videos": probabilities}
            _check_videos(probabilities, labels, more)
            return
        faces = match_names(read_faces(path), labels)
        self.frames = {name: frame_scores(frames) for name, frames in faces.items()}
        without = dict.fromkeys(labels.keys() - faces.keys(), NO_ANSWER)
        _check_videos(faces.keys() | without, labels, more)
        if without:
            hint = "" if more else "; --split scores the videos of one split"
            print(
                f"{path}: {len(without)} of {len(labels)} videos have no face in it and "
                f"so {NO_ANSWER}{hint}"
            )
        by_rule = {
            name: ensemble_label(scores_by_model(frames), Aggregation(rule))
            for name, frames in faces.items()
        }
        means = {
            name: float(np.mean([*frames.values()])) if frames else NO_ANSWER
            for name, frames in self.frames.items()
        }
        self.levels = {
            f"videos, rule {rule}": by_rule | without,
            "videos, mean over frames": means | without,
        }

    @property
    def main(self) -> dict[str, float]:
        return next(iter(self.levels.values()))

    def score(self, labels: dict[str, int], settings: dict) -> dict[str, Scores]:
        """The scores of each level over some videos."""
        scores = {
            level: score(
                {name: probabilities[name] for name in labels}, labels, **settings
            )
            for level, probabilities in self.levels.items()
        }
        frames = {
            name: [*each.values()]
            for name, each in (self.frames or {}).items()
            if name in labels
        }
        if any(frames.values()):
            scores["frames"] = score_frames(
                frames, labels, settings["clip"], settings["resamples"]
            )
        return scores


def plot_scores(y_true: np.ndarray, y_score: np.ndarray, path: Path) -> None:
    """ROC curve, calibration and the histogram of the scores as one PNG."""
    with save_figure(path, 13, 4.2) as figure:
        roc, calibration, histogram = figure.subplots(1, 3)
        if len(set(y_true)) == 2:
            roc.plot(*roc_curve(y_true, y_score)[:2], drawstyle="steps-post")
            roc.set_title(f"ROC, AUC {roc_auc_score(y_true, y_score):.4f}")
        bins = calibration_bins(y_true, y_score)
        means = [probabilities.mean() for _, probabilities in bins]
        fractions = [labels.mean() for labels, _ in bins]
        calibration.plot(means, fractions, "o-")
        for (labels, _), mean, fakes in zip(bins, means, fractions):
            calibration.annotate(
                f"{len(labels)}",
                (mean, fakes),
                xytext=(4, -10),
                textcoords="offset points",
            )
        error = calibration_error(y_true, y_score)
        calibration.set_title(f"Calibration, error {error:.4f}; videos in each bin")
        histogram.hist(
            [y_score[y_true == 0], y_score[y_true == 1]],
            np.linspace(0, 1, 21),
            label=["real", "fake"],
        )
        histogram.set(title="Scores", xlabel="probability of FAKE", ylabel="videos")
        histogram.legend()
        for axes, x, y in (
            (roc, "false positive rate", "true positive rate"),
            (calibration, "mean probability", "fraction of fakes"),
        ):
            axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle="--")
            axes.set(xlabel=x, ylabel=y, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))


def _check_videos(names: Iterable[str], labels: dict[str, int], more: bool) -> None:
    probabilities = dict.fromkeys(names, 0.0)
    if more:
        probabilities = {name: 0.0 for name in probabilities if name in labels}
    check_same_videos(probabilities, labels)


def cross_auc(
    one: tuple[dict[str, float], dict[str, int]],
    other: tuple[dict[str, float], dict[str, int]],
) -> dict[str, float]:
    """AUCs of the real videos of one data set against the fakes of another.

    A network whose scores of one set are all higher has a good AUC on each and no
    threshold for both.

    Args:
        one, other: probabilities and labels by file name.

    Returns:
        by name, such as "reals of 1, fakes of 2"; NaN where a class is missing.
    """
    values = {}
    for first, (real_scores, real_labels) in enumerate((one, other), 1):
        for second, (fake_scores, fake_labels) in enumerate((one, other), 1):
            reals = [
                real_scores[name] for name, label in real_labels.items() if not label
            ]
            fakes = [fake_scores[name] for name, label in fake_labels.items() if label]
            labels = [0] * len(reals) + [1] * len(fakes)
            values[f"reals of {first}, fakes of {second}"] = (
                float(roc_auc_score(labels, reals + fakes))
                if reals and fakes
                else float("nan")
            )
    return values


def export_frames(
    path: Path, frames: Mapping[str, Mapping[int, float]], labels: Mapping[str, int]
) -> None:
    """Write the scores of frames for other programs.

    A .csv has path,label,probability. An .npz has the arrays y_pred, y_true and
    img_names that DeepfakeBench's `get_test_metrics` takes. A frame's path is
    VIDEO/FRAME.png with a video's whole path in VIDEO, because DeepfakeBench puts
    frames of equal folder names together.

    Raises:
        UserError: two videos have one name.
    """
    names = {video: name_of(video) for video in labels if video in frames}
    if len({*names.values()}) < len(names):
        raise UserError(
            f"{path}: two videos have the same name without folders and endings"
        )
    rows = [
        (f"{name}/{frame}.png", labels[video], probability)
        for video, name in names.items()
        for frame, probability in frames[video].items()
    ]
    if path.suffix.lower() == ".csv":
        write_csv(path, ["path", "label", "probability"], rows)
    else:
        img_names, y_true, y_pred = zip(*rows)
        with atomic_file(path) as temporary, open(temporary, "wb") as file:
            np.savez(
                file,
                y_pred=np.array(y_pred),
                y_true=np.array(y_true),
                img_names=np.array(img_names),
            )


def _clip_distance(text: str) -> float:
    """An argparse type: a number from 0 to below 0.5."""
    if not 0 <= (value := float(text)) < 0.5:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to below 0.5")
    return value


def _read_wanted_labels(path: Path, split: str | None) -> dict[str, int]:
    """The labels, of one split if it is given."""
    labels = read_labels(path)
    if split:
        splits = read_column(path, "split")
        labels = {name: labels[name] for name in labels if splits[name] == split}
        if not labels:
            raise UserError(f"{path}: has no video of the split {split}")
    return labels


def _check_outputs(options: argparse.Namespace) -> None:
    """Refuse an export of another ending, and outputs that would replace a file."""
    for path in options.export:
        if path.suffix.lower() not in (".csv", ".npz"):
            raise UserError(f"--export {path}: give a name that ends in .csv or .npz")
    outputs = [*options.export, *filter(None, (options.json, options.plot))]
    inputs = [options.submission, options.labels, *chain(*options.against)]
    taken = [path.resolve() for path in inputs]
    for path in outputs:
        if path.resolve() in taken:
            raise UserError(f"{path}: is given twice; it would be overwritten")
        taken.append(path.resolve())


def _columns_to_group_by(path: Path, wanted: list[str]) -> dict[str, dict[str, str]]:
    """The columns by name; `TECHNIQUE` too where the labels have it."""
    columns = {column: read_column(path, column) for column in wanted}
    if TECHNIQUE not in columns:
        try:
            columns[TECHNIQUE] = read_column(path, TECHNIQUE)
        except UserError:
            pass
    return columns


def _print_levels(levels: dict[str, Scores], clip: float) -> None:
    for level, scores in levels.items():
        if len(levels) > 1:
            print(f"{level}:")
        print(scores)
        print(scores.table())
        print(f"{scores.clipped} scores were clipped to at least {clip:g} from 0 and 1")
        if len(levels) > 1:
            print()


def _print_group(name: str, levels: dict[str, Scores]) -> dict:
    """Print a line for each level. Returns a JSON object, of levels if there are more."""
    for level, scores in levels.items():
        place = f"{name}, {level}" if len(levels) > 1 else name
        eer = f"   EER {scores.values['EER']:.4f}" if len(levels) > 1 else ""
        print(f"{place}: {scores}{eer}")
    as_json = {level: scores.as_json() for level, scores in levels.items()}
    return as_json if len(levels) > 1 else next(iter(as_json.values()))


def _make_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--submission",
        type=Path,
        required=True,
        help="CSV of filename,label, or a faces CSV",
    )
    parser.add_argument(
        "--labels",
        type=Path,
        required=True,
        help="CSV (filename,label, …), DATA/folds.csv, or metadata.json",
    )
    parser.add_argument(
        "--split", choices=SPLITS, help="score the videos of this split of the labels"
    )
    parser.add_argument(
        "--rule",
        choices=[name for name in RULES if name not in TRACKED],
        default="winner",
        help="from the scores of a video's faces to its label, for a faces CSV",
    )
    parser.add_argument(
        "--group-by",
        nargs="+",
        action="extend",
        default=[],
        metavar="COLUMN",
        help="columns of the labels: a line for each value; "
        "videos where it is empty count in every group",
    )
    parser.add_argument(
        "--against",
        nargs=2,
        action="append",
        default=[],
        type=Path,
        metavar=("SUBMISSION", "LABELS"),
        help="of another data set: print Cross-AUC, the real videos of one set against "
        "the fakes of the other",
    )
    parser.add_argument(
        "--clip",
        type=_clip_distance,
        default=CLIP,
        help="minimum distance from 0 and 1 in the log loss, below 0.5",
    )
    parser.add_argument(
        "--alpha",
        type=positive_float,
        default=ALPHA,
        help="weight of a false positive in the weighted precision",
    )
    parser.add_argument(
        "--resamples",
        type=non_negative_int,
        default=RESAMPLES,
        help="bootstrap resamples of the videos for the intervals; 0: no intervals",
    )
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    parser.add_argument(
        "--plot", type=Path, help="write ROC, calibration and histogram to this PNG"
    )
    parser.add_argument(
        "--export",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="write the scores of frames: FILE.csv with path,label,probability, or "
        "FILE.npz for DeepfakeBench; needs a faces CSV",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    options = _make_parser().parse_args(argv)
    _check_outputs(options)
    labels = _read_wanted_labels(options.labels, options.split)
    columns = _columns_to_group_by(options.labels, options.group_by)
    predictions = Predictions(
        options.submission, labels, options.rule, bool(options.split)
    )
    if options.export and predictions.frames is None:
        raise UserError(f"--export: {options.submission} holds no scores of frames")
    settings = {
        "clip": options.clip,
        "alpha": options.alpha,
        "resamples": options.resamples,
    }
    levels = predictions.score(labels, settings)
    results: dict = {
        "settings": settings,
        "all": next(iter(levels.values())).as_json(),
        "groups": {},
    }
    _print_levels(levels, options.clip)
    if len(levels) > 1:
        results["levels"] = {level: each.as_json() for level, each in levels.items()}
    for column, values in columns.items():
        results["groups"][column] = {
            value: _print_group(
                f"{column} {value}",
                predictions.score({name: labels[name] for name in names}, settings),
            )
            for value, names in group_names(labels, values).items()
        }
    for submission, labels_file in options.against:
        other_labels = _read_wanted_labels(labels_file, options.split)
        other = Predictions(submission, other_labels, options.rule, bool(options.split))
        crossed = cross_auc((predictions.main, labels), (other.main, other_labels))
        print(f"Cross-AUC, 1: {options.submission}, 2: {submission}")
        for name, value in crossed.items():
            print(f"  {name}: {value:.4f}")
        results.setdefault("cross AUC", {})[str(submission)] = {
            name: json_number(each) for name, each in crossed.items()
        }
    for path in options.export:
        export_frames(path, predictions.frames or {}, labels)
    if options.json:
        with atomic_file(options.json) as temporary:
            temporary.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    if options.plot:
        y_true = np.array(list(labels.values()))
        y_score = np.array([predictions.main[name] for name in labels])
        plot_scores(y_true, y_score, options.plot)
    return 0


if __name__ == "__main__":
    run_main(main)
