"""The score under each disguise against the undisguised one, beside a judge that looks at no pixel.

    python -m evaluation.disguise --test-dir VIDEOS --output-dir DISGUISED
    python -m evaluation.robustness --disguised DISGUISED --output-dir OUT --weights-dir weights --models A B …

Reads  what evaluation.disguise wrote, and the checkpoints
Writes OUT/submission.csv with its report, OUT/robustness.json, OUT/robustness.png
Method: `inference.predict` on all, then `evaluation.score` for each disguise, 95 % intervals over resampled videos. The
       metadata-only baseline is a random forest on what the container says (`inference.provenance.container_metadata`),
       cross-validated so that a fake and its original are never on both sides. DFDC leaked through such facts: whoever beats
       that by little has learned little.
"""

import json
import math
from pathlib import Path

import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction import DictVectorizer
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline

from evaluation.disguise import NONE
from evaluation.score import (
    Scores,
    read_column,
    read_label_rows,
    read_labels,
    read_submission,
    score,
)
from inference import predict
from inference.provenance import container_metadata
from runtime.cli import UserError, make_parser, non_negative_int, run_main
from runtime.device import add_device_option
from runtime.executor import add_executor_options, executor_arguments
from runtime.files import atomic_file, save_figure
from runtime.results import print_results

FOLDS = 5
SHOWN = ("log loss", "accuracy", "AUC")


def metadata_predictions(
    facts: list[dict], truth: np.ndarray, families: list[str]
) -> np.ndarray:
    """Cross-validated probabilities of FAKE (N,) from what the containers say; a family is never on both sides."""
    folds = min(FOLDS, len(set(families)))
    if folds < 2 or len(set(truth)) < 2:
        raise UserError(
            "the metadata-only baseline needs real and fake videos of at least two families"
        )
    forest = RandomForestClassifier(300, min_samples_leaf=2, random_state=0)
    model = make_pipeline(DictVectorizer(sparse=False), forest)
    probabilities = cross_val_predict(
        model,
        facts,
        truth,
        groups=families,
        cv=GroupKFold(folds),
        method="predict_proba",
    )
    return probabilities[:, 1]


def score_kinds(
    folder: Path, probabilities: dict[str, float], resamples: int
) -> dict[str, dict[str, Scores]]:
    """For each disguise, the undisguised first: the scores of the networks and of the metadata alone."""
    labels = folder / "labels.csv"
    answers, kinds, sources = (
        read_labels(labels),
        read_column(labels, "disguise"),
        read_column(labels, "source"),
    )
    rows = read_label_rows(labels)
    found = {}
    for kind in sorted(set(kinds.values()), key=lambda each: (each != NONE, each)):
        names = [name for name in answers if kinds[name] == kind]
        truth = np.array([answers[name] for name in names])
        families = [rows[name].get("original") or sources[name] for name in names]
        guesses = metadata_predictions(
            [container_metadata(folder / name) for name in names], truth, families
        )
        mine = {name: answers[name] for name in names}
        found[kind] = {
            "networks": score(
                {name: probabilities[name] for name in names}, mine, resamples=resamples
            ),
            "metadata": score(dict(zip(names, guesses)), mine, resamples=resamples),
        }
    return found


def table(found: dict[str, dict[str, Scores]]) -> list[dict]:
    """One row a disguise."""
    rows = []
    for kind, scores in found.items():
        row = {"disguise": kind, "videos": scores["networks"].videos}
        row |= {name: _with_interval(scores["networks"], name) for name in SHOWN}
        row |= {
            f"metadata alone: {name}": _with_interval(scores["metadata"], name)
            for name in ("log loss", "AUC")
        }
        rows.append(row)
    return rows


def draw(found: dict[str, dict[str, Scores]], path: Path) -> None:
    """Log loss and AUC of each disguise with intervals, the undisguised as a line, the metadata alone in grey."""
    with save_figure(path, 12, 1.5 + 0.32 * len(found)) as figure:
        places = -np.arange(len(found))
        for axes, name, better in zip(
            figure.subplots(1, 2, sharey=True), ("log loss", "AUC"), ("left", "right")
        ):
            for judge, colour, offset in (
                ("metadata", "0.65", -0.18),
                ("networks", "tab:blue", 0.0),
            ):
                values = np.array(
                    [scores[judge].values[name] for scores in found.values()]
                )
                ends = np.array(
                    [scores[judge].intervals[name] for scores in found.values()]
                ).T
                errors = np.maximum(np.abs(ends - values) * [[1], [1]], 0)
                axes.errorbar(
                    values,
                    places + offset,
                    xerr=errors,
                    fmt="o",
                    color=colour,
                    capsize=3,
                    label=judge,
                )
            axes.axvline(
                found[NONE]["networks"].values[name],
                color="tab:blue",
                linewidth=0.8,
                linestyle="--",
            )
            axes.set(
                title=f"{name} ({better} is better), 95 % intervals",
                yticks=places,
                yticklabels=list(found),
            )
            axes.grid(axis="x", alpha=0.3)
        figure.legend(
            *axes.get_legend_handles_labels(), loc="outside lower center", ncols=2
        )


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
    predict.add_model_options(parser)
    parser.add_argument(
        "--resamples",
        type=non_negative_int,
        default=500,
        help="of the videos, for the intervals",
    )
    add_device_option(parser)
    add_executor_options(parser)
    options = parser.parse_args(argv)
    submission = options.output_dir / "submission.csv"
    if not submission.exists():
        passed = [
            "--test-dir",
            options.disguised,
            "--output",
            submission,
            "--weights-dir",
            options.weights_dir,
            "--device",
            options.device,
            *executor_arguments(options),
            *(["--models", *options.models] if options.models else []),
        ]
        predict.main([str(word) for word in passed])
    found = score_kinds(
        options.disguised, read_submission(submission), options.resamples
    )
    draw(found, options.output_dir / "robustness.png")
    numbers = {
        kind: {judge: scores.as_json() for judge, scores in both.items()}
        for kind, both in found.items()
    }
    with atomic_file(options.output_dir / "robustness.json") as temporary:
        temporary.write_text(json.dumps(numbers, indent=1) + "\n")
    print_results(
        "robustness", table(found), models=options.models, device=options.device
    )
    return 0


if __name__ == "__main__":
    run_main(main)
