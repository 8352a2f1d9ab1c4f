"""The demo's data set, and that a network learns from true but not shuffled labels."""

import argparse
import csv
import json
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from demo import make_dataset
from demo.actors import FACE_CENTRE, LANDMARKS, Scene, make_actor
from demo.techniques import TECHNIQUES, UNSEEN
from evaluation import metrics, tables
from inference import predict
from inference.aggregate import ensemble_label
from preprocessing import __main__ as all_steps
from preprocessing.faces import INFERENCE_THRESHOLDS, FaceDetector, half_size
from runtime.cli import UserError
from runtime.files import open_csv
from tests.test_train import ROOT
from training import train
from training.checkpoint import run_name

SMALL = [
    "--actors=20",
    "--test-actors=10",
    "--shots=2",
    "--fakes=1",
    "--frames=21",
    *("--difficulty", "0", "0.3"),
]
TINY = [*SMALL, "--test-actors=5", "--shots=1", "--frames=20"]


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
            if drawn[0, 0] >= drawn[1, 0]:  # a mirrored actor
                drawn = drawn[[1, 0, 2, 4, 3]]
            errors.append(np.abs(2 * faces.landmarks[0] - drawn).mean())
    assert np.median(errors) < 3  # pixels


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_a_technique_changes_the_face_only_and_less_so_when_it_is_harder(technique):
    scene = Scene([make_actor(7)], 70)
    frame, landmarks = scene.draw(0.5), scene.landmarks(0, 0.5)
    changes = []
    for difficulty in (0.0, 0.5, 1.0):
        fake = TECHNIQUES[technique](make_actor(8), difficulty, 1)(frame, landmarks)
        change = np.abs(fake.astype(int) - frame).max(axis=2)
        y, x = np.mgrid[: frame.shape[0], : frame.shape[1]]
        outside = np.hypot(x - landmarks[2, 0], y - landmarks[2, 1]) > 70
        assert change[outside].max() == 0
        changes.append(change[~outside].mean())
    assert changes[0] > changes[1] > changes[2] > 0.02


def face_of(technique, frame, difficulty=0.0):
    """Change a frame with a face in its middle; the inner 30 x 20 pixels of it."""
    landmarks = LANDMARKS - FACE_CENTRE + (160, 120)
    fake = TECHNIQUES[technique](make_actor(8), difficulty, 1)(frame, landmarks)
    return fake[110:130, 145:175].astype(float)


def test_upsampling_leaves_a_pattern_of_periods_two_and_four():
    grey = np.full((240, 320, 3), 100, np.uint8)
    face = face_of("upsampling", grey)[..., 0]
    gain = 1.08 * np.array([1.08, 1, 0.92, 1]) * np.array([1, 0.92 / 1.08] * 2)
    expected = 100 * gain[:, None] * gain
    shifts = [
        np.abs(face[y : y + 16, x : x + 24] - np.tile(expected, (4, 6))).max()
        for y in range(4)
        for x in range(4)
    ]
    assert min(shifts) <= 1  # grey level; the window may begin anywhere


def test_an_autoencoder_loses_detail_and_denoising_noise():
    noise = np.random.default_rng(0).normal(0, 4, (240, 320, 3))
    frame = (100 + noise + 60 * (np.arange(320) > 160)[:, None]).astype(np.uint8)
    inner = frame[110:130, 145:175].astype(float)
    painted, denoised = face_of("autoencoder", frame), face_of("denoising", frame)
    for face in (painted, denoised):
        spread, before = (each[:, :10].std(axis=(0, 1)) for each in (face, inner))
        assert (spread < 0.6 * before).all()
    # the edge is kept by one of them only
    steps = [
        np.abs(np.diff(face.mean(axis=(0, 2)))).max()
        for face in (inner, denoised, painted)
    ]
    assert steps[1] > 0.8 * steps[0] and steps[2] < 0.5 * steps[0]


def test_reenactment_moves_the_mouth_over_time():
    grey = np.full((240, 320, 3), 100, np.uint8)
    landmarks = LANDMARKS - FACE_CENTRE + (160, 120)
    mouth = landmarks[3]
    cv2.circle(grey, tuple(round(float(v)) for v in mouth), 3, (0, 0, 0), -1)
    change = TECHNIQUES["reenactment"](make_actor(8), 0.0, 3)
    places = []
    for _ in range(12):
        dark = 100.0 - change(grey, landmarks)[..., 0]
        y, x = (np.average(axis, weights=dark) for axis in np.indices(dark.shape))
        places.append((x, y))
    moves = np.linalg.norm(np.array(places) - mouth, axis=1)
    assert 1 < moves.max() < 0.06 * 82 * 1.5 + 2 and np.ptp(moves) > 0.3


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo") / "data"
    assert make_dataset.main(["--output-dir", str(root), *TINY]) == 0
    return root


