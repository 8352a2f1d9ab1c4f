"""Score a submission against the answers.

    python -m evaluation.score --submission submission.csv --labels labels.csv [--group-by COLUMN …] [--json F] [--plot F]

Reads  filename,label from the submission; the answers from a CSV with the same two columns (0/1 or REAL/FAKE), and more if
       you like, or from a DFDC metadata.json
Prints log loss, accuracy, AUC and others with 95 % intervals; then the same for each value of the columns to group by
Writes --json FILE, all numbers; --plot FILE, a PNG of ROC, calibration and the scores' histogram
Method: log loss as Kaggle did, natural and clipped at 1e-15; weighted precision as in the DFDC papers (Dolhansky et al. 2019
       and 2020): wP = TP / (TP + alpha FP) at the highest threshold that reaches a recall; expected calibration error in ten
       bins (Naeini et al. 2015); intervals are percentiles over resampled videos (Efron 1979).
"""

import csv
import json
import math
from collections.abc import Callable
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

from preprocessing.dfdc import LABELS, read_metadata
from runtime.cli import (
    UserError,
    fraction,
    make_parser,
    non_negative_int,
    positive_float,
    run_main,
)
from runtime.files import atomic_file, open_csv, save_figure

CLIP = 1e-15
ALPHA = 100.0  # how many more real videos than fakes there are in the world: the DFDC papers' setting
RECALLS = (0.1, 0.5, 0.9)
BINS = 10
RESAMPLES = 1000
NAN = float("nan")

Metric = Callable[
    [np.ndarray, np.ndarray], float
]  # of answers (N,) 0 or 1 and probabilities (N,)


@dataclass(frozen=True)
class Scores:
    """Of some videos. `values` and `intervals` (95 %) by a metric's name; NaN where the answers are all alike."""

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
            f"log loss {self.log_loss:.5f}   accuracy {self.accuracy:.4f}   AUC {self.auc:.4f}   "
            f"({self.videos} videos: {self.fakes} fake, {self.videos - self.fakes} real)"
        )

    def table(self) -> str:
        """All values, one a line, with their intervals."""
        lines = [
            f"{name:32} {value:9.5f}   {_interval(self.intervals.get(name))}".rstrip()
            for name, value in self.values.items()
        ]
        return "\n".join(lines)

    def as_json(self) -> dict:
        """Numbers that JSON has no word for become the strings nan, inf and -inf."""
        values = {
            name: {
                "value": _plain(value),
                "interval": [*map(_plain, self.intervals.get(name, ()))],
            }
            for name, value in self.values.items()
        }
        return {
            "videos": self.videos,
            "fakes": self.fakes,
            "clipped": self.clipped,
            **values,
        }


def metrics(clip: float = CLIP, alpha: float = ALPHA) -> dict[str, Metric]:
    """All metrics by name."""
    both = {
        "balanced accuracy": lambda truth, values: balanced_accuracy_score(
            truth, values > 0.5
        ),
        "AUC": roc_auc_score,
        "average precision": average_precision_score,
    }
    return {
        "log loss": lambda truth, values: log_loss(
            truth, np.clip(values, clip, 1 - clip), labels=[0, 1]
        ),
        "accuracy": lambda truth, values: accuracy_score(truth, values > 0.5),
        **{name: partial(_where_both, metric) for name, metric in both.items()},
        "expected calibration error": calibration_error,
        **{
            f"ln wP at recall {recall:g}": partial(
                _log_weighted_precision, recall=recall, alpha=alpha
            )
            for recall in RECALLS
        },
    }


def weighted_precision(
    truth: np.ndarray, values: np.ndarray, recall: float, alpha: float = ALPHA
) -> float:
    """TP / (TP + alpha FP) at the highest threshold whose recall is at least `recall`; 0 where there is no fake."""
    fakes = int(truth.sum())
    if not fakes:
        return 0.0
    if fakes == len(truth):
        return 1.0
    false_rates, true_rates, _ = roc_curve(truth, values, drop_intermediate=False)
    place = int(np.argmax(true_rates >= recall - 1e-12))
    true, false = true_rates[place] * fakes, false_rates[place] * (len(truth) - fakes)
    return float(true / (true + alpha * false)) if true else 0.0


def calibration_error(truth: np.ndarray, values: np.ndarray) -> float:
    """The mean distance of the share of fakes from the mean probability, over ten bins of equal width."""
    return float(
        sum(
            len(answers) / len(truth) * abs(answers.mean() - scores.mean())
            for answers, scores in calibration_bins(truth, values)
        )
    )


