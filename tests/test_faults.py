"""Bad, odd and hostile videos through prediction and preprocessing: no crash, no hang, no answer without a reason.

`make test-faults` runs this with `--long`: 1,000 damaged files instead of 30. -s prints the table of docs/reliability.md.
"""

import csv
import json
import os
import re
import shutil
from collections import Counter
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
    """File name to label, number of faces and reason."""
    faces = output.with_suffix(".faces.csv")
    assert run(videos, output, checkpoints, "--faces-csv", faces, *LIMITS) == 0
    skipped = {
        row["filename"]: row["reason"]
        for row in read(output.with_suffix(".report.csv"))
    }
    counts = Counter(row["video"] for row in read(faces) if row["model"] == "one")
    return {
        row["filename"]: (
            float(row["label"]),
            counts[row["filename"]],
            skipped.get(row["filename"], ""),
        )
        for row in read(output)
    }


def preprocess(root: Path) -> None:
    assert (
        all_steps.main(
            ["--root-dir", str(root), "--device", "cpu", "--max-failures", "1", *LIMITS]
        )
        == 0
    )


def part(root: Path, number: int, entries: dict[str, dict]) -> Path:
    folder = root / f"dfdc_train_part_{number}"
    folder.mkdir(parents=True)
    (folder / "metadata.json").write_text(json.dumps(entries))
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def explained(root: Path) -> dict[str, list[str]]:
    """File name to the reasons in failures.csv."""
    found = {}
    for row in read(root / "failures.csv"):
        found.setdefault(os.path.basename(row["file"]), []).append(row["reason"])
    return found


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "videos"
    write_corpus(folder)
    return folder


def test_prediction_of_every_kind_of_bad_video(corpus, checkpoints, tmp_path):
    """Each has its row and its reason; the good one beside them has the label that it has alone, to the last digit."""
    answers = predict(corpus, tmp_path / "s.csv", checkpoints)
    assert answers.keys() == {case.name for case in CASES} | {"good.mp4"}
    wrong = [
        (case.name, answers[case.name])
        for case in CASES
        if not case.fits(*answers[case.name])
    ]
    print(
        "\nprediction:",
        {
            kind: f"{tried} tried"
            for kind, tried in Counter(case.kind for case in CASES).items()
        },
    )
    assert not wrong
    assert (
        predict(corpus / "good.mp4", tmp_path / "alone.csv", checkpoints)["good.mp4"]
        == answers["good.mp4"]
    )


def test_preprocessing_of_every_kind_of_bad_video(corpus, tmp_path):
    """Each as a real video, and as a fake of the good one: its crops are there, or a reason why not."""
    root = tmp_path / "data"
    names = [case.name for case in CASES] + ["good.mp4"]
    reals = part(root, 0, {name: {"label": "REAL"} for name in names})
    fakes = part(
        root,
        3,
        {f"fake {name}": {"label": "FAKE", "original": "good.mp4"} for name in names},
    )
    for name in names:
        for target in (reals / name, fakes / f"fake {name}"):
            target.symlink_to(corpus / name)
    preprocess(root)
    reasons = explained(root)
    crops = {
        path.name: len(list(path.glob("*.png"))) for path in (root / "crops").iterdir()
    }
    for case in CASES:
        stem = Path(case.name).stem
        assert (crops.get(stem, 0) > 0) == (case.answer != REFUSED), case.name
        if (
            case.answer == PARTLY and crops[stem] == 3
        ):  # of 24 frames, all of 0, 10 and 20 could be read
            continue
        assert (case.name in reasons) == (case.answer != ANSWERED), case.name
        assert crops.get(f"fake {stem}", 0) > 0 or f"fake {case.name}" in reasons, (
            case.name
        )
    rows = read(root / "folds.csv")
    assert Counter(row["video"] for row in rows) == {
        name: count for name, count in crops.items() if count
    }
    alone = tmp_path / "alone"
    shutil.copy(corpus / "good.mp4", part(alone, 0, {"good.mp4": {"label": "REAL"}}))
    preprocess(alone)
    for folder in ("crops", "landmarks"):
        assert content(root / folder / "good") == content(alone / folder / "good")


@pytest.fixture(scope="module")
def damaged(tmp_path_factory, long_run) -> Path:
    """Two small clips, and hundreds of damaged copies of them."""
    folder = tmp_path_factory.mktemp("damaged") / "videos"
    seeds = write_seeds(folder)
    rng = np.random.default_rng(2026)
    for number in range(1000 if long_run else 30):
        seed = seeds[number % 2]
        (folder / f"{number:04}{seed.suffix}").write_bytes(
            mutate(seed.read_bytes(), rng)
        )
    return folder


