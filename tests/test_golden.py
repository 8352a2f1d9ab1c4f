"""Against recordings of the winner's own code, where a folder of them is at hand; skipped elsewhere.

DFDC_GOLDEN=FOLDER names it: FOLDER/golden (what was recorded) beside FOLDER/clips (the videos). See docs/LOG.md.
"""

import csv
import hashlib
import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from inference import predict
from inference.pipeline import frame_numbers
from preprocessing.crops import crop_face
from preprocessing.faces import INFERENCE_THRESHOLDS, FaceDetector, half_size
from preprocessing.video import probe, read_frames
from tests.test_preprocessing import STEPS
from training.config import Config
from training.model import DeepFakeClassifier
from training.schedule import poly_learning_rate

SHARED = Path(os.environ.get("DFDC_GOLDEN", Path(__file__).parent.parent.parent / "shared"))
GOLDEN, CLIPS = SHARED / "golden", SHARED / "clips"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not GOLDEN.is_dir(), reason="no recordings of the winner's code; set DFDC_GOLDEN"),
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


def test_learning_rate():
    config = Config()
    for iteration, rate in recorded("lr_schedule.json")["lr"].items():
        ours = poly_learning_rate(int(iteration), config.learning_rate, config.poly_power, config.max_iterations)
        assert abs(ours - rate) < 1e-12


def test_b7_keys_and_shapes():
    import torch

    with torch.device("meta"):
        state = DeepFakeClassifier("tf_efficientnet_b7.ns_jft_in1k").state_dict()
    assert {f"module.{key}": list(value.shape) for key, value in state.items()} == recorded("b7_state_dict_shapes.json")


def test_frames_boxes_and_crops_at_inference():
    detector = FaceDetector(INFERENCE_THRESHOLDS)
    for name, video in recorded("inference.json").items():
        (path,) = CLIPS.glob(f"*/{name}")
        numbers = frame_numbers(probe(path).frames, 32)
        assert numbers == video["frames"]
        hashes = {crop["frame"]: crop["sha256"] for crop in video["crops"]}
        for number, frame in read_frames(path, numbers):
            boxes = detector([half_size(frame)])[0].boxes
            expected = [face["box"] for face in video["boxes_half_scale"].get(str(number), [])]
            np.testing.assert_allclose(boxes, np.reshape(expected, (-1, 4)), atol=0.01)
            ours = [hashlib.sha256(np.ascontiguousarray(crop_face(frame, box)).tobytes()).hexdigest() for box in boxes]
            assert ours == hashes.get(number, [])


def test_training_boxes_crops_landmarks_diffs_and_folds(data):
    for video, frames in recorded("boxes_half_scale.json").items():
        ours = json.loads((data / "boxes" / f"{video}.json").read_text())
        for number, boxes in frames.items():
            np.testing.assert_allclose(ours[number], boxes, atol=0.01)
    for name, crop in recorded("crops.json").items():
        assert hashlib.sha256(cv2.imread(str(data / "crops" / name)).tobytes()).hexdigest() == crop["sha256_bgr"], name
    for name, points in recorded("landmarks.json").items():
        np.testing.assert_array_equal(np.load(data / "landmarks" / name), points)
    for path in (GOLDEN / "diffs").glob("*/*.png"):
        ours = cv2.imread(str(data / "diffs" / path.parent.name / path.name), cv2.IMREAD_GRAYSCALE)
        np.testing.assert_array_equal(ours, cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    rows = [
        {tuple(row.items()) for row in csv.DictReader(open(folder / "folds.csv", newline=""))} for folder in (GOLDEN, data)
    ]
    assert rows[0] <= rows[1]


def test_faces_and_labels_of_two_checkpoints_in_the_winners_form(tmp_path):
    models = sorted(path.name for path in GOLDEN.glob("golden_*"))
    videos = tmp_path / "videos"
    videos.mkdir()
    for path in CLIPS.glob("*/*.mp4"):
        shutil.copyfile(path, videos / path.name)
    arguments = ["--test-dir", videos, "--output", tmp_path / "s.csv", "--faces-csv", tmp_path / "faces.csv",
                 "--weights-dir", GOLDEN, "--device", "cpu", "--models", *models]  # fmt: skip
    assert predict.main([str(argument) for argument in arguments]) == 0
    labels = {row["filename"]: float(row["label"]) for row in read_rows(tmp_path / "s.csv")}
    expected = {name: video["label"] for name, video in recorded("inference.json").items()}
    faces = read_rows(tmp_path / "faces.csv")
    apart = []
    for name, video in recorded("inference.json").items():
        for prediction in video["predictions"]:
            ours = [
                float(row["probability"]) for row in faces if (row["video"], row["model"]) == (name, prediction["model"])
            ]
            np.testing.assert_allclose(ours, prediction["faces"], rtol=0, atol=1e-5, err_msg=name)
            apart += np.abs(np.subtract(ours, prediction["faces"])).tolist()
    assert labels == pytest.approx(expected, abs=1e-5)
    print(f"{len(apart)} faces within {max(apart):.1e}, {len(labels)} labels within "
          f"{max(abs(labels[name] - expected[name]) for name in labels):.1e}")  # fmt: skip