def calibration_bins(
    truth: np.ndarray, values: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Answers and probabilities of each bin that is not empty."""
    number = np.minimum((values * BINS).astype(int), BINS - 1)
    return [
        (truth[number == each], values[number == each]) for each in np.unique(number)
    ]


def score(
    probabilities: dict[str, float],
    answers: dict[str, int],
    clip: float = CLIP,
    alpha: float = ALPHA,
    resamples: int = 0,
) -> Scores:
    """Compare probabilities of FAKE with answers 0 and 1, by file name.

    Args:
        clip: log loss takes probabilities as at least this far from 0 and 1.
        alpha: weight of a false positive in weighted precision.
        resamples: of the videos, with replacement, for the intervals; 0 for none.

    Raises:
        UserError: a video of one is missing in the other.
    """
    for names, others, where in (
        (answers, probabilities, "submission"),
        (probabilities, answers, "labels"),
    ):
        if missing := sorted(names.keys() - others.keys()):
            raise UserError(
                f"the {where} lack {len(missing)} videos, the first {missing[0]}"
            )
    truth = np.array([answers[name] for name in answers])
    values = np.array([probabilities[name] for name in answers])
    chosen = metrics(clip, alpha)
    return Scores(
        videos=len(truth),
        fakes=int(truth.sum()),
        clipped=int(((values < clip) | (values > 1 - clip)).sum()),
        values={name: float(metric(truth, values)) for name, metric in chosen.items()},
        intervals=_intervals(chosen, truth, values, resamples) if resamples else {},
    )


def score_groups(
    probabilities: dict[str, float],
    answers: dict[str, int],
    column: dict[str, str],
    **options,
) -> dict[str, Scores]:
    """Scores for each value of a column. Videos where it is empty, the real ones say, count in every group."""
    groups = {}
    for value in sorted(set(column.values()) - {""}):
        names = [name for name in answers if column[name] in (value, "")]
        groups[value] = score(
            {name: probabilities[name] for name in names},
            {name: answers[name] for name in names},
            **options,
        )
    return groups


def draw(truth: np.ndarray, values: np.ndarray, path: Path) -> None:
    """ROC, calibration and the scores' histogram as one PNG."""
    with save_figure(path, 13, 4.2) as figure:
        roc, calibration, histogram = figure.subplots(1, 3)
        if len(set(truth)) == 2:
            roc.plot(*roc_curve(truth, values)[:2], drawstyle="steps-post")
            roc.set_title(f"ROC, AUC {roc_auc_score(truth, values):.4f}")
        bins = calibration_bins(truth, values)
        calibration.plot(
            [scores.mean() for _, scores in bins],
            [answers.mean() for answers, _ in bins],
            "o-",
        )
        for answers, scores in bins:
            calibration.annotate(
                f"{len(answers)}",
                (scores.mean(), answers.mean()),
                xytext=(4, -10),
                textcoords="offset points",
            )
        calibration.set_title(
            f"Calibration, error {calibration_error(truth, values):.4f}; videos in each bin"
        )
        histogram.hist(
            [values[truth == 0], values[truth == 1]],
            np.linspace(0, 1, 21),
            label=["real", "fake"],
        )
        histogram.set(title="Scores", xlabel="probability of FAKE", ylabel="videos")
        histogram.legend()
        for axes, x, y in (
            (roc, "false positive rate", "true positive rate"),
            (calibration, "mean probability", "share of fakes"),
        ):
            axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle="--")
            axes.set(xlabel=x, ylabel=y, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))


def read_submission(path: Path) -> dict[str, float]:
    """filename → probability. Raises UserError where a label is no number from 0 to 1."""
    values = {}
    for name, row in _read_rows(path).items():
        try:
            values[name] = float(row["label"])
        except ValueError as error:
            raise UserError(
                f"{path}: {name}: the label {row['label']!r} is not a number"
            ) from error
        if not 0 <= values[name] <= 1:
            raise UserError(
                f"{path}: {name}: the label {row['label']} is not a probability from 0 to 1"
            )
    return values


def read_labels(path: Path) -> dict[str, int]:
    """filename → 0 or 1, from a CSV or a metadata.json."""
    known = {
        "0": 0,
        "1": 1,
        **{label: int(is_fake) for label, is_fake in LABELS.items()},
    }
    rows = read_label_rows(path)
    for name, row in rows.items():
        if str(row.get("label")) not in known:
            raise UserError(
                f"{path}: {name}: the label {row.get('label')!r} must be 0, 1, REAL or FAKE"
            )
    return {name: known[str(row["label"])] for name, row in rows.items()}


