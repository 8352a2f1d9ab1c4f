"""The demo's data, and that a network really learns from it: with true labels it does, with shuffled labels it does not."""

import argparse
import csv
import json
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import av
import numpy as np
import pytest

from demo import make_dataset
from demo.actors import Scene, make_actor
from demo.face_swap import FaceSwap
from evaluation import score
from inference import predict
from preprocessing.faces import INFERENCE_THRESHOLDS, FaceDetector, half_size
from runtime.cli import UserError
from tests.test_preprocessing import STEPS
from tests.test_train import ROOT
from training import train

SMALL = [
    "--actors",
    "20",
    "--test-actors",
    "10",
    "--shots",
    "2",
    "--fakes",
    "1",
    "--frames",
    "40",
    "--difficulty",
    "0",
    "0.3",
]


def test_the_same_seed_gives_the_same_actor_another_gives_another():
    one, two = make_actor(1), make_actor(2)
    make_actor.cache_clear()
    np.testing.assert_array_equal(one.texture, make_actor(1).texture)
    assert np.abs(one.texture - two.texture).mean() > 2
    assert np.abs(one.landmarks - two.landmarks).max() > 1


def test_drawn_faces_are_found_where_they_were_drawn():
    detector, errors = FaceDetector(INFERENCE_THRESHOLDS), []
    for seed in range(6):
        scene = Scene([make_actor(seed)], seed)
        for time in (0.0, 0.7, 1.9):
            (faces,) = detector([half_size(scene.draw(time))])
            assert len(faces) == 1
            drawn = scene.landmarks(0, time)[:5]
            drawn = (
                drawn if drawn[0, 0] < drawn[1, 0] else drawn[[1, 0, 2, 4, 3]]
            )  # a mirrored actor
            errors.append(np.abs(2 * faces.landmarks[0] - drawn).mean())
    assert np.median(errors) < 3  # pixels


@pytest.mark.parametrize("difficulties", [(0.0, 0.5, 1.0)])
def test_a_swap_changes_the_face_only_and_less_so_when_it_is_harder(difficulties):
    scene = Scene([make_actor(7)], 70)
    frame, landmarks = scene.draw(0.5), scene.landmarks(0, 0.5)
    changes = []
    for difficulty in difficulties:
        swapped = FaceSwap(make_actor(8), difficulty, 1)(frame, landmarks)
        change = np.abs(swapped.astype(int) - frame).max(axis=2)
        y, x = np.mgrid[: frame.shape[0], : frame.shape[1]]
        outside = np.hypot(x - landmarks[2, 0], y - landmarks[2, 1]) > 70
        assert change[outside].max() == 0 and (change > 10).sum() > 100
        changes.append(change[~outside].mean())
    assert changes[0] > changes[-1]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo") / "data"
    assert make_dataset.main(["--output-dir", str(root), *SMALL]) == 0
    return root


@pytest.mark.slow
def test_the_layout_is_dfdcs(data):
    originals = {}
    for part in (0, 3, 6, 9, 12):
        folder = data / f"dfdc_train_part_{part}"
        entries = json.loads((folder / "metadata.json").read_text())
        assert {path.name for path in folder.glob("*.mp4")} == entries.keys()
        labels = [entry["label"] for entry in entries.values()]
        assert labels.count("REAL") == labels.count("FAKE") == 8
        for name, entry in entries.items():
            if entry["label"] == "FAKE":
                assert entries[entry["original"]]["label"] == "REAL"
                originals[name] = entry["original"]
        with av.open(str(next(folder.glob("*.mp4")))) as container:
            assert [stream.codec_context.name for stream in container.streams] == [
                "h264",
                "aac",
            ]
            assert container.streams.video[0].frames == 40
    with open(data / "test_videos" / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["filename"] for row in rows} == {
        path.name for path in (data / "test_videos").glob("*.mp4")
    }
    assert [row["label"] for row in rows].count("1") == 20 == len(rows) / 2
    difficulties = [float(row["difficulty"]) for row in rows if row["label"] == "1"]
    assert 0 <= min(difficulties) < max(difficulties) <= 0.3


