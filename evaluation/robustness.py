"""The score under each disguise, beside a metadata-only baseline.

    python -m evaluation.disguise --test-dir VIDEOS --output-dir DISGUISED
    python -m evaluation.robustness --disguised DISGUISED --output-dir OUT \\
        --weights-dir weights --models A B …

Reads  what evaluation.disguise wrote, and the checkpoints
Writes OUT/submission.csv with its report, OUT/robustness.json, OUT/robustness.png
Method: `inference.predict` on all videos, then `evaluation.score` for each disguise,
       95 % bootstrap intervals. The metadata-only baseline is a random forest on the
       container's metadata (`inference.provenance.container_metadata`), cross-validated
       with a fake and its original always in the same fold. DFDC leaked labels through
       such metadata: a network that beats the baseline by little has learned little.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction import DictVectorizer
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline

from evaluation.metrics import Scores, score
from evaluation.perturbations import NONE
from evaluation.tables import (
    read_column,
    read_label_rows,
    read_labels,
    read_submission,
)
from inference import predict
from inference.members import add_model_options
from inference.provenance import container_metadata
from runtime.cli import UserError, make_parser, non_negative_int, run_main
from runtime.device import add_device_option
from runtime.executor import add_executor_options, executor_arguments
from runtime.files import atomic_file, save_figure
from runtime.results import print_results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FOLDS = 5
NETWORKS, METADATA = "networks", "metadata"  # the ensemble and the baseline
METRICS = ("log loss", "accuracy", "AUC")

Results = dict[str, dict[str, Scores]]  # by disguise, then of NETWORKS and METADATA


def metadata_predictions(
    metadata: Sequence[Mapping[str, object]],
    y_true: np.ndarray,
    families: Sequence[str],
) -> np.ndarray:
    """Cross-validated predictions of the metadata-only baseline.

    Args:
        metadata: of each video's container.
        y_true: (N,) 0 or 1.
        families: the original of each video; a family is never split between folds.

    Returns:
        (N,) probabilities of FAKE.

    Raises:
        UserError: there are too few videos for it.
    """
    folds = min(FOLDS, len(set(families)))
    if folds < 2 or len(set(y_true)) < 2:
        raise UserError(
            "the metadata-only baseline needs real and fake videos of at least two "
            "families"
        )
    forest = RandomForestClassifier(300, min_samples_leaf=2, random_state=0)
    model = make_pipeline(DictVectorizer(sparse=False), forest)
    probabilities = cross_val_predict(
        model,
        metadata,
        y_true,
        groups=families,
        cv=GroupKFold(folds),
        method="predict_proba",
    )
    return probabilities[:, 1]


def score_disguises(
    folder: Path, probabilities: dict[str, float], resamples: int
) -> Results:
    """Score the networks and the metadata-only baseline under each disguise.

    Args:
        folder: what `evaluation.disguise` wrote.
        probabilities: of the networks, by file name.
        resamples: for the intervals.

    Returns:
        by disguise, the undisguised videos first.
    """
    path = folder / "labels.csv"
    rows, labels = read_label_rows(path), read_labels(path)
    disguises, sources = read_column(path, "disguise"), read_column(path, "source")
    results = {}
    for disguise in sorted(set(disguises.values()), key=lambda d: (d != NONE, d)):
        names = [name for name in labels if disguises[name] == disguise]
        y_true = np.array([labels[name] for name in names])
        families = [rows[name].get("original") or sources[name] for name in names]
        metadata = [container_metadata(folder / name) for name in names]
        baseline = dict(zip(names, metadata_predictions(metadata, y_true, families)))
        networks = {name: probabilities[name] for name in names}
        own_labels = {name: labels[name] for name in names}
        results[disguise] = {
            NETWORKS: score(networks, own_labels, resamples=resamples),
            METADATA: score(baseline, own_labels, resamples=resamples),
        }
    return results


def results_table(results: Results) -> list[dict]:
    """One row for each disguise."""
    rows = []
    for disguise, scores in results.items():
        networks, metadata = scores[NETWORKS], scores[METADATA]
        row = {"disguise": disguise, "videos": networks.videos}
        row |= {name: _with_interval(networks, name) for name in METRICS}
        for name in ("log loss", "AUC"):
            row[f"metadata alone: {name}"] = _with_interval(metadata, name)
        rows.append(row)
    return rows


def plot_results(results: Results, path: Path) -> None:
    """Log loss and AUC of each disguise with intervals as a PNG.

    The networks are blue, with a line through the undisguised score; the baseline is
    grey.
    """
    with save_figure(path, 12, 1.5 + 0.32 * len(results)) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        _plot_metric(left, results, "log loss", "left")
        _plot_metric(right, results, "AUC", "right")
        handles, labels = right.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)


def _plot_metric(axes: "Axes", results: Results, name: str, better: str) -> None:
    """`better`: the side of better scores."""
    y = -np.arange(len(results))
    for model, colour, offset in ((METADATA, "0.65", -0.18), (NETWORKS, "tab:blue", 0)):
        all_scores = [scores[model] for scores in results.values()]
        values = np.array([scores.values[name] for scores in all_scores])
        ends = np.array([scores.intervals[name] for scores in all_scores]).T
        errors = np.maximum(np.abs(ends - values), 0)
        axes.errorbar(
            values,
            y + offset,
            xerr=errors,
            fmt="o",
            color=colour,
            capsize=3,
            label=model,
        )
    undisguised = results[NONE][NETWORKS].values[name]
    axes.axvline(undisguised, color="tab:blue", linewidth=0.8, linestyle="--")
    axes.set(
        title=f"{name} ({better} is better), 95 % intervals",
        yticks=y,
        yticklabels=list(results),
    )
    axes.grid(axis="x", alpha=0.3)


def _with_interval(scores: Scores, name: str) -> str:
    low, high = scores.intervals[name]
    value = scores.values[name]
    return "–" if math.isnan(value) else f"{value:.3f} ({low:.3f}–{high:.3f})"


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--disguised", type=Path, required=True, help="what evaluation.disguise wrote"
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        required=True,
        help="for the submission, the numbers and the chart",
    )
    add_model_options(parser)
    parser.add_argument(
        "--resamples",
        type=non_negative_int,
        default=500,
        help="bootstrap resamples of the videos for the intervals",
    )
    add_device_option(parser)
    add_executor_options(parser)
    options = parser.parse_args(argv)
    submission = options.output_dir / "submission.csv"
    if not submission.exists():
        arguments = [
            "--test-dir",
            options.disguised,
            "--output",
            submission,
            "--weights-dir",
            options.weights_dir,
            "--device",
            options.device,
            *("--engine", options.engine, "--precision", options.precision),
            *executor_arguments(options),
            *(["--models", *options.models] if options.models else []),
            *(["--ensemble", options.ensemble] if options.ensemble else []),
        ]
        predict.main([str(argument) for argument in arguments])
    probabilities = read_submission(submission)
    results = score_disguises(options.disguised, probabilities, options.resamples)
    plot_results(results, options.output_dir / "robustness.png")
    numbers = {
        disguise: {model: scores.as_json() for model, scores in both.items()}
        for disguise, both in results.items()
    }
    with atomic_file(options.output_dir / "robustness.json") as temporary:
        temporary.write_text(json.dumps(numbers, indent=1) + "\n")
    rows = results_table(results)
    print_results(
        "robustness",
        rows,
        models=options.models or str(options.ensemble or ""),
        device=options.device,
    )
    return 0


if __name__ == "__main__":
    run_main(main)
