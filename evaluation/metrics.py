"""Metrics of probabilities of FAKE against labels, with bootstrap intervals.

Method: log loss as on Kaggle, natural and clipped at 1e-15; weighted precision as in
       the DFDC papers (Dolhansky et al. 2019 and 2020): wP = TP / (TP + alpha FP) at
       the highest threshold that reaches a recall; expected calibration error in ten
       bins (Naeini et al. 2015); the equal error rate (EER) interpolated linearly on
       the ROC curve; intervals are percentiles over bootstrap resamples of the videos
       (Efron 1979), also where each row is a frame.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

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
from tqdm import tqdm

from runtime.cli import UserError

CLIP = 1e-15
ALPHA = 100.0  # assumed ratio of real videos to fakes in the world, as in DFDC's papers
RECALLS = (0.1, 0.5, 0.9)
BINS = 10
RESAMPLES = 1000
SHOWN_ROWS = 5000  # from which on a progress bar is worth it
NAN = float("nan")
# of single frames; the others are the challenge's, of videos
FRAME_METRICS = ("log loss", "accuracy", "AUC", "EER", "average precision")

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
        unit: what was counted, videos or frames.
    """

    videos: int
    fakes: int
    clipped: int
    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    unit: str = "videos"

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
            f"AUC {self.auc:.4f}   ({self.videos} {self.unit}: {self.fakes} fake, "
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
                "value": json_number(value),
                "interval": [*map(json_number, self.intervals.get(name, ()))],
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
        "EER": partial(_nan_if_one_class, equal_error_rate),
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


def equal_error_rate(y_true: np.ndarray, y_score: np.ndarray) -> float:
    """The error rate where as many fakes are missed as reals are accused.

    Interpolated between the two thresholds beside it. DeepfakeBench takes the false
    positive rate at the nearer of the two.
    """
    fpr, tpr, _ = roc_curve(y_true, y_score, drop_intermediate=False)
    gap = 1 - tpr - fpr  # from 1 down to -1
    after = int(np.argmax(gap <= 0))
    if gap[after] == 0:
        return float(fpr[after])
    share = gap[after - 1] / (gap[after - 1] - gap[after])
    return float(fpr[after - 1] + share * (fpr[after] - fpr[after - 1]))


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
    check_same_videos(probabilities, labels)
    y_true = np.array(list(labels.values()))
    y_score = np.array([probabilities[name] for name in labels])
    return score_arrays(y_true, y_score, metrics(clip, alpha), clip, resamples)


def score_frames(
    frames: Mapping[str, Sequence[float]],
    labels: dict[str, int],
    clip: float = CLIP,
    resamples: int = 0,
) -> Scores:
    """Compare the probabilities of single frames with the labels of their videos.

    Args:
        frames: of each video; those without a frame are left out, one must have some.
    """
    names = [name for name in labels if frames.get(name)]
    counts = [len(frames[name]) for name in names]
    y_true = np.repeat([labels[name] for name in names], counts)
    y_score = np.array([value for name in names for value in frames[name]])
    every = metrics(clip)
    by_name = {name: every[name] for name in FRAME_METRICS}
    videos = np.repeat(np.arange(len(names)), counts)
    return score_arrays(y_true, y_score, by_name, clip, resamples, videos)


def score_arrays(
    y_true: np.ndarray,
    y_score: np.ndarray,
    by_name: dict[str, Metric],
    clip: float = CLIP,
    resamples: int = 0,
    videos: np.ndarray | None = None,
) -> Scores:
    """Metrics of labels (N,) and probabilities (N,).

    Args:
        videos: (N,), ascending numbers of each row's video, which the bootstrap draws as
            a whole; if not given, each row is one.
    """
    values = {name: float(metric(y_true, y_score)) for name, metric in by_name.items()}
    return Scores(
        videos=len(y_true),
        fakes=int(y_true.sum()),
        clipped=int(((y_score < clip) | (y_score > 1 - clip)).sum()),
        values=values,
        intervals=_intervals(by_name, y_true, y_score, resamples, videos),
        unit="videos" if videos is None else "frames",
    )


def check_same_videos(probabilities: dict[str, float], labels: dict[str, int]) -> None:
    """Raise a `UserError` if a video of one is missing in the other."""
    for names, others, where in (
        (labels.keys(), probabilities.keys(), "submission"),
        (probabilities.keys(), labels.keys(), "labels"),
    ):
        if missing := sorted(names - others):
            raise UserError(
                f"{len(missing)} videos are missing in the {where}, the first is "
                f"{missing[0]}"
            )


def group_names(labels: dict[str, int], column: dict[str, str]) -> dict[str, list[str]]:
    """The videos of each value of a column.

    Videos where it is empty, such as the real ones, are in every group.
    """
    return {
        value: [name for name in labels if column[name] in (value, "")]
        for value in sorted({column[name] for name in labels} - {""})
    }


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
    videos: np.ndarray | None,
) -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals: percentiles of each metric over resampled videos."""
    if not resamples:
        return {}
    rng = np.random.default_rng(0)
    values: dict[str, list[float]] = {name: [] for name in by_name}
    members: list[np.ndarray] = []
    if videos is not None:
        starts = np.flatnonzero(np.diff(videos)) + 1
        members = np.split(np.arange(len(videos)), starts)
    count = len(members) or len(y_true)
    # the first call, without resampling, has validated the input
    with config_context(assume_finite=True, skip_parameter_validation=True):
        for _ in tqdm(
            range(resamples),
            desc="bootstrap",
            leave=False,
            disable=len(y_true) < SHOWN_ROWS,
        ):
            rows = rng.integers(count, size=count)
            if members:
                rows = np.concatenate([members[row] for row in rows])
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


def json_number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
