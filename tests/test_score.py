import json
from math import log

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from inference import score as scorer
from preprocessing.cli import UserError


def test_scores_by_hand():
    answers = {"a": 1, "b": 1, "c": 0, "d": 0}
    probabilities = {"d": 0.6, "a": 0.9, "b": 0.5, "c": 0.2}
    scores = scorer.score(probabilities, answers)
    assert scores.log_loss == pytest.approx(-(log(0.9) + log(0.5) + log(0.8) + log(0.4)) / 4)
    assert scores.accuracy == 0.5  # 0.5 is not above 0.5, and 0.6 is wrong
    assert scores.auc == 0.75  # of the four pairs of a fake and a real, b < d is the one in the wrong order
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


def test_labels_from_csv_and_metadata(tmp_path, capsys):
    (tmp_path / "s.csv").write_text("filename,label\na.mp4,0.75\nb.mp4,0.25\n")
    (tmp_path / "words.csv").write_text("filename,label,more\nb.mp4,REAL,x\na.mp4,FAKE,y\n")
    (tmp_path / "numbers.csv").write_text("filename,label\na.mp4,1\nb.mp4,0\n")
    (tmp_path / "metadata.json").write_text(json.dumps({"a.mp4": {"label": "FAKE"}, "b.mp4": {"label": "REAL"}}))
    for name in ("words.csv", "numbers.csv", "metadata.json"):
        assert scorer.main(["--submission", str(tmp_path / "s.csv"), "--labels", str(tmp_path / name)]) == 0
        assert capsys.readouterr().out == "log loss 0.28768   accuracy 1.0000   AUC 1.0000   (2 videos: 1 fake, 1 real)\n"


@pytest.mark.parametrize("submission, labels, words", [
    ("filename,label\na,0.5\n", "filename,label\na,1\nb,0\n", "submission lack 1 videos, the first b"),
    ("filename,label\na,0.5\nb,0.5\n", "filename,label\na,1\n", "labels lack 1 videos, the first b"),
    ("filename,label\na,half\n", "filename,label\na,1\n", "s.csv: a: the label 'half' is not a number"),
    ("filename,label\na,1.5\n", "filename,label\na,1\n", "s.csv: a: .* from 0 to 1"),
    ("filename,label\na,nan\n", "filename,label\na,1\n", "s.csv: a: .* from 0 to 1"),
    ("filename,label\na,0.5\n", "filename,label\na,2\n", "l.csv: a: .* 0, 1, REAL or FAKE"),
    ("filename,label\na,0.5\na,0.6\n", "filename,label\na,1\n", "names a video twice"),
    ("name,label\na,0.5\n", "filename,label\na,1\n", "columns filename,label"),
    ("filename,label\n", "filename,label\na,1\n", "lists no video"),
    (None, "filename,label\na,1\n", "cannot be read"),
])  # fmt: skip
def test_mistakes_name_the_file(tmp_path, submission, labels, words):
    for name, text in (("s.csv", submission), ("l.csv", labels)):
        if text is not None:
            (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=words):
        scorer.main(["--submission", str(tmp_path / "s.csv"), "--labels", str(tmp_path / "l.csv")])
