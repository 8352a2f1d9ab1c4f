"""Score a submission against the labels.

    python -m evaluation.score --submission submission.csv --labels labels.csv \\
        [--group-by COLUMN …] [--json FILE] [--plot FILE]

Reads  filename,label from the submission; the labels from a CSV with the same two
       columns (0/1 or REAL/FAKE) and optionally more, or from a DFDC metadata.json;
       both also as Excel saves them (see `runtime.files.read_csv_rows`)
Prints log loss, accuracy, AUC and others with 95 % confidence intervals; then the same
       for each value of the columns to group by
Writes --json FILE, all numbers; --plot FILE, a PNG of ROC, calibration and the
       histogram of the scores
Method: log loss as on Kaggle, natural and clipped at 1e-15; weighted precision as in
       the DFDC papers (Dolhansky et al. 2019 and 2020): wP = TP / (TP + alpha FP) at
       the highest threshold that reaches a recall; expected calibration error in ten
       bins (Naeini et al. 2015); intervals are percentiles over bootstrap resamples of
       the videos (Efron 1979).
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from sklearn import config_context
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    log_loss,
    roc_auc_score,
    roc_curve,
)

from preprocessing.dataset import parse_label, parse_number
from preprocessing.datasets.dfdc import read_metadata
from preprocessing.video import SUFFIXES
from runtime.cli import (
    UserError,
    make_parser,
    non_negative_int,
    positive_float,
    run_main,
)
from runtime.files import atomic_file, read_csv_rows, save_figure

CLIP = 1e-15
ALPHA = 100.0  # assumed ratio of real videos to fakes in the world, as in DFDC's papers
RECALLS = (0.1, 0.5, 0.9)
BINS = 10
RESAMPLES = 1000
NAN = float("nan")

# Of y_true (N,), 0 or 1, and y_score (N,), probabilities of 1.
Metric = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
class Scores:
    """The scores of some videos.

    Attributes:
        videos, fakes: how many there are.
        clipped: how many probabilities were clipped for the log loss.
        values: by the metric's name; NaN for a metric that needs both classes where
            there is only one.
        intervals: 95 % confidence intervals, likewise.
    """

    videos: int
    fakes: int
    clipped: int
    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]

    @property
    def log_loss(self) -> float:
        return self.values["log loss"]

    @property
    def accuracy(self) -> float:
        return self.values["accuracy"]

    @property
    def auc(self) -> float:
        return self.values["AUC"]

    def __str__(self) -> str:
        return (
            f"log loss {self.log_loss:.5f}   accuracy {self.accuracy:.4f}   "
            f"AUC {self.auc:.4f}   ({self.videos} videos: {self.fakes} fake, "
            f"{self.videos - self.fakes} real)"
        )

    def table(self) -> str:
        """All values with their intervals, one metric a line."""
        lines = []
        for name, value in self.values.items():
            interval = _format_interval(self.intervals.get(name))
            lines.append(f"{name:32} {value:9.5f}   {interval}".rstrip())
        return "\n".join(lines)

    def as_json(self) -> dict:
        """A JSON object; non-finite numbers are the strings nan, inf and -inf."""
        metrics = {
            name: {
                "value": _json_number(value),
                "interval": [*map(_json_number, self.intervals.get(name, ()))],
            }
            for name, value in self.values.items()
        }
        return {
            "videos": self.videos,
            "fakes": self.fakes,
            "clipped": self.clipped,
            **metrics,
        }


def metrics(clip: float = CLIP, alpha: float = ALPHA) -> dict[str, Metric]:
    """All metrics by name. For the arguments see `score`."""

    def clipped_log_loss(y_true: np.ndarray, y_score: np.ndarray) -> float:
        return log_loss(y_true, np.clip(y_score, clip, 1 - clip), labels=[0, 1])

    def accuracy(y_true: np.ndarray, y_score: np.ndarray) -> float:
        return accuracy_score(y_true, y_score > 0.5)

    def balanced_accuracy(y_true: np.ndarray, y_score: np.ndarray) -> float:
        return balanced_accuracy_score(y_true, y_score > 0.5)

    weighted = {
        f"ln wP at recall {recall:g}": partial(
            _log_weighted_precision, recall=recall, alpha=alpha
        )
        for recall in RECALLS
    }
    return {
        "log loss": clipped_log_loss,
        "accuracy": accuracy,
        "balanced accuracy": partial(_nan_if_one_class, balanced_accuracy),
        "AUC": partial(_nan_if_one_class, roc_auc_score),
        "average precision": partial(_nan_if_one_class, average_precision_score),
        "expected calibration error": calibration_error,
        **weighted,
    }


def weighted_precision(
    y_true: np.ndarray, y_score: np.ndarray, recall: float, alpha: float = ALPHA
) -> float:
    """TP / (TP + alpha FP) at the highest threshold whose recall is at least `recall`.

    0 where there is no fake.
    """
    positives = int(y_true.sum())
    negatives = len(y_true) - positives
    if not positives:
        return 0.0
    if not negatives:
        return 1.0
    fpr, tpr, _ = roc_curve(y_true, y_score, drop_intermediate=False)
    index = int(np.argmax(tpr >= recall - 1e-12))
    tp, fp = tpr[index] * positives, fpr[index] * negatives
    return float(tp / (tp + alpha * fp)) if tp else 0.0


def calibration_error(y_true: np.ndarray, y_score: np.ndarray) -> float:
    """The expected calibration error (ECE) over ten bins of equal width.

    The mean distance between the fraction of fakes and the mean probability of a bin,
    weighted by the bin's videos.
    """
    return float(
        sum(
            len(labels) / len(y_true) * abs(labels.mean() - probabilities.mean())
            for labels, probabilities in calibration_bins(y_true, y_score)
        )
    )


def calibration_bins(
    y_true: np.ndarray, y_score: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Labels and probabilities of each bin that is not empty."""
    bins = np.minimum((y_score * BINS).astype(int), BINS - 1)
    return [
        (y_true[bins == index], y_score[bins == index]) for index in np.unique(bins)
    ]


