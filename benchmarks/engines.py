"""Time the networks in each engine and precision, and compare their answers.

    python -m benchmarks.engines [--test-dir VIDEOS --models CHECKPOINT …]

Variants: PyTorch and, where it is installed, OpenVINO, in float32 and, where the processor
       has it, bfloat16, and ONNX Runtime with the networks of `inference.export`, as
       `inference.predict` runs them, on faces that are already in memory.
Answers: on the videos of --test-dir, beside PyTorch's in float32: the mean and largest
       difference of a face's probability and of a label, and Spearman's correlation of
       the faces' probabilities.
An older processor: ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2
       MKL_ENABLE_INSTRUCTIONS=AVX2 hold PyTorch and OpenVINO back.
"""

import sys
import tempfile
from functools import cache, partial
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from benchmarks.measure import make_checkpoints, make_video, ratio_rows, side_by_side
from benchmarks.submission import extract_all_faces
from inference.aggregate import ensemble_label
from inference.engine import resolve
from inference.ensemble import Ensemble
from inference.export import export
from inference.extraction import VideoFaces
from inference.members import Engine, plain_members
from runtime.cli import MachineError, make_parser, non_negative_int, positive_int
from runtime.process import tune_malloc
from runtime.results import print_results
from training.checkpoint import load_classifier

BASE = Engine("torch", "float32")


@cache
def load(models: tuple[Path, ...], engine: Engine) -> Ensemble:
    tune_malloc()
    return Ensemble(plain_members(models), "cpu", engine)


def score(models, engine, faces_file, count):
    """Scores of a network of the first faces of a file (N, S, S, 3)."""
    images = np.load(faces_file)[:count]
    size = images.shape[1]
    boxes = [(0, 0, size, size)] * len(images)
    faces = VideoFaces(
        {size: images}, [*range(len(images))], [0.0] * len(images), boxes
    )
    return load(models, engine)([faces])


def ways(models: tuple[Path, ...], folder: Path) -> dict[str, tuple]:
    """Files and engine of each variant that exists here; all others are compared with
    the first.
    """
    found = {}
    for name in ("torch", "openvino"):
        for precision in ("float32", "bfloat16"):
            try:
                engine = resolve(Engine(name, precision), "cpu")
                found[f"{name} {precision}"] = models, engine
            except MachineError as error:
                print(f"{name} {precision}: {error}", file=sys.stderr)
    files = tuple(folder / f"{path.name}.onnx" for path in models)
    try:
        for path, file in zip(models, files):
            export(*load_classifier(path), file, "float32")
        found["onnxruntime float32"] = files, BASE
    except MachineError as error:
        print(f"onnxruntime float32: {error}", file=sys.stderr)
    return found


def distances(answers: list[list[np.ndarray]], base: list[list[np.ndarray]]) -> dict:
    """How far answers are from others: [video][network] → (K,)."""
    ours, theirs = (
        np.concatenate([each for video in every for each in video])
        for every in (answers, base)
    )
    labels = [
        [
            ensemble_label({str(n): each for n, each in enumerate(video)})
            for video in every
        ]
        for every in (answers, base)
    ]
    faces, videos = np.abs(ours - theirs), np.abs(np.subtract(*labels))
    return {
        "faces, mean": f"{faces.mean():.1e}",
        "faces, largest": f"{faces.max():.1e}",
        "rank correlation": f"{spearmanr(ours, theirs).statistic:.6f}",
        "labels, mean": f"{videos.mean():.1e}",
        "labels, largest": f"{videos.max():.1e}",
    }


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument(
        "--test-dir", type=Path, help="folder of videos; default: a synthetic one"
    )
    parser.add_argument(
        "--models",
        nargs="+",
        action="extend",
        default=[],
        type=Path,
        help="checkpoints; default: an untrained --encoder",
    )
    parser.add_argument("--encoder", default="tf_efficientnet_b7.ns_jft_in1k")
    parser.add_argument(
        "--size", type=positive_int, default=380, help="input size, pixels a side"
    )
    parser.add_argument(
        "--faces", type=positive_int, default=16, help="faces that are timed"
    )
    parser.add_argument(
        "--rounds", type=non_negative_int, default=2, help="timed runs of each variant"
    )
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        videos = options.test_dir or folder / "videos"
        if not options.test_dir:
            videos.mkdir()
            make_video(videos / "made.mp4")
        models = tuple(options.models) or tuple(
            make_checkpoints(folder, [options.encoder], options.size)
        )
        faces = extract_all_faces(videos, load(models, BASE), 2)
        size = load(models, BASE).settings[0].size
        images = np.concatenate([each.inputs[size] for each in faces])
        np.save(folder / "faces.npy", images[: options.faces])
        found = ways(models, folder)
        variants = {
            name: partial(score, files[:1], engine, folder / "faces.npy", options.faces)
            for name, (files, engine) in found.items()
        }
        seconds = side_by_side(variants, options.rounds)
        base = load(models, BASE)(faces)
        apart = [distances(load(*each)(faces), base) for each in found.values()]
    rows = ratio_rows(seconds, "torch float32")
    count = min(options.faces, len(images))
    print_results(
        "engines",
        [
            row | {"seconds a face": round(row["seconds"] / count, 4)} | each
            for row, each in zip(rows, apart)
        ],
        timed=models[0].name,
        faces=f"{count} timed, {len(images)} compared",
        videos=len(faces),
        networks=len(models),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
