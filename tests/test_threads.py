"""What is written does not depend on the number of threads, under any instruction set.

A processor without an instruction set takes its best one instead, and the test says the
same twice.
"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAM = """
import hashlib, sys
import cv2, numpy as np, skimage.data, torch
from inference.ensemble import Ensemble
from inference.extraction import VideoFaces
from inference.members import Member
from preprocessing.faces import INFERENCE_THRESHOLDS, TRAINING_THRESHOLDS, FaceDetector
from pathlib import Path

portrait = skimage.data.astronaut()
images = [portrait, np.ascontiguousarray(portrait[:, ::-1]), cv2.resize(portrait, (480, 360))]
crops = np.stack([cv2.resize(image, (64, 64)) for image in images * 5])
crops = VideoFaces({64: crops}, list(range(15)), [0.0] * 15, [(0, 0, 1, 1)] * 15)
for threads in (1, 2, 4):
    torch.set_num_threads(threads)
    digest = hashlib.sha256()
    for thresholds, batched in ((TRAINING_THRESHOLDS, True), (INFERENCE_THRESHOLDS, False)):
        for faces in FaceDetector(thresholds)(images, batched):
            assert len(faces)
            digest.update(faces.boxes.tobytes() + faces.landmarks.tobytes())
    (((scores,),)) = Ensemble([Member(checkpoint=sys.argv[1])], "cpu")([crops])
    assert len(set(scores.round(3))) > 1
    digest.update(scores.tobytes())
    print(torch.get_num_threads(), digest.hexdigest())
"""
INSTRUCTION_SETS = {
    "best": {},
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
    "sse41": {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default"},
}


@pytest.mark.slow
@pytest.mark.parametrize("instructions", INSTRUCTION_SETS)
def test_boxes_and_scores_are_those_of_one_thread(checkpoints, instructions):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(checkpoints / "one")],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", **INSTRUCTION_SETS[instructions]},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    threads, digests = zip(*(line.split() for line in done.stdout.splitlines()))
    assert threads == ("1", "2", "4")
    assert len(set(digests)) == 1
