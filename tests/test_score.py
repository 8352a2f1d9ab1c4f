"""Metrics by hand and against scikit-learn, confidence intervals, groups, bad input,
tables as Excel and editors save them."""

import csv
import gzip
import json
import os
import subprocess
import sys
import zipfile
from math import inf, log
from pathlib import Path

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

from evaluation import metrics, tables
from evaluation import score as scorer
from runtime.cli import UserError


def test_scores_by_hand():
    labels = {"a": 1, "b": 1, "c": 0, "d": 0}
    probabilities = {"d": 0.6, "a": 0.9, "b": 0.5, "c": 0.2}
    scores = metrics.score(probabilities, labels)
    expected = -(log(0.9) + log(0.5) + log(0.8) + log(0.4)) / 4
    assert scores.log_loss == pytest.approx(expected)
    assert scores.accuracy == 0.5  # 0.5 is not above 0.5, and 0.6 is wrong
    # of the four pairs of a fake and a real, only b < d is in the wrong order
    assert scores.auc == 0.75
    assert (scores.videos, scores.fakes) == (4, 2)


def test_certain_and_wrong_is_clipped_as_kaggle_did():
    scores = metrics.score({"a": 0.0, "b": 0.0}, {"a": 1, "b": 0})
    assert scores.log_loss == pytest.approx(-log(1e-15) / 2)
    assert np.isnan(metrics.score({"a": 0.3}, {"a": 1}).auc)


def test_scores_equal_scikit_learn():
    rng = np.random.default_rng(0)
    truth, values = rng.integers(0, 2, 200), rng.uniform(0, 1, 200)
    names = [str(n) for n in range(200)]
    scores = metrics.score(dict(zip(names, values)), dict(zip(names, truth)))
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
        found = metrics.weighted_precision(truth, values, recall)
        assert found == pytest.approx(precision)
    unweighted = metrics.weighted_precision(truth, values, 0.9, alpha=1)
    assert unweighted == pytest.approx(4 / 6)
    by_name = metrics.metrics()
    assert by_name["ln wP at recall 0.5"](truth, values) == pytest.approx(log(2 / 102))
    assert by_name["ln wP at recall 0.1"](truth, values) == 0
    # a weighted precision of 0, without a warning for the logarithm of 0
    assert by_name["ln wP at recall 0.5"](np.zeros(6), values) == -inf


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
        for recall in metrics.RECALLS:
            expected = slow_weighted_precision(truth, values, recall)
            found = metrics.weighted_precision(truth, values, recall)
            assert found == pytest.approx(expected)


def test_calibration_error_by_hand():
    """A bin of two videos, mean 0.15, one of them fake; a bin of one real at 1.0."""
    truth, values = np.array([0, 1, 0]), np.array([0.1, 0.2 - 1e-9, 1.0])
    expected = 2 / 3 * 0.35 + 1 / 3 * 1
    assert metrics.calibration_error(truth, values) == pytest.approx(expected)


def test_balanced_accuracy_and_clipped_scores_by_hand():
    probabilities = {"a": 1.0, "b": 0.2, "c": 0.1, "d": 0.0}
    labels = {"a": 1, "b": 1, "c": 0, "d": 0}
    scores = metrics.score(probabilities, labels, clip=0.01)
    assert scores.values["balanced accuracy"] == 0.75 and scores.clipped == 2
    assert scores.log_loss == pytest.approx(-(2 * log(0.99) + log(0.2) + log(0.9)) / 4)


