"""Damaged, unusual and hostile videos through prediction and preprocessing.

No crash, no hang, and a reason for each missing label. `make test-faults` runs this
with `--long`: 1,000 damaged files instead of 30. `-s` prints the table of
docs/reliability.md.
"""

import csv
import json
import os
import re
import shutil
from collections import Counter
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from preprocessing import __main__ as all_steps
from preprocessing.video import VideoError, open_video
from runtime.files import open_csv
from tests.corpus import (
    ANSWERED,
    CASES,
    PARTLY,
    REFUSED,
    good,
    mutate,
    write_corpus,
    write_seeds,
)
from tests.test_predict import run

pytestmark = pytest.mark.slow
LIMITS = ("--workers", "2", "--time-limit", "60", "--memory-limit", "1.5")


def read(path: Path) -> list[dict]:
    with open_csv(path) as file:
        return list(csv.DictReader(file))


def predict(
    videos: Path, output: Path, checkpoints: Path
) -> dict[str, tuple[float, int, str]]:
    """Predict videos. Returns: file name → label, number of faces, reason."""
    faces = output.with_suffix(".faces.csv")
    assert run(videos, output, checkpoints, "--faces-csv", faces, *LIMITS) == 0
    report = read(output.with_suffix(".report.csv"))
    reasons = {row["filename"]: row["reason"] for row in report}
    counts = Counter(row["video"] for row in read(faces) if row["model"] == "one")
    labels = {row["filename"]: float(row["label"]) for row in read(output)}
    return {
        name: (label, counts[name], reasons.get(name, ""))
        for name, label in labels.items()
    }


def preprocess(root: Path) -> None:
    arguments = [f"--root-dir={root}", "--device=cpu", "--max-failures=1", *LIMITS]
    assert all_steps.main(arguments) == 0


def part(root: Path, number: int, entries: dict[str, dict]) -> Path:
    """Make a part folder with metadata.json and no videos."""
    folder = root / f"dfdc_train_part_{number}"
    folder.mkdir(parents=True)
    (folder / "metadata.json").write_text(json.dumps(entries))
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def assert_as_step_by_step(root: Path, folder: Path) -> None:
    """Steps 1 and 2, which decode a video once in one program, wrote what they write
    as programs of their own: crops, boxes and reasons.
    """
    for videos in root.glob("dfdc_train_part_*"):
        shutil.copytree(videos, folder / videos.name, symlinks=True)
    arguments = ["--root-dir", str(folder), "--max-failures", "1", *LIMITS]
    for name in ("01_detect_faces", "02_extract_crops"):
        assert import_module(f"preprocessing.{name}").main(arguments) == 0
    for name in ("boxes", "crops"):
        assert content(root / name) == content(folder / name) != {}
    both = [
        [
            {**row, "file": Path(row["file"]).name}
            for row in read(each / "failures.csv")
            if row["step"][0] in "12"
        ]
        for each in (root, folder)
    ]
    for row in both[0] + both[1]:
        row["reason"] = re.sub(r"/\S+/", "", row["reason"])
    assert both[0] == both[1] != []


def failure_reasons(root: Path) -> dict[str, list[str]]:
    """File name → the reasons in failures.csv."""
    reasons = {}
    for row in read(root / "failures.csv"):
        reasons.setdefault(os.path.basename(row["file"]), []).append(row["reason"])
    return reasons


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "videos"
    write_corpus(folder)
    return folder


def test_prediction_of_every_kind_of_bad_video(corpus, checkpoints, tmp_path):
    """Each video has its row and its reason.

    The good video among them gets exactly the label that it gets alone.
    """
    answers = predict(corpus, tmp_path / "s.csv", checkpoints)
    assert answers.keys() == {case.name for case in CASES} | {"good.mp4"}
    wrong = [
        (case.name, answers[case.name])
        for case in CASES
        if not case.fits(*answers[case.name])
    ]
    counts = Counter(case.kind for case in CASES)
    print("\nprediction:", {kind: f"{count} tried" for kind, count in counts.items()})
    assert not wrong
    alone = predict(corpus / "good.mp4", tmp_path / "alone.csv", checkpoints)
    assert alone["good.mp4"] == answers["good.mp4"]


def test_preprocessing_of_every_kind_of_bad_video(corpus, tmp_path):
    """Each video, as a real one and as a fake of the good one: crops, or a reason."""
    root = tmp_path / "data"
    names = [case.name for case in CASES] + ["good.mp4"]
    real, fake = {"label": "REAL"}, {"label": "FAKE", "original": "good.mp4"}
    reals = part(root, 0, {name: real for name in names})
    fakes = part(root, 3, {f"fake {name}": fake for name in names})
    for name in names:
        for target in (reals / name, fakes / f"fake {name}"):
            target.symlink_to(corpus / name)
    preprocess(root)
    assert_as_step_by_step(root, tmp_path / "steps")
    reasons = failure_reasons(root)
    crops = {
        path.name: len(list(path.glob("*.png"))) for path in (root / "crops").iterdir()
    }
    for case in CASES:
        stem = Path(case.name).stem
        assert (crops.get(stem, 0) > 0) == (case.answer != REFUSED), case.name
        if case.answer == PARTLY and crops[stem] == 3:
            continue  # of 24 frames, 0, 10 and 20 could all be decoded
        assert (case.name in reasons) == (case.answer != ANSWERED), case.name
        has_crops = crops.get(f"fake {stem}", 0) > 0
        assert has_crops or f"fake {case.name}" in reasons, case.name
    counts = Counter(row["video"] for row in read(root / "folds.csv"))
    assert counts == {name: count for name, count in crops.items() if count}
    alone = tmp_path / "alone"
    shutil.copy(corpus / "good.mp4", part(alone, 0, {"good.mp4": {"label": "REAL"}}))
    preprocess(alone)
    for folder in ("crops", "landmarks"):
        assert content(root / folder / "good") == content(alone / folder / "good")