def test_prediction_of_videos_damaged_at_random(damaged, checkpoints, tmp_path):
    answers = predict(damaged, tmp_path / "s.csv", checkpoints)
    assert answers.keys() == {path.name for path in damaged.iterdir()}
    for name, (label, faces, reason) in answers.items():
        assert 0 <= label <= 1 and (faces or (label == 0.5 and reason)), name
    for name in ("seed.mp4", "seed.webm"):
        assert (
            answers[name][1] == 32 and not answers[name][2]
        )  # 16 frames with two faces
        assert (
            predict(damaged / name, tmp_path / "alone.csv", checkpoints)[name]
            == answers[name]
        )
    kinds = Counter(
        "whole"
        if not reason
        else "partly"
        if faces
        else f"no answer: {re.sub('[0-9]+', 'N', reason)}"
        for _, faces, reason in answers.values()
    )
    print("\nprediction of damaged videos:", *kinds.most_common(), sep="\n  ")


def test_preprocessing_of_videos_damaged_at_random(damaged, tmp_path):
    """Half as real videos, half as fakes of the undamaged ones."""
    root = tmp_path / "data"
    names = sorted(path.name for path in damaged.iterdir() if path.stem != "seed")
    shutil.copy(damaged / "seed.mp4", damaged / "other.mp4")
    reals, fakes = (
        names[::4] + names[1::4] + ["seed.mp4", "other.mp4"],
        names[2::4] + names[3::4],
    )
    for number, entries in (
        (0, {name: {"label": "REAL"} for name in reals}),
        (3, {name: {"label": "FAKE", "original": "seed.mp4"} for name in fakes}),
    ):
        folder = part(root, number, entries)
        for name in entries:
            (folder / name).symlink_to(damaged / name)
    preprocess(root)
    (damaged / "other.mp4").unlink()
    reasons, counts = explained(root), Counter()
    for name in reals + fakes:
        crops = list((root / "crops" / Path(name).stem).glob("*.png"))
        assert crops or name in reasons, name
        counts[
            "whole"
            if name not in reasons
            else "partly"
            if crops
            else "no crops, and why"
        ] += 1
    assert content(root / "crops" / "seed") == content(root / "crops" / "other") != {}
    print("\npreprocessing of damaged videos:", counts)


def test_a_file_without_permission_is_named(corpus):
    """As another user, where this is root's process: root may read all."""
    if os.geteuid():
        pytest.skip("needs root, to become a user without the permission")
    path = corpus.parent / "secret.mp4"
    shutil.copy(corpus / "good.mp4", path)
    path.chmod(0)
    for folder in path.parents:
        if (
            folder.stat().st_uid == 0
            and folder != Path("/tmp")
            and Path("/tmp") in folder.parents
        ):
            folder.chmod(0o755)
    os.seteuid(65534)
    try:
        with pytest.raises(
            VideoError,
            match=r"secret.mp4: (not a readable video|cannot be opened) \(Permission denied\)",
        ):
            open_video(path)
    finally:
        os.seteuid(0)


def test_names_from_metadata_lead_nowhere_else(tmp_path):
    """Keys and originals with paths in them: named and left out; nothing is written beside DATA."""
    folder = part(
        tmp_path / "house" / "data",
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
    for path in (
        folder / "good.mp4",
        folder / "fake.mp4",
        folder / "lie.mp4",
        folder / "...mp4",
        tmp_path / "absolute.mp4",
        tmp_path / "escaped.mp4",
    ):
        good(path)
    before = sorted(tmp_path.iterdir()), sorted((tmp_path / "house").iterdir())
    root = tmp_path / "house" / "data"
    preprocess(root)
    assert (
        sorted(tmp_path.iterdir()),
        sorted((tmp_path / "house").iterdir()),
    ) == before
    assert {path.name for path in root.iterdir()} == {
        "dfdc_train_part_0",
        "boxes",
        "crops",
        "landmarks",
        "folds.csv",
        "failures.csv",
    }
    assert [path.name for path in (root / "crops").iterdir()] == ["good"]
    reasons = [
        row["reason"]
        for row in read(root / "failures.csv")
        if row["step"].startswith("1")
    ]
    assert len(reasons) == 6 and all(
        "is not a plain file name" in reason for reason in reasons
    )
