"""Against recordings of the winner's own code; skipped without the recordings.

    DFDC_GOLDEN=FOLDER pytest --long -s tests/test_golden.py

FOLDER/golden holds the recordings, FOLDER/clips the videos. `-s` prints each figure of
docs/fidelity.md; without `--long` the networks see every third video only.
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
from training.checkpoint import load_classifier, start_from
from training.config import Config
from training.model import DeepFakeClassifier
from training.schedule import poly_learning_rate

DEFAULT = Path(__file__).parent.parent.parent / "shared"
FOLDER = Path(os.environ.get("DFDC_GOLDEN", DEFAULT))
GOLDEN, CLIPS = FOLDER / "golden", FOLDER / "clips"
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
        assert step.main(["--root-dir", str(root), "--max-failures", "0.3"]) == 0
    return root


def report(text):
    print(f"\n  {text}")


def test_learning_rate():
    config, errors = Config(), []
    schedule = (config.learning_rate, config.poly_power, config.max_iterations)
    for iteration, rate in recorded("lr_schedule.json")["lr"].items():
        ours = poly_learning_rate(int(iteration), *schedule)
        errors.append(abs(ours - rate))
    report(f"learning rate: {len(errors)} iterations within {max(errors):.1e}")
    assert max(errors) < 1e-12


def test_b7_keys_and_shapes():
    with torch.device("meta"):
        state = DeepFakeClassifier("tf_efficientnet_b7.ns_jft_in1k").state_dict()
    shapes = {f"module.{key}": list(value.shape) for key, value in state.items()}
    expected = recorded("b7_state_dict_shapes.json")
    assert shapes == expected
    report(f"B7: {len(expected)} keys and shapes equal")


def test_a_clip_network_begins_with_the_answers_of_a_recorded_checkpoint():
    (path,) = GOLDEN.glob("golden_*_b2_*")
    frame, settings = load_classifier(path)
    clip = DeepFakeClassifier("tf_efficientnet_b2.ns_jft_in1k", clip_frames=3).eval()
    start_from(clip, frame.state_dict(), path)
    images = torch.randn(6, 3, settings.size, settings.size)
    with torch.inference_mode():
        assert torch.equal(clip.frame_logits(images), frame(images))


def test_frames_boxes_and_crops_at_inference():
    detector = FaceDetector(INFERENCE_THRESHOLDS)
    errors, crops = [0.0], 0
    videos = recorded("inference.json")
    for name, video in videos.items():
        (path,) = CLIPS.glob(f"*/{name}")
        numbers = frame_numbers(probe(path).frames, 32)
        assert numbers == video["frames"]
        hashes = {crop["frame"]: crop["sha256"] for crop in video["crops"]}
        for number, frame in read_frames(path, numbers):
            boxes = detector([half_size(frame)])[0].boxes
            faces = video["boxes_half_scale"].get(str(number), [])
            expected = np.reshape([face["box"] for face in faces], (-1, 4))
            np.testing.assert_allclose(boxes, expected, atol=0.01)
            errors += np.abs(boxes - expected).ravel().tolist()
            ours = [sha256(crop_face(frame, box)) for box in boxes]
            assert ours == hashes.get(number, [])
            crops += len(ours)
    report(
        f"inference: {len(videos)} clips, all frame numbers and {crops} crops equal, "
        f"boxes within {max(errors):.1e} px"
    )


def sha256(image):
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()


def test_training_boxes(data):
    errors = []
    for video, frames in recorded("boxes_half_scale.json").items():
        ours = json.loads((data / "boxes" / f"{video}.json").read_text())
        for number, boxes in frames.items():
            np.testing.assert_allclose(ours[number], boxes, atol=0.01)
            errors += np.abs(np.subtract(ours[number], boxes)).ravel().tolist()
    report(f"step 1: {len(errors) // 4} boxes within {max(errors):.1e} px")


def test_training_crops_and_landmarks(data):
    crops, landmarks = recorded("crops.json"), recorded("landmarks.json")
    for name, crop in crops.items():
        image = cv2.imread(str(data / "crops" / name))
        assert sha256(image) == crop["sha256_bgr"], name
    for name, points in landmarks.items():
        np.testing.assert_array_equal(np.load(data / "landmarks" / name), points)
    ours = Counter(path.parent.name for path in (data / "crops").glob("*/*.png"))
    additional = ours - Counter(name.split("/")[0] for name in crops)
    report(
        f"steps 2, 3: {len(crops)} crops, {len(landmarks)} landmarks equal; "
        f"additional crops of ours: {dict(additional)}"
    )


def test_diffs(data):
    errors = []
    for path in (GOLDEN / "diffs").glob("*/*.png"):
        ours = data / "diffs" / path.parent.name / path.name
        one, two = (
            cv2.imread(str(file), cv2.IMREAD_GRAYSCALE).astype(int)
            for file in (ours, path)
        )
        errors.append(np.abs(one - two))
    worst = max(error.max() for error in errors)
    mean = np.mean([error.mean() for error in errors])
    report(
        f"step 4: {len(errors)} masks, difference in grey levels: mean {mean:.2g}, "
        f"at most {worst}"
    )
    assert worst == 0


def test_folds(data):
    ours, theirs = (
        {tuple(row.items()) for row in read_rows(folder / "folds.csv")}
        for folder in (data, GOLDEN)
    )
    assert theirs <= ours
    additional = Counter()
    for row in map(dict, ours - theirs):
        late = int(row["frame"]) > 310
        frames = "frames 320 and later" if late else "frames to 310"
        additional[row["video"], frames] += 1
    report(
        f"step 5: the winner's {len(theirs)} rows equal; {len(ours - theirs)} "
        f"additional: {dict(additional)}"
    )


def test_faces_and_labels_of_two_checkpoints_in_the_winners_form(tmp_path, long_run):
    models = sorted(path.name for path in GOLDEN.glob("golden_*"))
    videos = tmp_path / "videos"
    videos.mkdir()
    inference = recorded("inference.json")
    if not long_run:  # a fake of FaceForensics++ and a video of DFDC
        inference = dict([*inference.items()][1::3])
    for name in inference:
        (path,) = CLIPS.glob(f"*/{name}")
        shutil.copyfile(path, videos / name)
    arguments = [
        f"--test-dir={videos}",
        f"--output={tmp_path / 's.csv'}",
        f"--faces-csv={tmp_path / 'faces.csv'}",
        f"--weights-dir={GOLDEN}",
        "--device=cpu",
        "--models",
        *models,
    ]
    assert predict.main(arguments) == 0
    rows = read_rows(tmp_path / "s.csv")
    labels = {row["filename"]: float(row["label"]) for row in rows}
    expected = {name: video["label"] for name, video in inference.items()}
    faces = read_rows(tmp_path / "faces.csv")
    errors = []
    for name, video in inference.items():
        for prediction in video["predictions"]:
            ours = [
                float(row["probability"])
                for row in faces
                if (row["video"], row["model"]) == (name, prediction["model"])
            ]
            theirs = prediction["faces"]
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5, err_msg=name)
            errors += np.abs(np.subtract(ours, theirs)).tolist()
    assert labels == pytest.approx(expected, abs=1e-5)
    label_error = max(abs(labels[name] - expected[name]) for name in labels)
    report(
        f"probabilities: {len(errors)} faces within {max(errors):.1e}, "
        f"{len(labels)} labels within {label_error:.1e}"
    )
