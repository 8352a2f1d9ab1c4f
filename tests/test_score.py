"""Metrics by hand and against scikit-learn, confidence intervals, groups, bad input."""

import json
from math import inf, log

import cv2
import numpy as np
import pytest
from scipy.stats import binom
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    log_loss,
    roc_auc_score,
)

from evaluation import score as scorer
from runtime.cli import UserError


def test_scores_by_hand():
    labels = {"a": 1, "b": 1, "c": 0, "d": 0}
    probabilities = {"d": 0.6, "a": 0.9, "b": 0.5, "c": 0.2}
    scores = scorer.score(probabilities, labels)
    expected = -(log(0.9) + log(0.5) + log(0.8) + log(0.4)) / 4
    assert scores.log_loss == pytest.approx(expected)
    assert scores.accuracy == 0.5  # 0.5 is not above 0.5, and 0.6 is wrong
    # of the four pairs of a fake and a real, only b < d is in the wrong order
    assert scores.auc == 0.75
    assert (scores.videos, scores.fakes) == (4, 2)


def test_certain_and_wrong_is_clipped_as_kaggle_did():
    scores = scorer.score({"a": 0.0, "b": 0.0}, {"a": 1, "b": 0})
    assert scores.log_loss == pytest.approx(-log(1e-15) / 2)
    assert np.isnan(scorer.score({"a": 0.3}, {"a": 1}).auc)


def test_scores_equal_scikit_learn():
    rng = np.random.default_rng(0)
    truth, values = rng.integers(0, 2, 200), rng.uniform(0, 1, 200)
    names = [str(n) for n in range(200)]
    scores = scorer.score(dict(zip(names, values)), dict(zip(names, truth)))
    assert scores.log_loss == pytest.approx(log_loss(truth, values))
    assert scores.auc == pytest.approx(roc_auc_score(truth, values))
    assert scores.accuracy == np.mean((values > 0.5) == truth)
    balanced_accuracy = balanced_accuracy_score(truth, values > 0.5)
    assert scores.values["balanced accuracy"] == pytest.approx(balanced_accuracy)
    average_precision = average_precision_score(truth, values)
    assert scores.values["average precision"] == pytest.approx(average_precision)


def test_weighted_precision_by_hand():
    """Sorted by score: fake, real, fake, fake, real, fake.

    At recall 1/4 there is no false positive, at recall 1/2 there is one.
    """
    values = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    truth = np.array([1, 0, 1, 1, 0, 1])
    expected = {0.1: 1, 0.25: 1, 0.5: 2 / 102, 0.75: 3 / 103, 0.9: 4 / 204, 1: 4 / 204}
    for recall, precision in expected.items():
        found = scorer.weighted_precision(truth, values, recall)
        assert found == pytest.approx(precision)
    unweighted = scorer.weighted_precision(truth, values, 0.9, alpha=1)
    assert unweighted == pytest.approx(4 / 6)
    metrics = scorer.metrics()
    assert metrics["ln wP at recall 0.5"](truth, values) == pytest.approx(log(2 / 102))
    assert metrics["ln wP at recall 0.1"](truth, values) == 0
    # a weighted precision of 0, without a warning for the logarithm of 0
    assert metrics["ln wP at recall 0.5"](np.zeros(6), values) == -inf


def slow_weighted_precision(truth, values, recall):
    for threshold in sorted(set(values), reverse=True):
        true = sum((values >= threshold) & (truth == 1))
        false = sum((values >= threshold) & (truth == 0))
        if true / sum(truth) >= recall:
            return true / (true + 100 * false)


def test_weighted_precision_equals_a_search_of_all_thresholds():
    rng = np.random.default_rng(1)
    for _ in range(20):
        truth = rng.integers(0, 2, 60)
        values = np.round(rng.uniform(0, 1, 60), 1)  # with ties
        for recall in scorer.RECALLS:
            expected = slow_weighted_precision(truth, values, recall)
            found = scorer.weighted_precision(truth, values, recall)
            assert found == pytest.approx(expected)


def test_calibration_error_by_hand():
    """A bin of two videos, mean 0.15, one of them fake; a bin of one real at 1.0."""
    truth, values = np.array([0, 1, 0]), np.array([0.1, 0.2 - 1e-9, 1.0])
    expected = 2 / 3 * 0.35 + 1 / 3 * 1
    assert scorer.calibration_error(truth, values) == pytest.approx(expected)


def test_balanced_accuracy_and_clipped_scores_by_hand():
    probabilities = {"a": 1.0, "b": 0.2, "c": 0.1, "d": 0.0}
    labels = {"a": 1, "b": 1, "c": 0, "d": 0}
    scores = scorer.score(probabilities, labels, clip=0.01)
    assert scores.values["balanced accuracy"] == 0.75 and scores.clipped == 2
    assert scores.log_loss == pytest.approx(-(2 * log(0.99) + log(0.2) + log(0.9)) / 4)