@pytest.fixture(scope="module")
def swaps(tmp_path_factory):
    """All fakes are swaps, which the demo's network learns in 20 steps."""
    root = tmp_path_factory.mktemp("swaps") / "data"
    only = {"swap": TECHNIQUES["swap"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make_dataset, "TECHNIQUES", only)
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
        assert labels.count("REAL") == labels.count("FAKE") == 4
        for name, entry in entries.items():
            if entry["label"] == "FAKE":
                assert entries[entry["original"]]["label"] == "REAL"
                originals[name] = entry["original"]
        with av.open(str(next(folder.glob("*.mp4")))) as container:
            codecs = [stream.codec_context.name for stream in container.streams]
            assert codecs == ["h264", "aac"]
            assert container.streams.video[0].frames == 20
    with open(data / "test_videos" / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["filename"] for row in rows} == {
        path.name for path in (data / "test_videos").glob("*.mp4")
    }
    assert [row["label"] for row in rows].count("1") == 5 == len(rows) / 2
    difficulties = [float(row["difficulty"]) for row in rows if row["label"] == "1"]
    assert 0 <= min(difficulties) < max(difficulties) <= 0.3
    techniques = Counter(row["technique"] for row in rows if row["label"] == "1")
    assert techniques.keys() - TECHNIQUES.keys() == {f"unseen: {UNSEEN}"}
    assert len(techniques) == 5 and set(techniques.values()) == {1}


@pytest.mark.slow
def test_data_of_other_options_is_not_mixed_in(data, capsys):
    assert make_dataset.main(["--output-dir", str(data), *TINY]) == 0
    with pytest.raises(UserError, match="other options"):
        make_dataset.main(["--output-dir", str(data), *TINY, "--frames", "21"])


@pytest.mark.slow
def test_test_actors_are_new():
    options = argparse.Namespace(shots=2, fakes=2, frames=10, difficulty=(0, 1))
    training = make_dataset.plan_folder(
        Path("a"), list(range(40)), ["swap", "denoising"], options
    )
    testing = make_dataset.plan_folder(
        Path("b"), list(range(1000, 1012)), ["swap"], options
    )
    people = [
        {person for clip in clips for person in clip.actors + clip.donors}
        for clips in (training, testing)
    ]
    assert not people[0] & people[1] and len(people[1]) == 12
    assert {len(clip.actors) for clip in training} == {1, 2}
    assert not any(set(clip.donors) & set(clip.actors) for clip in training)
    techniques = Counter(clip.technique for clip in training)
    assert techniques == {"": 80, "swap": 80, "denoising": 80}


def shuffle_labels(path, inverse):
    """Flip the labels of half of the training videos of each class in folds.csv.

    The halves are drawn among the videos with equally many crops; otherwise the labels
    of the crops would still be correlated with the truth.

    Args:
        inverse: flip the other half.
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
    # each class has as many crops with a wrong label as with a right one
    crops = Counter((row[2], row[0] in wrong) for row in training)
    assert len(set(crops.values())) == 1, crops
    for row in rows:
        if row[0] in wrong:
            row[2] = "10"[int(row[2])]
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


LEARNING = [
    "epochs=1",
    "batches_per_epoch=20",
    "max_iterations=40",
    "input.size=80",
    "augmented=0",
    "input.frames_per_video=3",
]


def train_on(root, kind, out):
    """Train on the crops of `root`; the checkpoint's name begins with `kind`."""
    training = [
        f"--config={ROOT / 'configs/demo.yaml'}",
        f"--data-dir={root}",
        f"--output-dir={out}",
        f"--logdir={out / 'logs'}",
        f"--prefix={kind}_",
        "--workers=0",
        "--device=cpu",
        "--seed=1",
    ]
    train.main([*training, "--set", *LEARNING])
    return f"{kind}_{run_name('', 'tf_efficientnet_lite0', 0)}_0"


def score_each(models, test_videos, out):
    """Predict the test videos with all networks in one run, then score each alone."""
    faces = out / "faces.csv"
    prediction = [
        f"--test-dir={test_videos}",
        f"--output={out / 'submission.csv'}",
        f"--faces-csv={faces}",
        f"--weights-dir={out}",
        "--device=cpu",
        "--workers=0",
    ]
    predict.main([*prediction, "--models", *models])
    labels = tables.read_labels(test_videos / "labels.csv")
    by_video = {model: {name: [] for name in labels} for model in models}
    with open_csv(faces) as file:
        for row in csv.DictReader(file):
            by_video[row["model"]][row["video"]].append(float(row["probability"]))
    return [
        metrics.score(
            {
                name: ensemble_label({"": np.array(each)})
                for name, each in videos.items()
            },
            labels,
        )
        for videos in by_video.values()
    ]


@pytest.mark.slow
def test_the_network_learns_from_true_labels_and_not_from_shuffled_ones(
    swaps, tmp_path
):
    assert all_steps.main(["--root-dir", str(swaps)]) == 0
    roots = {"true": swaps}
    for kind in ("shuffled", "inverse"):
        roots[kind] = shutil.copytree(swaps, tmp_path / "data" / kind)
        shuffle_labels(roots[kind] / "folds.csv", kind == "inverse")
    models = [train_on(root, kind, tmp_path) for kind, root in roots.items()]
    scores = dict(zip(roots, score_each(models, swaps / "test_videos", tmp_path)))
    print(*scores.items(), sep="\n")
    assert scores["true"].auc >= 0.9 and scores["true"].log_loss < 0.5
    # A network that did not learn the truth may still rank the videos by their blur, in
    # either direction. The inverse labels teach the opposite direction, so the mean of
    # the two is near 0.5 unless the truth leaks in.
    assert 0.25 < (scores["shuffled"].auc + scores["inverse"].auc) / 2 < 0.75