def score(
    probabilities: dict[str, float],
    labels: dict[str, int],
    clip: float = CLIP,
    alpha: float = ALPHA,
    resamples: int = 0,
) -> Scores:
    """Compare probabilities of FAKE with labels 0 and 1, by file name.

    Args:
        clip: minimum distance of the probabilities from 0 and 1 in the log loss.
        alpha: weight of a false positive in the weighted precision.
        resamples: bootstrap resamples of the videos for the intervals; 0 for none.

    Raises:
        UserError: a video of one is missing in the other.
    """
    _check_same_videos(probabilities, labels)
    y_true = np.array(list(labels.values()))
    y_score = np.array([probabilities[name] for name in labels])
    by_name = metrics(clip, alpha)
    return Scores(
        videos=len(y_true),
        fakes=int(y_true.sum()),
        clipped=int(((y_score < clip) | (y_score > 1 - clip)).sum()),
        values={
            name: float(metric(y_true, y_score)) for name, metric in by_name.items()
        },
        intervals=_intervals(by_name, y_true, y_score, resamples) if resamples else {},
    )


def _check_same_videos(probabilities: dict[str, float], labels: dict[str, int]) -> None:
    for names, others, where in (
        (labels.keys(), probabilities.keys(), "submission"),
        (probabilities.keys(), labels.keys(), "labels"),
    ):
        if missing := sorted(names - others):
            raise UserError(
                f"{len(missing)} videos are missing in the {where}, the first is "
                f"{missing[0]}"
            )


def score_groups(
    probabilities: dict[str, float],
    labels: dict[str, int],
    column: dict[str, str],
    clip: float = CLIP,
    alpha: float = ALPHA,
    resamples: int = 0,
) -> dict[str, Scores]:
    """Scores for each value of a column of the labels.

    Videos where it is empty, such as the real ones, count in every group.
    """
    groups = {}
    for value in sorted(set(column.values()) - {""}):
        names = [name for name in labels if column[name] in (value, "")]
        groups[value] = score(
            {name: probabilities[name] for name in names},
            {name: labels[name] for name in names},
            clip,
            alpha,
            resamples,
        )
    return groups


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


def read_submission(path: Path) -> dict[str, float]:
    """The probability of FAKE by file name.

    Raises:
        UserError: a label is not a number from 0 to 1.
    """
    probabilities = {}
    for name, row in _read_rows(path).items():
        text = row["label"]
        try:
            probability = parse_number(text)
        except ValueError as error:
            raise UserError(
                f"{path}: {name}: the label {text!r} is not a number"
            ) from error
        if not 0 <= probability <= 1:
            raise UserError(
                f"{path}: {name}: the label {text} is not a probability from 0 to 1"
            )
        probabilities[name] = probability
    return probabilities


def read_labels(path: Path) -> dict[str, int]:
    """The label, 0 or 1, by file name, from a CSV or a metadata.json.

    Raises:
        UserError: a label is none of 0, 1, REAL and FAKE.
    """
    labels = {}
    for name, row in read_label_rows(path).items():
        label = row.get("label")
        try:
            labels[name] = parse_label(str(label).strip())
        except ValueError as error:
            raise UserError(
                f"{path}: {name}: the label {label!r} must be 0, 1, REAL or FAKE"
            ) from error
    return labels


def read_label_rows(path: Path) -> dict[str, dict]:
    """All columns of the labels file by file name."""
    return read_metadata(path) if path.suffix.lower() == ".json" else _read_rows(path)


def read_column(path: Path, column: str) -> dict[str, str]:
    """One column of the labels file by file name.

    Raises:
        UserError: there is no such column.
    """
    rows = read_label_rows(path)
    if not any(column in row for row in rows.values()):
        columns = ", ".join(dict.fromkeys(key for row in rows.values() for key in row))
        raise UserError(
            f"{path}: has no column {column!r} to group by; it has {columns}"
        )
    return {name: str(row.get(column) or "") for name, row in rows.items()}


