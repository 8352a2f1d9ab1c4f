"""Clips beside pictures, and clip networks beside frame networks.

    python -m benchmarks.clips --data-dir DATA        what a clip's size tells, after
                                                      ./preprocess_data.sh DATA --clips
    python -m benchmarks.clips --test-dir VIDEOS      files, and extraction at prediction
    python -m benchmarks.clips                        the networks alone

Method: of DATA's clips the AUC of a random forest that sees only a clip's length, side,
        rate and key frames, and of one that sees its size on disk too, cross-validated
        by original, among originals that have fakes: 0.5 if they do not tell.
        Of VIDEOS a clip of the largest face in the middle: bytes, PSNR and decoding time,
        and of the same frames as PNG files; processor seconds of one thread to find and
        cut a video's faces, without and with clips. Parameters and multiply-adds by
        PyTorch's counter and, of convolutions over time, three a value. Training images a
        second of both networks in turn, at as many frames.
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import av
import cv2
import numpy as np
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from torch.utils.flop_counter import FlopCounterMode

from inference.extraction import ClipInput, FramePlan, Wanted, extract_faces
from inference.videos import find_videos
from preprocessing.clips import clip_numbers, read_clip, write_clip
from preprocessing.crop_table import CLIP, CropTable, read_crop_table
from preprocessing.crops import crop_face, decode_image, write_image
from preprocessing.faces import INFERENCE_THRESHOLDS, half_size, load_detector
from preprocessing.video import probe, read_frames
from runtime.cli import UserError, make_parser, positive_int, run_main
from training.config import Config, InputSettings
from training.distributed import World
from training.model import DeepFakeClassifier
from training.trainer import Trainer

ENCODERS = [f"tf_efficientnet_b{n}.ns_jft_in1k" for n in (0, 4, 7)]
CLIP_FRAMES = 7


def middle_clip(path: Path) -> tuple[np.ndarray, float]:
    """About a second of the largest face in the middle of a video, and its frame rate.

    Returns: (T, h, w, 3) uint8 RGB; T is 0 where there is no face.
    """
    info = probe(path)
    middle, offsets = info.frames // 2, clip_numbers(info.fps)
    numbers = [middle + n for n in offsets if 0 <= middle + n < info.frames]
    frames = dict(read_frames(path, numbers, info))
    (faces,) = load_detector(INFERENCE_THRESHOLDS, "cpu")([half_size(frames[middle])])
    crops = [crop_face(frames[n], box) for box in faces.boxes[:1] for n in numbers]
    return np.array(crops), info.fps / offsets.step


def measure_files(clips: Sequence[tuple[np.ndarray, float]]) -> dict[str, str]:
    """Bytes, PSNR and decoding time of clips and of PNG files of their frames."""
    sizes: dict[str, list[float]] = {"clip": [], "png": []}
    seconds: dict[str, list[float]] = {"clip": [], "png": []}
    errors = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for frames, fps in clips:
            write_clip(folder / "clip.mp4", [*frames], fps)
            data = (folder / "clip.mp4").read_bytes()
            start = time.perf_counter()
            found, _ = read_clip(data, "clip", "")
            seconds["clip"].append(time.perf_counter() - start)
            sizes["clip"].append(len(data))
            errors.append(float(np.mean((found.astype(float) - frames) ** 2)))
            files = []
            for number, frame in enumerate(frames):
                write_image(folder / f"{number}.png", frame)
                files.append((folder / f"{number}.png").read_bytes())
            start = time.perf_counter()
            for each in files:
                decode_image(each, "png", "")
            seconds["png"].append(time.perf_counter() - start)
            sizes["png"].append(sum(map(len, files)))
    psnr = 10 * np.log10(255**2 / np.maximum(errors, 1e-6))
    return {
        "clips": f"{len(clips)}",
        "bytes a clip, and as PNG": _two(sizes, 1, "{:,.0f}"),
        "PSNR, dB (lowest)": f"{psnr.mean():.1f} ({psnr.min():.1f})",
        "decoding, ms a clip, and PNG": _two(seconds, 1000, "{:.1f}"),
    }


def _two(values: dict[str, list[float]], factor: float, form: str) -> str:
    return ", ".join(
        form.format(factor * float(np.mean(values[kind]))) for kind in ("clip", "png")
    )


def metadata_auc(clips: CropTable) -> tuple[float, float]:
    """AUC of a random forest on what a clip's file says without its pixels.

    Args:
        clips: of originals that have fakes; others tell the film, not the technique.

    Returns: length, side, rate and key frames alone, and with the size on disk.
    """
    features, labels, groups = [], [], []
    for row in range(len(clips)):
        path = clips.files(row).image
        frames, fps = read_clip(path.read_bytes(), str(path), "delete it")
        with av.open(str(path)) as container:
            keys = sum(packet.is_keyframe for packet in container.demux(video=0))
        shape = frames.shape[:3]
        # bytes a pixel: the side of a face is its original's
        size = path.stat().st_size / np.prod(shape)
        features.append([*shape, fps, keys, size])
        labels.append(int(clips["label"][row]))
        groups.append(clips.name("original", row))

    folds = GroupKFold(min(5, len({*groups})))
    forest = RandomForestClassifier(300, random_state=0, class_weight="balanced")
    table = np.array(features)
    aucs = []
    for seen in (table[:, :-1], table):
        scores = cross_val_predict(
            forest, seen, labels, groups=groups, cv=folds, method="predict_proba"
        )
        aucs.append(float(roc_auc_score(labels, scores[:, 1])))
    return aucs[0], aucs[1]


def extraction_seconds(path: Path, rounds: int = 3) -> dict[str, float]:
    """Processor seconds of the faces of a video at prediction, without and with clips."""
    faces = InputSettings()
    clips = InputSettings(size=224, clip_frames=CLIP_FRAMES)
    plans = [FramePlan(faces.frames_per_video, 0)]
    wanted = {
        "frames": Wanted(faces, [faces.size], plans, None),
        "with clips": Wanted(
            faces, [clips.size, faces.size], plans, ClipInput(clips, [clips.size])
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in wanted}
    for number in range(rounds + 1):
        for name, each in wanted.items():
            start = time.process_time()
            extract_faces(path, each, "cpu", details=False)
            if number:
                seconds[name].append(time.process_time() - start)
    return {name: float(np.median(each)) for name, each in seconds.items()}


def count_operations(encoder: str, size: int, clip_frames: int) -> tuple[int, float]:
    """Parameters, and multiply-adds of one frame."""
    with torch.device("meta"):
        model = DeepFakeClassifier(encoder, clip_frames=clip_frames).eval()
        images = torch.empty(max(1, clip_frames), 3, size, size)
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        model(images)
    operations = counter.get_total_flops() / 2
    return sum(each.numel() for each in model.parameters()), operations / len(images)


def training_speed(encoder: str, size: int, steps: int) -> dict[str, float]:
    """Frames a second of training steps of the frame and the clip network, in turn."""
    speeds: dict[str, list[float]] = {"frame": [], "clip": []}
    trainers = {}
    for name, clip_frames in (("frame", 0), ("clip", CLIP_FRAMES)):
        config = Config(
            encoder=encoder,
            input={"size": size, "clip_frames": clip_frames},
            sync_batchnorm=False,
            precision="float32",
        )
        trainers[name] = Trainer.build(config, World(0, 1, torch.device("cpu")), "none")
    count = 2 * CLIP_FRAMES
    images = torch.zeros((count, size, size, 3), dtype=torch.uint8)
    batches = {
        "frame": {"image": images, "label": torch.arange(count) % 2 * 1.0},
        "clip": {
            "image": images.unflatten(0, (2, CLIP_FRAMES)),
            "label": torch.tensor([0.0, 1.0]),
        },
    }
    for number in range(steps + 1):
        for name, trainer in trainers.items():
            trainer.model.train()
            start = time.perf_counter()
            trainer.step([batches[name]], number)
            if number:
                speeds[name].append(count / (time.perf_counter() - start))
    return {name: float(np.median(each)) for name, each in speeds.items()}


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--data-dir", type=Path, help="has clips and folds.csv")
    parser.add_argument(
        "--test-dir", type=Path, help="videos, for files and extraction"
    )
    parser.add_argument(
        "--size", type=positive_int, default=224, help="of the network's input, pixels"
    )
    parser.add_argument(
        "--steps", type=positive_int, default=5, help="timed steps of each network"
    )
    options = parser.parse_args(argv)
    if options.data_dir:
        clips = read_crop_table(options.data_dir, kind=CLIP)
        if len({*clips["label"].tolist()}) < 2:
            raise UserError(f"{options.data_dir}: needs real and fake clips")
        originals = clips["original"]
        clips = clips.select(np.isin(originals, originals[clips["label"] == 1]))
        auc, with_size = metadata_auc(clips)
        print(
            f"{len(clips)} clips: AUC of length, side, rate and key frames alone "
            f"{auc:.3f}, with the size on disk {with_size:.3f}"
        )
        return 0
    if options.test_dir:
        cv2.setNumThreads(1)
        torch.set_num_threads(1)
        paths = find_videos(options.test_dir, recursive=True)[0]
        cut = [clip for path in paths if len((clip := middle_clip(path))[0])]
        for name, value in measure_files(cut).items():
            print(f"{name:<34}{value}")
        for path in paths:
            info, seconds = probe(path), extraction_seconds(path)
            print(
                f"{path.name} ({info.width}x{info.height}): {seconds['frames']:.2f} s, "
                f"with clips {seconds['with clips']:.2f}: "
                f"{seconds['with clips'] / seconds['frames']:.2f}"
            )
        return 0
    for encoder in ENCODERS:
        frame, clip = (
            count_operations(encoder, options.size, frames)
            for frames in (0, CLIP_FRAMES)
        )
        print(
            f"{encoder}: {frame[0]:,} parameters + {clip[0] - frame[0]:,}; "
            f"{frame[1] / 1e9:.3f} billion multiply-adds a frame at {options.size} px "
            f"+ {100 * (clip[1] / frame[1] - 1):.1f} %"
        )
    speeds = training_speed(ENCODERS[0], options.size, options.steps)
    print(
        f"{ENCODERS[0]}: training {speeds['frame']:.1f} frames/s, as clips "
        f"{speeds['clip']:.1f}: {speeds['clip'] / speeds['frame']:.2f}"
    )
    return 0


if __name__ == "__main__":
    run_main(main)