def test_intervals_of_the_accuracy_are_the_binomials():
    """70 of 100 correct: the bootstrap distribution is binomial, n = 100, p = 0.7."""
    names = [str(number) for number in range(100)]
    probabilities = {name: 0.9 if int(name) < 70 else 0.1 for name in names}
    scores = metrics.score(probabilities, dict.fromkeys(names, 1), resamples=2000)
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
        match="no column 'method'; it has filename, label, technique, part",
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
        ("filename,label\na,0_1\n", FAKE, "'0_1' is not a number"),
        ("filename,label\na,0.5\n", "filename,label\na,0_1\n", "l.csv: a: .*'0_1'"),
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
        ("", FAKE, "s.csv: must have the columns filename,label; it is empty"),
        ("name;label\na;0.5\n", FAKE, "filename,label; it has name,label$"),
        ("a,0.5\n", FAKE, "filename,label; it has a,0.5$"),
        ("filename,label,label\na,1,1\n", FAKE, "has the column label twice"),
        (
            "filename,label\n\na,0.5\n\nb\n",
            FAKE,
            "s.csv: line 5: 'b' has no label; complete this row or remove it",
        ),
        ("filename,label\na,\n", FAKE, "s.csv: line 2: 'a,' has no label"),
        ("label,filename\n0.5\n", FAKE, "s.csv: line 2: '0.5' has no filename"),
        ("filename,label\na,0,5\n", FAKE, "s.csv: line 2: 'a,0,5' .* '5' is the first"),
        ('filename,label\n"a,0.5\nb,0.6\n', FAKE, r"line 2: 'a,0.5\\nb.*no label"),
        ("filename,label\na.mp4,0.5\na,0.6\n", FAKE, "video twice, a and a.mp4; keep"),
        ("filename;label\na;1,234.5\n", FAKE, "'1,234.5' is not a number"),
        ("filename;label\na;1,5\n", FAKE, "s.csv: a: .* 1,5 is not a probability"),
        ("filename,label\na,0.5\n", "filename,label\na,yes\n", "l.csv: a: .*'yes'"),
        ("filename,label\na,0.5\n", "filename,label\na,0.5\n", "l.csv: a: .*'0.5'"),
        ("filename,label\na,0.5\n", "filename,label\na,nan\n", "l.csv: a: .*'nan'"),
    ],
)
def test_mistakes_name_the_file(tmp_path, submission, labels, words):
    for name, text in (("s.csv", submission), ("l.csv", labels)):
        if text is not None:
            (tmp_path / name).write_text(text)
    arguments = [f"--submission={tmp_path / 's.csv'}", f"--labels={tmp_path / 'l.csv'}"]
    with pytest.raises(UserError, match=words) as raised:
        scorer.main(arguments)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("distance", ["0.5", "0.7", "-0.1", "nan"])
def test_a_clip_that_would_turn_probabilities_round(distance, capsys):
    with pytest.raises(SystemExit):
        scorer.main(["--submission=s", "--labels=l", f"--clip={distance}"])
    assert f"{distance} is not a number from 0 to below 0.5" in capsys.readouterr().err


PLAIN = "filename,label\na.mp4,0.9\nb.mp4,0.2\n"
SAVED_TABLES = {
    "as it is": PLAIN.encode(),
    "byte order mark": PLAIN.encode("utf-8-sig"),
    "UTF-16": PLAIN.encode("utf-16"),
    "UTF-16, most significant byte first": b"\xfe\xff" + PLAIN.encode("utf-16-be"),
    "UTF-16 with tabs": PLAIN.replace(",", "\t").encode("utf-16"),
    "semicolons": PLAIN.replace(",", ";").encode(),
    "tabs, CR LF": PLAIN.replace(",", "\t").replace("\n", "\r\n").encode(),
    "CR alone": PLAIN.replace("\n", "\r").encode(),
    "no line end": PLAIN.strip().encode(),
    "sep line": b"sep=;\r\n" + PLAIN.replace(",", ";").encode(),
    "sep line, mark": b"\xef\xbb\xbfSEP=;\n" + PLAIN.replace(",", ";").encode(),
    "sep line in quotes": b'"sep=,"\n' + PLAIN.encode(),
    "sep line of another delimiter": b"sep=|\n" + PLAIN.replace(",", "|").encode(),
    "wrong sep line": b"sep=;\n" + PLAIN.encode(),
    "blanks": PLAIN.replace(",", ", ").encode(),
    "blanks around": PLAIN.replace(",", " , ").replace("\n", " \n").encode(),
    "blanks before quotes": b'"filename", "label"\n"a.mp4", "0.9"\n"b.mp4", "0.2"\n',
    "blank lines": b"\n" + PLAIN.replace("\n", "\n\n \n,\n").encode(),
    "empty column": PLAIN.replace("\n", ",\n").encode(),
    "row with an empty cell more": PLAIN.replace("0.9", "0.9,").encode(),
    "other order": b"label, filename\n0.9, a.mp4\n0.2, b.mp4\n",
    "names padded below a header that is not": b"label,filename\n0.9, a.mp4\n.2, b.mp4",
    "a row number": b",filename,label\n0,a.mp4,0.9\n1,b.mp4,0.2\n",
    "decimal comma": b"filename;label\na.mp4;0,9\nb.mp4;2,0E-1\n",
    "decimal comma in quotes": b'filename,label\na.mp4,"0,9"\nb.mp4,"0,2"\n',
}


