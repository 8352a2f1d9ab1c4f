"""Ensemble files: weights, faces, frames and mirror images against slow versions."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from evaluation import crops
from inference import predict
from inference.aggregate import Aggregation, ensemble_label
from inference.ensemble import Ensemble
from inference.extraction import FramePlan, VideoFaces
from inference.members import (
    EnsembleFile,
    Member,
    plain_members,
    published_models,
    read_members,
)
from inference.submission import video_label, write_faces
from runtime.cli import UserError
from tests.conftest import portrait_crops
from training.checkpoint import load_classifier
from training.config import read_settings
from training.model import Normalize

ROOT = Path(__file__).parents[1]
TOTAL = 20  # frames of the made video


@pytest.fixture(scope="module")
def faces():
    """Two faces in each of ten frames; the second is larger in every third frame."""
    images = portrait_crops(20, 64, seed=0)
    frames = [frame for frame in range(0, TOTAL, 2) for _ in range(2)]
    boxes = [(0, 0, 30, 30), (50, 0, 70, 20)] * 10
    for frame in range(1, 20, 6):
        boxes[frame] = (50, 0, 90, 40)
    return VideoFaces(
        {64: images}, frames, [0.0] * 20, boxes, clips={}, provenance={}, total=TOTAL
    )


def slow_scores(path, images, flips=None):
    """One face after the other."""
    model, settings = load_classifier(path)
    normalize = Normalize(settings.mean, settings.std)
    scores = []
    with torch.inference_mode():
        for number, image in enumerate(images):
            if flips and flips[number]:
                image = image[:, ::-1].copy()
            logit = model(normalize(torch.from_numpy(image[None])))
            scores.append(torch.sigmoid(logit).item())
    return np.array(scores)


@pytest.mark.parametrize(
    ("settings", "expected_frames"),
    [
        ({}, range(20)),
        ({"frames": 3}, [0, 9, 19]),  # linspace(0, 19, 3) = 0, 9.5, 19
        ({"every": 4, "frames": 3}, [0, 4, 8]),
        ({"every": 4}, [0, 4, 8, 12, 16]),
    ],
)
def test_a_member_sees_the_frames_that_it_asks_for(
    faces, checkpoints, settings, expected_frames
):
    member = Member(checkpoint=str(checkpoints / "one"), **settings)
    ensemble = Ensemble([member, Member(checkpoint=str(checkpoints / "two"))], "cpu")
    ours = ensemble._seen(0, faces)
    assert ours.tolist() == [frame in {*expected_frames} for frame in faces.frames]
    assert ensemble._seen(1, faces).tolist() == [
        frame in {*FramePlan(32).numbers(TOTAL)} for frame in faces.frames
    ]
    # the frames that are decoded are those of both
    plans = ensemble.wanted.plans
    assert {n for plan in plans for n in plan.numbers(TOTAL)} == {*range(TOTAL)}


def test_the_largest_face_of_each_frame_and_every_second_one_mirrored(
    faces, checkpoints
):
    path = checkpoints / "one"
    chosen = [
        max(
            (place for place in range(20) if faces.frames[place] == frame),
            key=lambda place: (
                (faces.boxes[place][2] - faces.boxes[place][0])
                * (faces.boxes[place][3] - faces.boxes[place][1])
            ),
        )
        for frame in range(0, TOTAL, 2)
    ]
    assert any(place % 2 for place in chosen) and any(
        place % 2 == 0 for place in chosen
    )
    images = faces.inputs[64][chosen]
    plain, flipped = slow_scores(path, images), slow_scores(path, images, [True] * 10)
    assert np.abs(plain - flipped).max() > 1e-3
    expected = {
        None: plain,
        "no": plain,
        "mean": (plain + flipped) / 2,
        "alternate": np.where(np.arange(10) % 2, flipped, plain),
    }
    for mirrored, scores in expected.items():
        member = Member(checkpoint=str(path), faces="largest", mirrored=mirrored)
        ((ours,),) = Ensemble([member], "cpu")([faces])
        assert np.flatnonzero(~np.isnan(ours)).tolist() == chosen
        np.testing.assert_allclose(ours[chosen], scores, atol=1e-5)


def test_a_bare_no_of_yaml_is_no():
    (member,) = EnsembleFile(
        **yaml.safe_load("members: [{checkpoint: a, mirrored: no}]")
    ).members
    assert member.mirrored == "no"


def test_alternate_mirrors_each_of_two_people_half_of_the_time(faces, checkpoints):
    assert [*np.bincount(faces.frames)[::2]] == [2] * 10  # two faces in each frame
    path = checkpoints / "one"
    mirrored = [frame // 2 % 2 == 1 for frame in faces.frames]
    member = Member(checkpoint=str(path), mirrored="alternate")
    ((ours,),) = Ensemble([member], "cpu")([faces])
    expected = slow_scores(path, faces.inputs[64], mirrored)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_weights_shrinking_and_faces_that_are_not_seen_by_hand():
    entry = {
        "filename": "a.mp4",
        "frames": [0, 0, 1],
        "times": [0.0, 0.0, 0.1],
        "boxes": [(0, 0, 10, 10), (20, 0, 30, 10), (0, 0, 10, 10)],
        "probabilities": {"one": [0.4, float("nan"), 0.6], "two": [0.9, 0.8, 1.0]},
    }
    weights = {"one": 3.0, "two": 1.0}
    assert video_label(entry, Aggregation("mean")) == pytest.approx(0.7)
    weighted = video_label(entry, Aggregation("mean", weights))
    assert weighted == pytest.approx((3 * 0.5 + 0.9) / 4)
    shrunk = video_label(entry, Aggregation("mean", weights, 0.96))
    assert shrunk == pytest.approx(0.5 + 0.1 * 0.96)
    # a network without a score does not count, whatever its weight
    label = ensemble_label({"one": np.zeros(0), "two": np.array([0.3])})
    assert label == pytest.approx(0.3)
    assert (
        ensemble_label({"two": np.array([0.3])}, Aggregation("mean", {"two": 0})) == 0.5
    )


def test_the_vote_knows_persons_by_their_boxes():
    """Of network two: one person 0.9 and 0.95 (mean 0.925, above 0.9), another 0.2."""
    entry = {
        "filename": "a.mp4",
        "frames": [0, 0, 1],
        "times": [0.0, 0.0, 0.1],
        "boxes": [(0, 0, 10, 10), (20, 0, 30, 10), (1, 0, 11, 10)],
        "probabilities": {"two": [0.9, 0.2, 0.95], "one": [float("nan"), 0.3, 0.1]},
    }
    # of network one: the persons 0.1 and 0.3 are below 0.4, so the lowest
    expected = (0.925 + 0.1) / 2
    assert video_label(entry, Aggregation("vote")) == pytest.approx(expected)


def test_the_faces_csv_says_which_faces_a_network_does_not_see(tmp_path):
    from evaluation.tables import frame_scores, read_faces, scores_by_model

    entry = {
        "frames": [0, 0, 7],
        "times": [0.0, 0.0, 0.1],
        "boxes": [(0, 0, 1, 1)] * 3,
        "probabilities": {"one": [0.5, float("nan"), 0.25], "two": [0.75, 0.5, 1.0]},
    }
    write_faces(tmp_path / "faces.csv", {"a.mp4": entry})
    with open(tmp_path / "faces.csv") as file:
        rows = [*csv.DictReader(file)]
    assert [row["probability"] for row in rows] == [
        "0.5",
        "0.75",
        "nan",
        "0.5",
        "0.25",
        "1.0",
    ]
    frames = read_faces(tmp_path / "faces.csv")["a.mp4"]
    assert frame_scores(frames) == {0: 0.625, 7: 0.625}
    scores = {name: each.tolist() for name, each in scores_by_model(frames).items()}
    assert scores == {"one": [0.5, 0.25], "two": [0.75, 0.5, 1.0]}


def test_the_winners_file_is_what_predict_does_without_options():
    file = read_settings(ROOT / "configs/ensembles/first.yaml", EnsembleFile)
    assert [*file.members] == plain_members(published_models())
    assert file.rule == "winner" and file.shrink == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weigth": 2}, ["unknown key 'members.0.weigth'", "did you mean 'weight'"]),
        ({"weight": 0}, ["weights of all members are 0"]),
        ({"weight": -1}, ["members.0.weight"]),
        ({"faces": "big"}, ["members.0.faces"]),
        ({"checkpoint": "three"}, ["three: no such checkpoint"]),
    ],
)
def test_a_wrong_file_is_one_line(checkpoints, tmp_path, change, words):
    path = tmp_path / "e.yaml"
    path.write_text(yaml.safe_dump({"members": [{"checkpoint": "one"} | change]}))
    with pytest.raises(UserError) as error:
        read_members(options(path, checkpoints))
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ({"members": []}, "members"),
        ({"members": [{"checkpoint": "one"}] * 2}, "is given twice"),
        (
            {"members": [{"checkpoint": "one"}], "rule": "most"},
            "'most' is none of winner",
        ),
        (
            {
                "members": [
                    {"checkpoint": "one"},
                    {"checkpoint": "two", "weight": 2},
                ],
                "rule": "confidence",
            },
            "leave their weights out",
        ),
    ],
)
def test_members_that_do_not_fit_together(checkpoints, tmp_path, file, words):
    path = tmp_path / "e.yaml"
    path.write_text(yaml.safe_dump(file))
    with pytest.raises(UserError, match=words):
        read_members(options(path, checkpoints))


def options(path, checkpoints):
    import argparse

    return argparse.Namespace(
        ensemble=path, models=None, weights_dir=checkpoints, rule=None
    )


def test_an_ensemble_file_of_plain_members_gives_the_same_submission(
    dfdc, checkpoints, tmp_path
):
    """Byte for byte; weights change the labels alone, and a run that goes on knows."""
    video = next((dfdc / "dfdc_train_part_3").glob("*.mp4"))
    path = tmp_path / "e.yaml"

    def run(name, *more):
        common = ["--test-dir", video, "--weights-dir", checkpoints, "--workers", "0"]
        output = tmp_path / f"{name}.csv"
        arguments = [*common, "--output", output, "--device", "cpu", *more]
        arguments += ["--faces-csv", tmp_path / f"{name}.faces.csv"]
        assert predict.main([str(each) for each in arguments]) == 0
        return output.read_bytes()

    plain = run("plain", "--models", "one", "two")
    members = [{"checkpoint": "one"}, {"checkpoint": "two"}]
    path.write_text(yaml.safe_dump({"members": members}))
    assert run("file", "--ensemble", path) == plain
    faces = (tmp_path / "plain.faces.csv").read_bytes()
    assert (tmp_path / "file.faces.csv").read_bytes() == faces
    members[0] |= {"weight": 3}
    members[1] |= {"frames": 8, "faces": "largest"}
    path.write_text(yaml.safe_dump({"members": members, "rule": "mean"}))
    run("weighted", "--ensemble", path, "--report", tmp_path / "report")
    with open(tmp_path / "weighted.faces.csv") as file:
        rows = [*csv.DictReader(file)]
    scores = {
        name: [
            float(row["probability"])
            for row in rows
            if row["model"] == name and row["probability"] != "nan"
        ]
        for name in ("one", "two")
    }
    assert 0 < len(scores["two"]) <= 8 < len(scores["one"])
    with open(tmp_path / "weighted.csv") as file:
        (row,) = csv.DictReader(file)
    expected = (3 * np.mean(scores["one"]) + np.mean(scores["two"])) / 4
    assert float(row["label"]) == pytest.approx(expected, abs=1e-6)


def test_a_rule_that_pools_faces_does_not_forget_weights(checkpoints, tmp_path):
    path = tmp_path / "e.yaml"
    members = [{"checkpoint": "one"}, {"checkpoint": "two", "weight": 2}]
    path.write_text(yaml.safe_dump({"members": members}))
    asked = options(path, checkpoints)
    asked.rule = "confidence"
    with pytest.raises(UserError, match="^--rule confidence takes .* weights them$"):
        read_members(asked)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (
            {"members": [{"checkpoint": "one", "every": 5}]},
            "leave `frames` and `every`",
        ),
        (
            {"members": [{"checkpoint": "one"}], "rule": "vote"},
            "rule vote needs the plac",
        ),
    ],
)
def test_what_crops_on_disk_cannot_give_is_refused(
    preprocessed, checkpoints, tmp_path, file, words
):
    path = tmp_path / "e.yaml"
    path.write_text(yaml.safe_dump(file))
    arguments = [
        *("--data-dir", preprocessed, "--split", "all", "--ensemble", path),
        *("--weights-dir", checkpoints, "--output", tmp_path / "s.csv"),
    ]
    with pytest.raises(UserError, match=words):
        crops.main([str(each) for each in arguments])


def test_the_journal_knows_which_faces_its_members_saw(checkpoints):
    from inference.members import members_identity

    one = Member(checkpoint=str(checkpoints / "one"))
    same = members_identity([one.model_copy(update={"weight": 2.0})])
    other = members_identity([one.model_copy(update={"faces": "largest"})])
    assert members_identity([one]) == same != other
    assert json.loads(json.dumps(same)) == same