def match_names(
    probabilities: dict[str, float], labels: dict[str, int]
) -> dict[str, float]:
    """Give the probabilities the file names of the labels, and say so on stderr.

    `aaaa` and `aaaa.mp4` are one video where no other name of either file has this
    stem. Other names are kept.
    """
    own, others = _by_stem(probabilities), _by_stem(labels)
    renamed = {}
    for stem, names in own.items():
        found = others.get(stem, [])
        if len(names) == len(found) == 1 and names != found:
            bare = {names[0].strip(), found[0].strip()}
            if stem in bare or len(bare) == 1:
                renamed[names[0]] = found[0]
    if renamed:
        name, label = next(iter(renamed.items()))
        print(
            f"{len(renamed)} file names differ in their endings and were matched "
            f"without, the first is {name} in the submission, {label} in the labels",
            file=sys.stderr,
        )
    return {renamed.get(name, name): value for name, value in probabilities.items()}


def _by_stem(names: Iterable[str]) -> dict[str, list[str]]:
    """The file names by what they are without a video's ending."""
    groups: dict[str, list[str]] = {}
    for name in names:
        stem, ending = os.path.splitext(name.strip())
        is_video = ending.lower() in SUFFIXES
        groups.setdefault(stem if is_video else name.strip(), []).append(name)
    return groups


def _nan_if_one_class(metric: Metric, y_true: np.ndarray, y_score: np.ndarray) -> float:
    """A metric that needs real and fake videos; NaN without."""
    return metric(y_true, y_score) if 0 < y_true.sum() < len(y_true) else NAN


def _log_weighted_precision(
    y_true: np.ndarray, y_score: np.ndarray, recall: float, alpha: float
) -> float:
    precision = weighted_precision(y_true, y_score, recall, alpha)
    return math.log(precision) if precision else -math.inf


def _intervals(
    by_name: dict[str, Metric],
    y_true: np.ndarray,
    y_score: np.ndarray,
    resamples: int,
) -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals: percentiles of each metric over resampled videos."""
    rng = np.random.default_rng(0)
    values: dict[str, list[float]] = {name: [] for name in by_name}
    # the first call, without resampling, has validated the input
    with config_context(assume_finite=True, skip_parameter_validation=True):
        for _ in range(resamples):
            rows = rng.integers(len(y_true), size=len(y_true))
            for name, metric in by_name.items():
                values[name].append(metric(y_true[rows], y_score[rows]))
    return {name: _percentiles(np.array(each)) for name, each in values.items()}


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    """The 2.5th and the 97.5th percentile without NaNs.

    Without interpolation, which is undefined between a number and minus infinity.
    """
    values = values[~np.isnan(values)]
    if not len(values):
        return NAN, NAN
    low, high = np.percentile(values, (2.5, 97.5), method="nearest")
    return float(low), float(high)


def _format_interval(interval: tuple[float, float] | None) -> str:
    return f"{interval[0]:.5f} to {interval[1]:.5f}" if interval else ""


def _json_number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _read_rows(path: Path) -> dict[str, dict[str, str]]:
    """The rows of a CSV by their filename, which must be unique."""
    rows = read_csv_rows(path, ("filename", "label"))
    if not rows:
        raise UserError(f"{path}: lists no video")
    for stem, names in _by_stem(row["filename"] for row in rows).items():
        if len({*names}) < len(names) or (stem in names and len(names) > 1):
            raise UserError(
                f"{path}: names a video twice, {' and '.join(sorted({*names}))}; "
                "keep one row of each"
            )
    return {row["filename"]: row for row in rows}


def _clip_distance(text: str) -> float:
    """An argparse type: a number from 0 to below 0.5."""
    if not 0 <= (value := float(text)) < 0.5:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to below 0.5")
    return value


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--submission", type=Path, required=True)
    parser.add_argument(
        "--labels",
        type=Path,
        required=True,
        help="CSV (filename,label, …) or metadata.json",
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
    options = parser.parse_args(argv)
    probabilities = read_submission(options.submission)
    labels = read_labels(options.labels)
    columns = {
        column: read_column(options.labels, column) for column in options.group_by
    }
    probabilities = match_names(probabilities, labels)
    settings = {
        "clip": options.clip,
        "alpha": options.alpha,
        "resamples": options.resamples,
    }
    scores = score(probabilities, labels, **settings)
    print(scores)
    print(scores.table())
    print(
        f"{scores.clipped} scores were clipped to at least {options.clip:g} "
        "from 0 and 1"
    )
    results: dict = {"settings": settings, "all": scores.as_json(), "groups": {}}
    for column, values in columns.items():
        groups = score_groups(probabilities, labels, values, **settings)
        for value, group in groups.items():
            print(f"{column} {value}: {group}")
        results["groups"][column] = {
            value: group.as_json() for value, group in groups.items()
        }
    if options.json:
        with atomic_file(options.json) as temporary:
            temporary.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    if options.plot:
        y_true = np.array(list(labels.values()))
        y_score = np.array([probabilities[name] for name in labels])
        plot_scores(y_true, y_score, options.plot)
    return 0


if __name__ == "__main__":
    run_main(main)