def read_label_rows(path: Path) -> dict[str, dict]:
    """filename → all that the labels file says of it."""
    return read_metadata(path) if path.suffix == ".json" else _read_rows(path)


def read_column(path: Path, column: str) -> dict[str, str]:
    """filename → its value in a column of the labels file.

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


def _where_both(metric: Metric, truth: np.ndarray, values: np.ndarray) -> float:
    """A metric that needs real and fake videos; NaN without."""
    return metric(truth, values) if 0 < truth.sum() < len(truth) else NAN


def _log_weighted_precision(
    truth: np.ndarray, values: np.ndarray, recall: float, alpha: float
) -> float:
    precision = weighted_precision(truth, values, recall, alpha)
    return math.log(precision) if precision else -math.inf


def _intervals(
    chosen: dict[str, Metric], truth: np.ndarray, values: np.ndarray, resamples: int
) -> dict[str, tuple]:
    """From the 2.5th to the 97.5th percentile of each metric over resampled videos."""
    rng = np.random.default_rng(0)
    drawn: dict[str, list[float]] = {name: [] for name in chosen}
    with config_context(
        assume_finite=True, skip_parameter_validation=True
    ):  # the first call has checked them
        for _ in range(resamples):
            rows = rng.integers(len(truth), size=len(truth))
            for name, metric in chosen.items():
                drawn[name].append(metric(truth[rows], values[rows]))
    return {name: _percentiles(np.array(found)) for name, found in drawn.items()}


def _percentiles(found: np.ndarray) -> tuple[float, float]:
    """Without interpolation, which has no answer between a number and minus infinity."""
    found = found[~np.isnan(found)]
    if not len(found):
        return NAN, NAN
    return tuple(
        float(value) for value in np.percentile(found, (2.5, 97.5), method="nearest")
    )


def _interval(interval: tuple[float, float] | None) -> str:
    return f"{interval[0]:.5f} to {interval[1]:.5f}" if interval else ""


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _read_rows(path: Path) -> dict[str, dict[str, str]]:
    try:
        with open_csv(path) as file:
            reader = csv.DictReader(file)
            if not {"filename", "label"} <= set(reader.fieldnames or ()):
                raise UserError(f"{path}: must have the columns filename,label")
            rows = list(reader)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    named = {row["filename"]: row for row in rows}
    if len(named) < len(rows) or not rows:
        raise UserError(
            f"{path}: {'names a video twice' if rows else 'lists no video'}"
        )
    return named


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
        default=[],
        metavar="COLUMN",
        help="columns of the labels: a line for each value; "
        "videos where it is empty count in every group",
    )
    parser.add_argument(
        "--clip",
        type=fraction,
        default=CLIP,
        help="least distance from 0 and 1 in log loss",
    )
    parser.add_argument(
        "--alpha",
        type=positive_float,
        default=ALPHA,
        help="weight of a false positive in weighted precision",
    )
    parser.add_argument(
        "--resamples",
        type=non_negative_int,
        default=RESAMPLES,
        help="of the videos, for the intervals; 0: none",
    )
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    parser.add_argument(
        "--plot", type=Path, help="write ROC, calibration and histogram to this PNG"
    )
    options = parser.parse_args(argv)
    probabilities, answers = (
        read_submission(options.submission),
        read_labels(options.labels),
    )
    settings = {
        "clip": options.clip,
        "alpha": options.alpha,
        "resamples": options.resamples,
    }
    scores = score(probabilities, answers, **settings)
    print(scores)
    print(scores.table())
    print(
        f"{scores.clipped} scores were clipped to at least {options.clip:g} from 0 and 1"
    )
    found = {"settings": settings, "all": scores.as_json(), "groups": {}}
    for column in options.group_by:
        groups = score_groups(
            probabilities, answers, read_column(options.labels, column), **settings
        )
        for value, each in groups.items():
            print(f"{column} {value}: {each}")
        found["groups"][column] = {
            value: each.as_json() for value, each in groups.items()
        }
    if options.json:
        with atomic_file(options.json) as temporary:
            temporary.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    if options.plot:
        names = list(answers)
        draw(
            np.array([answers[name] for name in names]),
            np.array([probabilities[name] for name in names]),
            options.plot,
        )
    return 0


if __name__ == "__main__":
    run_main(main)