@pytest.fixture(scope="module")
def damaged(tmp_path_factory, long_run) -> Path:
    """Two small clips, and many damaged copies of them."""
    folder = tmp_path_factory.mktemp("damaged") / "videos"
    seeds = write_seeds(folder)
    rng = np.random.default_rng(2026)
    for number in range(1000 if long_run else 30):
        seed = seeds[number % 2]
        path = folder / f"{number:04}{seed.suffix}"
        path.write_bytes(mutate(seed.read_bytes(), rng))
    return folder


def test_prediction_of_videos_damaged_at_random(damaged, checkpoints, tmp_path):
    answers = predict(damaged, tmp_path / "s.csv", checkpoints)
    assert answers.keys() == {path.name for path in damaged.iterdir()}
    for name, (label, faces, reason) in answers.items():
        assert 0 <= label <= 1 and (faces or (label == 0.5 and reason)), name
    for name in ("seed.mp4", "seed.webm"):
        _, faces, reason = answers[name]
        assert faces == 32 and not reason  # 16 frames with two faces
        alone = predict(damaged / name, tmp_path / "alone.csv", checkpoints)
        assert alone[name] == answers[name]
    kinds = Counter()
    for _, faces, reason in answers.values():
        if reason and not faces:
            kinds[f"no answer: {re.sub('[0-9]+', 'N', reason)}"] += 1
        else:
            kinds["partly" if reason else "whole"] += 1
    print("\nprediction of damaged videos:", *kinds.most_common(), sep="\n  ")


def test_preprocessing_of_videos_damaged_at_random(damaged, tmp_path):
    """Half as real videos, half as fakes of the undamaged ones."""
    root = tmp_path / "data"
    names = sorted(path.name for path in damaged.iterdir() if path.stem != "seed")
    shutil.copy(damaged / "seed.mp4", damaged / "other.mp4")
    reals = names[::4] + names[1::4] + ["seed.mp4", "other.mp4"]
    fakes = names[2::4] + names[3::4]
    real, fake = {"label": "REAL"}, {"label": "FAKE", "original": "seed.mp4"}
    for number, videos, entry in ((0, reals, real), (3, fakes, fake)):
        folder = part(root, number, {name: entry for name in videos})
        for name in videos:
            (folder / name).symlink_to(damaged / name)
    preprocess(root)
    assert_as_step_by_step(root, tmp_path / "steps")
    (damaged / "other.mp4").unlink()
    reasons, counts = failure_reasons(root), Counter()
    for name in reals + fakes:
        crops = list((root / "crops" / Path(name).stem).glob("*.png"))
        assert crops or name in reasons, name
        if name in reasons:
            counts["partly" if crops else "no crops, with a reason"] += 1
        else:
            counts["whole"] += 1
    assert content(root / "crops" / "seed") == content(root / "crops" / "other") != {}
    print("\npreprocessing of damaged videos:", counts)


def test_a_file_without_permission_is_named(corpus):
    """Opened as an unprivileged user, because root may read everything."""
    if os.geteuid():
        pytest.skip("needs root, to switch to a user without the permission")
    path = corpus.parent / "secret.mp4"
    shutil.copy(corpus / "good.mp4", path)
    path.chmod(0)
    for folder in path.parents:
        if folder.stat().st_uid == 0 and Path("/tmp") in folder.parents:
            folder.chmod(0o755)
    denied = r"(not a readable video|cannot be opened) \(Permission denied\)"
    os.seteuid(65534)
    try:
        with pytest.raises(VideoError, match=f"secret.mp4: {denied}"):
            open_video(path)
    finally:
        os.seteuid(0)


def test_names_from_metadata_lead_nowhere_else(tmp_path):
    """Names with a path are reported and skipped; nothing is written outside DATA."""
    folder = part(
        tmp_path / "outer" / "data",
        0,
        {
            "good.mp4": {"label": "REAL"},
            "../../../escaped.mp4": {"label": "REAL"},
            "...mp4": {"label": "REAL"},
            str(tmp_path / "absolute.mp4"): {"label": "REAL"},
            "..": {"label": "REAL"},
            "fake.mp4": {"label": "FAKE", "original": "../good.mp4"},
            "lie.mp4": {"label": "FAKE", "original": "/good.mp4"},
        },
    )
    for name in ("good.mp4", "fake.mp4", "lie.mp4", "...mp4"):
        good(folder / name)
    for name in ("absolute.mp4", "escaped.mp4"):
        good(tmp_path / name)

    def outside():
        return sorted(tmp_path.iterdir()), sorted((tmp_path / "outer").iterdir())

    before = outside()
    root = tmp_path / "outer" / "data"
    preprocess(root)
    assert outside() == before
    assert {path.name for path in root.iterdir()} == {
        "dfdc_train_part_0",
        "boxes",
        "crops",
        "landmarks",
        "folds.csv",
        "failures.csv",
    }
    assert [path.name for path in (root / "crops").iterdir()] == ["good"]
    rows = [row for row in read(root / "failures.csv") if row["step"].startswith("1")]
    assert len(rows) == 6
    assert all("is not a plain file name" in row["reason"] for row in rows)