def test_intervals_of_the_accuracy_are_the_binomials():
    """70 of 100 correct: the bootstrap distribution is binomial, n = 100, p = 0.7."""
    names = [str(number) for number in range(100)]
    probabilities = {name: 0.9 if int(name) < 70 else 0.1 for name in names}
    scores = scorer.score(probabilities, dict.fromkeys(names, 1), resamples=2000)
    expected = binom.ppf([0.025, 0.975], 100, 0.7) / 100
    assert scores.intervals["accuracy"] == pytest.approx(expected, abs=0.011)
    assert np.isnan(scores.intervals["AUC"]).all()
    assert scores.values["ln wP at recall 0.9"] == 0


def test_groups_share_the_videos_without_a_value(tmp_path, capsys):
    (tmp_path / "s.csv").write_text("filename,label\na,0.9\nb,0.2\nc,0.4\nd,0.1\n")
    (tmp_path / "l.csv").write_text(
        "filename,label,technique,part\na,1,swap,0\nb,1,mask,0\nc,0,,1\nd,0,,1\n"
    )
    files = [f"--submission={tmp_path / 's.csv'}", f"--labels={tmp_path / 'l.csv'}"]
    options = [
        *("--group-by", "technique", "part"),
        "--resamples=50",
        f"--json={tmp_path / 's.json'}",
        f"--plot={tmp_path / 's.png'}",
    ]
    assert scorer.main([*files, *options]) == 0
    printed = capsys.readouterr().out
    assert "technique mask: " in printed and "technique swap: log loss 0.24" in printed
    found = json.loads((tmp_path / "s.json").read_text())
    technique, part = found["groups"]["technique"], found["groups"]["part"]
    assert technique["swap"]["videos"] == 3
    assert technique["swap"]["AUC"]["value"] == 1
    assert technique["mask"]["AUC"]["value"] == 0.5
    # JSON has no NaN and no infinity
    assert part["1"]["AUC"]["value"] == "nan"
    assert part["1"]["ln wP at recall 0.5"]["value"] == "-inf"
    assert found["all"]["AUC"]["value"] == 0.75
    assert len(found["all"]["AUC"]["interval"]) == 2
    image = cv2.imread(str(tmp_path / "s.png"))
    assert image.shape[1] > 2 * image.shape[0] and image.std() > 10
    with pytest.raises(
        UserError,
        match="no column 'method' to group by; it has filename, label, technique, part",
    ):
        scorer.main([*files, "--group-by", "method"])


def test_labels_from_csv_and_metadata(tmp_path, capsys):
    (tmp_path / "s.csv").write_text("filename,label\na.mp4,0.75\nb.mp4,0.25\n")
    metadata = {"a.mp4": {"label": "FAKE"}, "b.mp4": {"label": "REAL"}}
    files = {
        "words.csv": "filename,label,more\nb.mp4,REAL,x\na.mp4,FAKE,y\n",
        "numbers.csv": "filename,label\na.mp4,1\nb.mp4,0\n",
        "metadata.json": json.dumps(metadata),
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        arguments = [
            f"--submission={tmp_path / 's.csv'}",
            f"--labels={tmp_path / name}",
            "--resamples=9",
        ]
        assert scorer.main(arguments) == 0
        assert capsys.readouterr().out.startswith(
            "log loss 0.28768   accuracy 1.0000   AUC 1.0000   "
            "(2 videos: 1 fake, 1 real)\n"
        )


FAKE = "filename,label\na,1\n"  # the labels of one fake


@pytest.mark.parametrize(
    "submission, labels, words",
    [
        (
            "filename,label\na,0.5\n",
            "filename,label\na,1\nb,0\n",
            "1 videos are missing in the submission, the first is b",
        ),
        (
            "filename,label\na,0.5\nb,0.5\n",
            FAKE,
            "1 videos are missing in the labels, the first is b",
        ),
        (
            "filename,label\na,half\n",
            FAKE,
            "s.csv: a: the label 'half' is not a number",
        ),
        ("filename,label\na,1.5\n", FAKE, "s.csv: a: .* from 0 to 1"),
        ("filename,label\na,nan\n", FAKE, "s.csv: a: .* from 0 to 1"),
        (
            "filename,label\na,0.5\n",
            "filename,label\na,2\n",
            "l.csv: a: .* 0, 1, REAL or FAKE",
        ),
        ("filename,label\na,0.5\na,0.6\n", FAKE, "names a video twice"),
        ("name,label\na,0.5\n", FAKE, "columns filename,label"),
        ("filename,label\n", FAKE, "lists no video"),
        (None, FAKE, "cannot be read"),
    ],
)
def test_mistakes_name_the_file(tmp_path, submission, labels, words):
    for name, text in (("s.csv", submission), ("l.csv", labels)):
        if text is not None:
            (tmp_path / name).write_text(text)
    arguments = [f"--submission={tmp_path / 's.csv'}", f"--labels={tmp_path / 'l.csv'}"]
    with pytest.raises(UserError, match=words):
        scorer.main(arguments)