@pytest.mark.parametrize("content", SAVED_TABLES.values(), ids=SAVED_TABLES)
def test_submissions_as_programs_save_them(tmp_path, content):
    (tmp_path / "s.csv").write_bytes(content)
    found = tables.read_submission(tmp_path / "s.csv")
    assert found == {"a.mp4": 0.9, "b.mp4": 0.2}


def test_labels_as_programs_save_them(tmp_path):
    words = ("REAL", "fake", "Fake ", " real", "0", "1.0", "0.0", "1,0", "1.")
    rows = "".join(f"{number};{word}\n" for number, word in enumerate(words))
    (tmp_path / "l.csv").write_text(f"filename;label\n{rows}")
    expected = dict(zip("012345678", (0, 1, 1, 0, 0, 1, 0, 1, 1)))
    assert tables.read_labels(tmp_path / "l.csv") == expected
    metadata = {"a": {"label": "fake"}, "b": {"label": 0}, "c": {"label": 1.0}}
    text = json.dumps(metadata)
    (tmp_path / "METADATA.JSON").write_text(text, encoding="utf-8-sig")
    assert tables.read_labels(tmp_path / "METADATA.JSON") == {"a": 1, "b": 0, "c": 1}


def test_cells_with_commas_quotes_and_missing_ends(tmp_path):
    table = tmp_path / "l.csv"
    table.write_text('filename,label,how,who\n"a, ""b"".mp4",1,"x, y"\nc.mp4,0\n')
    assert tables.read_labels(table) == {'a, "b".mp4': 1, "c.mp4": 0}
    assert tables.read_column(table, "how") == {'a, "b".mp4': "x, y", "c.mp4": ""}
    assert tables.read_column(table, "who") == {'a, "b".mp4': "", "c.mp4": ""}


def test_names_that_begin_with_a_blank_or_are_not_utf8(tmp_path):
    (tmp_path / "s.csv").write_bytes(b"filename,label\n a.mp4,0.9\n b\xe9.mp4,0.2\n")
    names = tables.read_submission(tmp_path / "s.csv")
    assert [os.fsencode(name) for name in names] == [b" a.mp4", b" b\xe9.mp4"]


def test_what_is_no_text_is_said_to_be_none(tmp_path):
    with zipfile.ZipFile(tmp_path / "workbook", "w") as workbook:
        workbook.writestr("xl/worksheets/sheet1.xml", "<worksheet/>")
    contents = [
        (tmp_path / "workbook").read_bytes(),
        gzip.compress(PLAIN.encode()),
        bytes(range(256)),
        PLAIN.encode("utf-16-le"),  # without a byte order mark
        PLAIN.encode("utf-16")[:-1],
    ]
    for content in contents:
        (tmp_path / "s.csv").write_bytes(content)
        with pytest.raises(
            UserError, match=r"is not a CSV .* save it as CSV \(UTF-8\)"
        ):
            tables.read_submission(tmp_path / "s.csv")
    (tmp_path / "s.csv").write_text(f'filename,label\n"{PLAIN * 10000}')
    with pytest.raises(UserError, match="s.csv: is not a CSV file"):
        tables.read_submission(tmp_path / "s.csv")


