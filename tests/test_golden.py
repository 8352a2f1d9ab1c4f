"""Against recordings of the winner's own code, where a folder of them is at hand; skipped elsewhere.

    DFDC_GOLDEN=FOLDER pytest -s tests/test_golden.py        prints each figure of docs/fidelity.md

FOLDER/golden is what was recorded, FOLDER/clips the videos.
"""

import csv
import hashlib
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from inference import predict
from inference.extraction import frame_numbers
from preprocessing.crops import crop_face
from preprocessing.faces import INFERENCE_THRESHOLDS, FaceDetector, half_size
from preprocessing.video import probe, read_frames
from tests.test_preprocessing import STEPS
from training.config import Config
from training.model import DeepFakeClassifier
from training.schedule import poly_learning_rate

SHARED = Path(
    os.environ.get("DFDC_GOLDEN", Path(__file__).parent.parent.parent / "shared")
)
GOLDEN, CLIPS = SHARED / "golden", SHARED / "clips"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not GOLDEN.is_dir(),
        reason="no recordings of the winner's code; set DFDC_GOLDEN",
    ),
]


def read_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def recorded(name):
    return json.loads((GOLDEN / name).read_text())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("golden") / "data"
    for part in CLIPS.iterdir():
        folder = root / part.name
        folder.mkdir(parents=True)
        for file in part.iterdir():
            shutil.copyfile(file, folder / file.name)
    for step in STEPS.values():
        assert step.main(["--root-dir", str(root)]) == 0
    return root


def report(text):
    print(f"\n  {text}")


def test_learning_rate():
    config, apart = Config(), []
    for iteration, rate in recorded("lr_schedule.json")["lr"].items():
        ours = poly_learning_rate(
            int(iteration),
            config.learning_rate,
            config.poly_power,
            config.max_iterations,
        )
        apart.append(abs(ours - rate))
    report(f"learning rate: {len(apart)} iterations within {max(apart):.1e}")
    assert max(apart) < 1e-12


def test_b7_keys_and_shapes():
    with torch.device("meta"):
        state = DeepFakeClassifier("tf_efficientnet_b7.ns_jft_in1k").state_dict()
    expected = recorded("b7_state_dict_shapes.json")
    assert {
        f"module.{key}": list(value.shape) for key, value in state.items()
    } == expected
    report(f"B7: {len(expected)} keys and shapes equal")


def test_frames_boxes_and_crops_at_inference():
    detector = FaceDetector(INFERENCE_THRESHOLDS)
    apart, crops = [0.0], 0
    for name, video in recorded("inference.json").items():
        (path,) = CLIPS.glob(f"*/{name}")
        numbers = frame_numbers(probe(path).frames, 32)
        assert numbers == video["frames"]
        hashes = {crop["frame"]: crop["sha256"] for crop in video["crops"]}
        for number, frame in read_frames(path, numbers):
            boxes = detector([half_size(frame)])[0].boxes
            expected = [
                face["box"] for face in video["boxes_half_scale"].get(str(number), [])
            ]
            np.testing.assert_allclose(boxes, np.reshape(expected, (-1, 4)), atol=0.01)
            apart += np.abs(boxes - np.reshape(expected, (-1, 4))).ravel().tolist()
            ours = [
                hashlib.sha256(
                    np.ascontiguousarray(crop_face(frame, box)).tobytes()
                ).hexdigest()
                for box in boxes
            ]
            assert ours == hashes.get(number, [])
            crops += len(ours)
    report(
        f"inference: {len(recorded('inference.json'))} clips, all frame numbers and {crops} crops equal, "
        f"boxes within {max(apart):.1e} px"
    )


def test_training_boxes(data):
    apart = []
    for video, frames in recorded("boxes_half_scale.json").items():
        ours = json.loads((data / "boxes" / f"{video}.json").read_text())
        for number, boxes in frames.items():
            np.testing.assert_allclose(ours[number], boxes, atol=0.01)
            apart += np.abs(np.subtract(ours[number], boxes)).ravel().tolist()
    report(f"step 1: {len(apart) // 4} boxes within {max(apart):.1e} px")


def test_training_crops_and_landmarks(data):
    for name, crop in recorded("crops.json").items():
        assert (
            hashlib.sha256(cv2.imread(str(data / "crops" / name)).tobytes()).hexdigest()
            == crop["sha256_bgr"]
        ), name
    for name, points in recorded("landmarks.json").items():
        np.testing.assert_array_equal(np.load(data / "landmarks" / name), points)
    more = Counter(
        str(path.parent.name) for path in (data / "crops").glob("*/*.png")
    ) - Counter(name.split("/")[0] for name in recorded("crops.json"))
    report(
        f"steps 2, 3: {len(recorded('crops.json'))} crops, {len(recorded('landmarks.json'))} landmarks equal; "
        f"more crops of ours: {dict(more)}"
    )


def test_diffs(data):
    apart = []
    for path in (GOLDEN / "diffs").glob("*/*.png"):
        ours, theirs = (
            cv2.imread(
                str(folder / path.parent.name / path.name), cv2.IMREAD_GRAYSCALE
            ).astype(int)
            for folder in (data / "diffs", GOLDEN / "diffs")
        )
        apart.append(np.abs(ours - theirs))
    worst, mean = (
        max(each.max() for each in apart),
        np.mean([each.mean() for each in apart]),
    )
    report(
        f"step 4: {len(apart)} masks, grey levels apart: mean {mean:.2g}, at most {worst}"
    )
    assert worst == 0


def test_folds(data):
    ours, theirs = (
        {tuple(row.items()) for row in read_rows(folder / "folds.csv")}
        for folder in (data, GOLDEN)
    )
    assert theirs <= ours
    more = Counter()
    for row in map(dict, ours - theirs):
        more[
            row["video"],
            "frames 320 and later" if int(row["frame"]) > 310 else "frames to 310",
        ] += 1
    report(
        f"step 5: his {len(theirs)} rows equal; {len(ours - theirs)} more: {dict(more)}"
    )


def test_faces_and_labels_of_two_checkpoints_in_the_winners_form(tmp_path):
    models = sorted(path.name for path in GOLDEN.glob("golden_*"))
    videos = tmp_path / "videos"
    videos.mkdir()
    for path in CLIPS.glob("*/*.mp4"):
        shutil.copyfile(path, videos / path.name)
    arguments = [
        "--test-dir",
        videos,
        "--output",
        tmp_path / "s.csv",
        "--faces-csv",
        tmp_path / "faces.csv",
        "--weights-dir",
        GOLDEN,
        "--device",
        "cpu",
        "--models",
        *models,
    ]
    assert predict.main([str(argument) for argument in arguments]) == 0
    labels = {
        row["filename"]: float(row["label"]) for row in read_rows(tmp_path / "s.csv")
    }
    expected = {
        name: video["label"] for name, video in recorded("inference.json").items()
    }
    faces = read_rows(tmp_path / "faces.csv")
    apart = []
    for name, video in recorded("inference.json").items():
        for prediction in video["predictions"]:
            ours = [
                float(row["probability"])
                for row in faces
                if (row["video"], row["model"]) == (name, prediction["model"])
            ]
            np.testing.assert_allclose(
                ours, prediction["faces"], rtol=0, atol=1e-5, err_msg=name
            )
            apart += np.abs(np.subtract(ours, prediction["faces"])).tolist()
    assert labels == pytest.approx(expected, abs=1e-5)
    report(
        f"probabilities: {len(apart)} faces within {max(apart):.1e}, {len(labels)} labels within "
        f"{max(abs(labels[name] - expected[name]) for name in labels):.1e}"
    )
