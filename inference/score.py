"""Score a submission against the answers.

    python -m inference.score --submission submission.csv --labels labels.csv

Reads  filename,label from the submission; the answers from a CSV with the same two columns (0/1 or REAL/FAKE) or from a
       DFDC metadata.json
Prints log loss (natural, clipped as Kaggle did at 1e-15), accuracy at 0.5, AUC, and the counts
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

from preprocessing.cli import UserError, make_parser, run_main
from preprocessing.dfdc import LABELS, read_metadata
from preprocessing.files import TABLE

CLIP = 1e-15


@dataclass(frozen=True)
class Scores:
    """What is printed. `auc` is NaN where the answers are all alike."""

    log_loss: float
    accuracy: float
    auc: float
    videos: int
    fakes: int

    def __str__(self) -> str:
        return (
            f"log loss {self.log_loss:.5f}   accuracy {self.accuracy:.4f}   AUC {self.auc:.4f}   "
            f"({self.videos} videos: {self.fakes} fake, {self.videos - self.fakes} real)"
        )


def score(probabilities: dict[str, float], answers: dict[str, int]) -> Scores:
    """Compare probabilities of FAKE with answers 0 and 1, by file name.

    Raises:
        UserError: a video of one is missing in the other.
    """
    for names, others, where in ((answers, probabilities, "submission"), (probabilities, answers, "labels")):
        if missing := sorted(names.keys() - others.keys()):
            raise UserError(f"the {where} lack {len(missing)} videos, the first {missing[0]}")
    truth = np.array([answers[name] for name in answers])
    values = np.array([probabilities[name] for name in answers])
    return Scores(
        log_loss=float(log_loss(truth, np.clip(values, CLIP, 1 - CLIP), labels=[0, 1])),
        accuracy=float(accuracy_score(truth, values > 0.5)),
        auc=float(roc_auc_score(truth, values)) if len(set(truth)) == 2 else float("nan"),
        videos=len(truth),
        fakes=int(truth.sum()),
    )


def read_submission(path: Path) -> dict[str, float]:
    """filename → probability. Raises UserError where a label is no number from 0 to 1."""
    values = {}
    for name, text in _read_columns(path):
        try:
            values[name] = float(text)
        except ValueError as error:
            raise UserError(f"{path}: {name}: the label {text!r} is not a number") from error
        if not 0 <= values[name] <= 1:
            raise UserError(f"{path}: {name}: the label {text} is not a probability from 0 to 1")
    return values


def read_answers(path: Path) -> dict[str, int]:
    """filename → 0 or 1, from a CSV or a metadata.json."""
    if path.suffix == ".json":
        pairs = [(name, str(entry.get("label"))) for name, entry in read_metadata(path).items()]
    else:
        pairs = _read_columns(path)
    known = {"0": 0, "1": 1, **{label: int(is_fake) for label, is_fake in LABELS.items()}}
    for name, text in pairs:
        if text not in known:
            raise UserError(f"{path}: {name}: the label {text!r} must be 0, 1, REAL or FAKE")
    return {name: known[text] for name, text in pairs}


def _read_columns(path: Path) -> list[tuple[str, str]]:
    try:
        with open(path, **TABLE) as file:
            reader = csv.DictReader(file)
            if not {"filename", "label"} <= set(reader.fieldnames or ()):
                raise UserError(f"{path}: must have the columns filename,label")
            pairs = [(row["filename"], row["label"]) for row in reader]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if len(dict(pairs)) < len(pairs) or not pairs:
        raise UserError(f"{path}: {'names a video twice' if pairs else 'lists no video'}")
    return pairs


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--submission", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True, help="CSV (filename,label) or metadata.json")
    options = parser.parse_args(argv)
    print(score(read_submission(options.submission), read_answers(options.labels)))
    return 0


if __name__ == "__main__":
    run_main(main)