def test_names_match_without_their_endings(tmp_path, capsys):
    (tmp_path / "s.csv").write_text("filename,label\na,0.75\nb.mp4,0.25\nc.d,0.25\n")
    (tmp_path / "l.csv").write_text("filename,label\na.mp4,1\nb,0\nc.d.MOV,0\n")
    arguments = [f"--submission={tmp_path / 's.csv'}", f"--labels={tmp_path / 'l.csv'}"]
    assert scorer.main([*arguments, "--resamples=0"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("log loss 0.28768 ")
    assert printed.err == (
        "3 file names differ in their endings and were matched without, the first is a "
        "in the submission, a.mp4 in the labels\n"
    )


@pytest.mark.parametrize(
    "names, others",
    [
        (["a"], ["a.mp4", "a.mov"]),  # which of them?
        (["a.mp4", "a.mov"], ["a"]),
        (["a.mp4"], ["a.mov"]),  # two endings
        (["a"], ["a.1"]),  # not the ending of a video
        (["a.mp4", "b.mp4"], ["a.mp4", "b.mp4"]),
        (["a.mp4", "a.mov"], ["a.mp4", "a.mov"]),
    ],
)
def test_names_that_are_kept(names, others, capsys):
    probabilities = dict.fromkeys(names, 0.5)
    matched = tables.match_names(probabilities, dict.fromkeys(others, 1))
    assert matched == probabilities and not capsys.readouterr().err


def test_an_ascii_terminal_shows_any_name(tmp_path):
    table = "filename,label,méthode\nà.mp4,1,é\nb.mp4,0,\n".encode()
    (tmp_path / "s.csv").write_bytes(table.replace(b"b.mp4,0", b"b,0"))
    (tmp_path / "l.csv").write_bytes(table.replace("é\n".encode(), b"\xe9\n"))
    command = [sys.executable, "-m", "evaluation.score", "--resamples=0"]
    files = ["--submission=s.csv", "--labels=l.csv", "--json=s.json"]
    environment = {
        **os.environ,
        "PYTHONIOENCODING": "ascii",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    done = subprocess.run(
        [*command, *files, "--group-by", "méthode"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr[:12]) == (0, "1 file names")
    assert r"m\xe9thode \udce9: log loss" in done.stdout
    assert (
        "\udce9" in json.loads((tmp_path / "s.json").read_text())["groups"]["méthode"]
    )


def slow_equal_error_rate(truth, values):
    """Where the two error rates cross, between all thresholds, by bisection."""
    thresholds = [np.inf, *sorted(set(values), reverse=True)]
    points = [
        (
            np.mean([value >= limit for value in values[truth == 0]]),
            np.mean([value < limit for value in values[truth == 1]]),
        )
        for limit in thresholds
    ]

    def gap(position):
        at = min(int(position), len(points) - 2)
        (fpr, fnr), (fpr_2, fnr_2) = points[at], points[at + 1]
        share = position - at
        false_alarms = fpr + share * (fpr_2 - fpr)
        return fnr + share * (fnr_2 - fnr) - false_alarms, false_alarms

    low, high = 0.0, len(points) - 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if gap(middle)[0] > 0 else (low, middle)
    return gap(low)[1]


def test_equal_error_rate_beside_bisection_and_by_hand():
    rng = np.random.default_rng(0)
    for count in (5, 20, 200):
        truth = np.array([0, 1, *rng.integers(0, 2, count)])
        values = np.round(truth * 0.2 + rng.random(count + 2), 1)  # with ties
        expected = slow_equal_error_rate(truth, values)
        assert metrics.equal_error_rate(truth, values) == pytest.approx(expected)
    # one of two reals above one of three fakes: between fpr 0, fnr 1/3 and 1/2, 1/3
    truth, values = np.array([0, 0, 1, 1, 1]), np.array([0.1, 0.6, 0.5, 0.7, 0.8])
    assert metrics.equal_error_rate(truth, values) == pytest.approx(1 / 3)
    assert metrics.equal_error_rate(np.array([0, 1]), np.array([0.1, 0.9])) == 0
    assert metrics.equal_error_rate(np.array([0, 1]), np.array([0.9, 0.1])) == 1


@pytest.fixture
def faces(tmp_path):
    """A faces CSV of two networks, four videos of two techniques, and labels.

    Video c has two faces in frame 3; d, which is fake, shows no face.
    """
    rng = np.random.default_rng(1)
    places = {"a.mp4": [0, 3], "b.mp4": [0], "c.mp4": [0, 3, 3], "e.mp4": [1, 2, 3]}
    rows, kept = ["video,frame,time,x1,y1,x2,y2,model,probability"], {}
    for video, frames in places.items():
        for face, frame in enumerate(frames):
            for model in ("one", "two"):
                value = round(float(rng.random()), 3)
                kept[video, frame, face, model] = value
                rows.append(f"{video},{frame},0,1,1,2,2,{model},{value}")
    (tmp_path / "faces.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "labels.csv").write_text(
        "filename,label,technique\na.mp4,0,\nb.mp4,0,\nc.mp4,1,swap\ne.mp4,1,paint\n"
        "d.mp4,1,swap\n"
    )
    return tmp_path, kept


def slow_levels(kept):
    """Frame scores, and by video the mean over them and the winner's rule."""
    from inference.aggregate import winner

    frames, by_rule = {}, {}
    for video in dict.fromkeys(key[0] for key in kept):
        for frame in dict.fromkeys(key[1] for key in kept if key[0] == video):
            faces = {key[2] for key in kept if key[:2] == (video, frame)}
            frames[video, frame] = max(
                np.mean([kept[video, frame, face, model] for model in ("one", "two")])
                for face in faces
            )
        by_rule[video] = np.mean(
            [
                winner(np.array([kept[k] for k in kept if k[0] == video and k[3] == m]))
                for m in ("one", "two")
            ]
        )
    means = {
        video: np.mean([value for key, value in frames.items() if key[0] == video])
        for video in by_rule
    }
    return frames, means, by_rule


def test_three_levels_of_a_faces_csv_beside_scikit_learn(faces, capsys):
    folder, kept = faces
    frames, means, by_rule = slow_levels(kept)
    arguments = [
        "--submission",
        folder / "faces.csv",
        "--labels",
        folder / "labels.csv",
    ]
    out = folder / "out.json"
    assert scorer.main([*map(str, [*arguments, "--json", out, "--resamples", 50])]) == 0
    results = json.loads(out.read_text())
    truth = {"a.mp4": 0, "b.mp4": 0, "c.mp4": 1, "e.mp4": 1, "d.mp4": 1}
    for level, values in (
        ("videos, rule winner", by_rule | {"d.mp4": 0.5}),
        ("videos, mean over frames", means | {"d.mp4": 0.5}),
        ("frames", frames),
    ):
        y_true = [truth[key if isinstance(key, str) else key[0]] for key in values]
        y_score = [*values.values()]
        found = results["levels"][level]
        for name, expected in (
            ("AUC", roc_auc_score(y_true, y_score)),
            ("average precision", average_precision_score(y_true, y_score)),
            ("log loss", log_loss(y_true, y_score)),
            ("accuracy", np.mean((np.array(y_score) > 0.5) == y_true)),
            ("EER", slow_equal_error_rate(np.array(y_true), np.array(y_score))),
        ):
            assert found[name]["value"] == pytest.approx(expected, abs=1e-6), name
            low, high = map(float, found[name]["interval"])
            assert low <= found[name]["value"] <= high or name == "EER"
    # a technique against all reals, without being asked for
    swap = results["groups"]["technique"]["swap"]["videos, mean over frames"]
    values = {
        name: means.get(name, 0.5) for name in ("a.mp4", "b.mp4", "c.mp4", "d.mp4")
    }
    expected = roc_auc_score([0, 0, 1, 1], [*values.values()])
    assert swap["AUC"]["value"] == pytest.approx(expected) and swap["videos"] == 4
    printed = capsys.readouterr().out
    assert "1 of 5 videos have no face in it and so 0.5" in printed
    assert "technique paint, frames: log loss" in printed


def test_frames_of_a_video_are_drawn_together():
    """Fifty videos of forty equal frames: the interval is that of fifty videos."""
    rng = np.random.default_rng(0)
    labels = {f"{n}": n % 2 for n in range(50)}
    scores = {name: float(rng.random()) for name in labels}
    frames = {name: [score] * 40 for name, score in scores.items()}
    one = metrics.score_frames(frames, labels, resamples=400)
    other = metrics.score(scores, labels, resamples=400)
    assert one.auc == pytest.approx(other.auc)
    width, expected = (
        each.intervals["AUC"][1] - each.intervals["AUC"][0] for each in (one, other)
    )
    assert width == pytest.approx(expected, rel=0.1)


def test_exported_frames_are_read_back(faces):
    """By NumPy without pickle; folder names of equal videos stay apart."""
    folder, kept = faces
    frames, _, _ = slow_levels(kept)
    text = (folder / "faces.csv").read_text().replace("e.mp4", "x/c.mp4")
    (folder / "faces.csv").write_text(text)
    labels = (folder / "labels.csv").read_text().replace("e.mp4", "x/c.mp4")
    (folder / "labels.csv").write_text(labels)
    targets = [folder / "out.npz", folder / "out.csv"]
    arguments = [
        "--submission",
        folder / "faces.csv",
        "--labels",
        folder / "labels.csv",
    ]
    scorer.main([*map(str, [*arguments, "--export", *targets, "--resamples", 0])])
    with np.load(targets[0]) as arrays:
        names, y_true, y_pred = (
            arrays[name].tolist() for name in ("img_names", "y_true", "y_pred")
        )
    expected = {
        f"{video.replace('e.mp4', 'x_c.mp4').removesuffix('.mp4')}/{frame}.png": value
        for (video, frame), value in frames.items()
    }
    assert dict(zip(names, y_pred)) == pytest.approx(expected)
    assert len({name.split("/")[-2] for name in names}) == 4
    truth = {name: int(name[0] in "cx") for name in names}
    assert dict(zip(names, y_true)) == truth
    with open(targets[1], newline="") as file:
        rows = [*csv.DictReader(file)]
    assert [(row["path"], int(row["label"])) for row in rows] == [*zip(names, y_true)]
    with pytest.raises(UserError, match="ends in .csv or .npz"):
        scorer.main([*map(str, [*arguments, "--export", folder / "a.txt"])])


def test_cross_auc_by_hand(tmp_path, capsys):
    """Two sets, perfect each, with no common threshold."""
    for name, values in (("one", (0.1, 0.2)), ("two", (0.8, 0.9))):
        rows = f"a,{values[0]}\nb,{values[1]}\n"
        (tmp_path / f"{name}.csv").write_text(f"filename,label\n{rows}")
    labels = tmp_path / "labels.csv"
    labels.write_text("filename,label\na,0\nb,1\n")
    arguments = [
        *("--submission", tmp_path / "one.csv", "--labels", labels),
        *("--against", tmp_path / "two.csv", labels, "--resamples", 0),
    ]
    assert scorer.main([*map(str, arguments)]) == 0
    printed = capsys.readouterr().out
    for line in (
        "reals of 1, fakes of 1: 1.0000",
        "reals of 1, fakes of 2: 1.0000",
        "reals of 2, fakes of 1: 0.0000",
        "reals of 2, fakes of 2: 1.0000",
    ):
        assert line in printed


def test_labels_of_folds_and_of_the_released_test_set(tmp_path):
    (tmp_path / "folds.csv").write_text(
        "video,file,label,original,frame,fold,technique,split\n"
        "a,0_0.png,1,b,0,-1,swap,test\na,10_0.png,1,b,10,-1,swap,test\n"
        "b,0_0.png,0,b,0,0,,val\n"
    )
    assert tables.read_labels(tmp_path / "folds.csv") == {"a": 1, "b": 0}
    assert tables.read_column(tmp_path / "folds.csv", "technique") == {
        "a": "swap",
        "b": "",
    }
    submission = tmp_path / "s.csv"
    submission.write_text("filename,label\na,0.7\nb,0.2\n")
    options = ["--labels", str(tmp_path / "folds.csv"), "--resamples", "0"]
    assert (
        scorer.main(["--submission", str(submission), "--split", "test", *options]) == 0
    )
    with pytest.raises(UserError, match="has no video of the split train"):
        scorer.main(["--submission", str(submission), "--split", "train", *options])
    entries = {
        "a.mp4": {"is_fake": 1, "augmentations": {"augmenter": {"blur": {"sigma": 2}}}},
        "b.mp4": {
            "is_fake": 0,
            "augmentations": {"augmenter": {}, "distractor": {"dog": {}, "text": {}}},
        },
        "c.mp4": {"is_fake": 0, "augmentations": None},
    }
    path = tmp_path / "metadata.json"
    path.write_text(json.dumps(entries))
    assert tables.read_labels(path) == {"a.mp4": 1, "b.mp4": 0, "c.mp4": 0}
    expected = {"a.mp4": "blur", "b.mp4": "none", "c.mp4": "none"}
    assert tables.read_column(path, "augmenter") == expected
    assert tables.read_column(path, "distractor")["b.mp4"] == "dog+text"


def test_a_split_holds_for_groups_and_for_the_other_set(tmp_path, capsys):
    """Cross-AUC of test videos only; groups of other splits are left out."""
    header = "filename,label,technique,split\n"
    rows = "a,0,,test\nb,1,swap,test\nc,0,,train\nd,1,paint,train\n"
    (tmp_path / "l.csv").write_text(header + rows)
    faces = "video,frame,time,x1,y1,x2,y2,model,probability\n"
    rows = "a,0,0,0,0,1,1,m,0.2\nb,0,0,0,0,1,1,m,0.9\n"
    (tmp_path / "f.csv").write_text(faces + rows)
    files = (tmp_path / "f.csv", tmp_path / "l.csv")
    arguments = ["--submission", files[0], "--labels", files[1], "--against", *files]
    options = ["--split", "test", "--group-by", "split", "--resamples", 0]
    assert scorer.main([*map(str, [*arguments, *options])]) == 0
    printed = capsys.readouterr().out
    assert printed.count("fakes of 1: 1.0000") == 2 and "no face in it" not in printed
    assert "technique swap" in printed and "paint" not in printed
    assert "split test" in printed and "split train" not in printed


@pytest.mark.parametrize(
    "options, words",
    [
        (["--export", "s.csv"], "s.csv: is given twice"),
        (["--export", "o.csv", "--json", "o.csv"], "o.csv: is given twice"),
        (["--export", "o.txt"], "ends in .csv or .npz"),
        (["--plot", "l.csv"], "l.csv: is given twice"),
    ],
)
def test_outputs_replace_no_input(tmp_path, options, words, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.csv").write_text("filename,label\na,0.5\n")
    (tmp_path / "l.csv").write_text("filename,label\na,1\n")
    with pytest.raises(UserError, match=words):
        scorer.main(["--submission=s.csv", "--labels=l.csv", *options])


def test_faces_as_excel_saves_them_and_an_incomplete_file(faces):
    folder, _ = faces
    path = folder / "faces.csv"
    text, expected = path.read_text(), tables.read_faces(path)
    for other in (text.encode("utf-16"), b"sep=,\r\n" + text.encode()):
        path.write_bytes(other)
        assert tables.is_faces_csv(path) and tables.read_faces(path) == expected
    path.write_text(text[: text.rindex("\ne.mp4")] + "\n")
    with pytest.raises(UserError, match="e.mp4, frame 3: has not as many faces"):
        tables.read_faces(path)