@pytest.mark.slow
def test_data_of_other_options_is_not_mixed_in(data, capsys):
    assert make_dataset.main(["--output-dir", str(data), *SMALL]) == 0
    with pytest.raises(UserError, match="other options"):
        make_dataset.main(["--output-dir", str(data), *SMALL, "--frames", "41"])


@pytest.mark.slow
def test_test_actors_are_new():
    options = argparse.Namespace(shots=2, fakes=2, frames=10, difficulty=(0, 1))
    training = [
        clip for clip in make_dataset.plan_folder(Path("a"), list(range(40)), options)
    ]
    testing = [
        clip
        for clip in make_dataset.plan_folder(
            Path("b"), list(range(1000, 1012)), options
        )
    ]
    people = [
        {person for clip in clips for person in clip.actors + clip.donors}
        for clips in (training, testing)
    ]
    assert not people[0] & people[1] and len(people[1]) == 12
    assert {len(clip.actors) for clip in training} == {1, 2}
    assert not any(set(clip.donors) & set(clip.actors) for clip in training)


def shuffle_labels(path, inverse):
    """Give half of the training videos of each kind the other label, so that labels tell nothing; `inverse`: the other half.

    Half of the videos with as many crops each, or else the labels of the crops would still lean one way.
    """
    with open(path, newline="") as file:
        header, *rows = csv.reader(file)
    training = [row for row in rows if row[-1] != "0"]
    counts = Counter(row[0] for row in training)
    groups = defaultdict(set)
    for video, _, label, *_ in training:
        groups[label, counts[video]].add(video)
    rng, wrong = np.random.default_rng(0), set()
    for videos in groups.values():
        half = set(rng.choice(sorted(videos), len(videos) // 2, replace=False))
        wrong |= videos - half if inverse else half
    crops = Counter((row[2], row[0] in wrong) for row in training)
    assert len(set(crops.values())) == 1, (
        "of each kind, as many crops with a wrong label as with a right one"
    )
    for row in rows:
        if row[0] in wrong:
            row[2] = "10"[int(row[2])]
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


@pytest.mark.slow
def test_the_network_learns_from_true_labels_and_not_from_shuffled_ones(data, tmp_path):
    for step in STEPS.values():
        assert step.main(["--root-dir", str(data)]) == 0
    roots, scores = {"true": data}, {}
    for kind in ("shuffled", "inverse"):
        roots[kind] = shutil.copytree(data, tmp_path / "data" / kind)
        shuffle_labels(roots[kind] / "folds.csv", kind == "inverse")
    for kind, root in roots.items():
        out = tmp_path / kind
        settings = [
            "epochs=1",
            "batches_per_epoch=100",
            "max_iterations=100",
            "input.size=80",
            "augmented=0",
            "landmark_cutout=0",
            "hull_cutout=0",
            "half_cutout=0",
            "input.frames_per_video=8",
        ]
        train.main(
            [
                "--config",
                str(ROOT / "configs/demo.yaml"),
                "--data-dir",
                str(root),
                "--output-dir",
                str(out),
                "--logdir",
                str(out / "logs"),
                "--workers",
                "1",
                "--device",
                "cpu",
                "--seed",
                "1",
                "--set",
                *settings,
            ]
        )
        predict.main(
            [
                "--test-dir",
                str(data / "test_videos"),
                "--output",
                str(out / "submission.csv"),
                "--weights-dir",
                str(out),
                "--models",
                "1_DeepFakeClassifier_tf_efficientnet_b0_ns_0_0",
                "--device",
                "cpu",
            ]
        )
        answers = score.read_labels(data / "test_videos" / "labels.csv")
        scores[kind] = score.score(
            score.read_submission(out / "submission.csv"), answers
        )
        print(kind, scores[kind])
    assert scores["true"].auc >= 0.9 and scores["true"].log_loss < 0.5
    # A network that learned nothing of the truth may still sort the videos by how blurred they are, in either direction;
    # the inverse labels teach the opposite direction, so the mean of the two is near 0.5 unless the truth leaks in.
    assert 0.25 < (scores["shuffled"].auc + scores["inverse"].auc) / 2 < 0.75
