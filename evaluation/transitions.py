"""Evidence: does a clip network use what changes between frames, and not appearance?

    python -m evaluation.transitions --videos FOLDER [FOLDER …] --output-dir OUT

From real videos it makes pairs of clips, in which a part of the face is disturbed (moved,
scaled, tinted, blurred and blended in):

- flicker: the same disturbance in all frames is REAL, another one in each is FAKE. A single
  frame does not hold the label.
- appearance: the same disturbance in all frames is FAKE, none is REAL.

and trains on each kind a frame network (the mean over the clip's frames), a clip network,
and a clip network whose side taps are held at zero; the same clips and steps for all. The
pairs have all strengths of their test, and half of them are encoded again. Then it scores
them on people who are not in training, also under conditions that take the change away.

Reads  REAL videos with a face, at the top of the folders. What stands before two
       underscores in a file's name is a person, so that all clips of one are on one side;
       else each video is another person
       --dataset DATA: a data set with techniques, whose fakes are scored too
Writes OUT/results.csv: pairs,network,condition,seed,auc,low,high, with 95 % intervals
       over videos; OUT/differences.csv: clip minus frame network, paired; OUT/table.txt,
       OUT/table.png; OUT/clips_SIZE/: the faces, for the next run
Resumes: what is in results.csv is not trained again; other settings are refused.
Method: docs/transitions.md.
"""

import argparse
import csv
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from functools import cache, partial
from itertools import compress, islice
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from evaluation.metrics import metrics, score_arrays
from inference.extraction import frame_numbers
from preprocessing.clips import centred_times, shown_at
from preprocessing.crops import crop_face
from preprocessing.dataset import Video
from preprocessing.datasets import read_dataset
from preprocessing.faces import (
    DETECTOR_IMPORTS,
    INFERENCE_THRESHOLDS,
    half_size,
    load_detector,
)
from preprocessing.video import probe, read_frames, sort_files
from runtime.cli import (
    UserError,
    describe_changes,
    fraction,
    make_parser,
    positive_int,
    run_main,
)
from runtime.device import add_device_option, pick_device
from runtime.executor import (
    add_executor_options,
    error_reason,
    executor_options,
    map_items,
)
from runtime.files import atomic_file, open_csv, save_figure, write_csv
from training.augment import plain_transform
from training.codec import RATE_FACTORS, encode_again
from training.config import Config, add_set_option, load_config
from training.distributed import World
from training.temporal import hold_side_taps
from training.trainer import Trainer

CONFIG = Path(__file__).parents[1] / "configs" / "transitions.yaml"
MOMENTS = 4  # of a video
RESULTS = "results.csv"
AROUND, FAR = 0.6, (-2.0, -1.0, 1.0, 2.0)  # seconds around a moment that are kept
STRENGTHS = (1.0, 0.5, 0.25, 0.125)
DRAWS = 2  # pairs of each test moment
# A disturbance of full strength, of a face crop of 112 pixels
MOVE, SCALE, TINT, BLUR = 2.0, 0.03, 8.0, (0.3, 1.2)
OVAL, FEATHER = (0.27, 0.33), 0.03  # of the crop's side
ENCODED = 0.5  # share of the training pairs
FLICKER, APPEARANCE = "flicker", "appearance"
# A network remembers which videos are the wrong way round, and ranks new people by what
# is left: the mean of a shuffle and its inverse must be 0.5.
SHUFFLED = ("flicker, labels shuffled", "flicker, labels shuffled, inverse")
SHUFFLED_MEAN = "flicker, labels shuffled, mean of both"
FROZEN = "frozen"
FRAME, CLIP, HELD = "frame", "clip", "clip, side taps held"
NETWORKS = (FRAME, CLIP, HELD)
RESAMPLES = 1000
HEADER = ["pairs", "network", "condition", "seed", "auc", "low", "high"]


class Faces(NamedTuple):
    """The faces of one video at some moments.

    video: its name.
    images: for each moment (K, S, S, 3) uint8 RGB, all cut with one box.
    times: of each image in seconds from the moment, ascending.
    """

    video: str
    images: list[np.ndarray]
    times: list[np.ndarray]


class Condition(NamedTuple):
    """What a test clip goes through.

    strength: of the disturbance.
    spacing: seconds between the frames; 0: as in training.
    rate: frames a second; 0: the video's.
    rate_factor: x264's CRF; 0: not encoded again.
    order: frames of the clip in this order; empty: as they are.
    """

    strength: float = 1.0
    spacing: float = 0.0
    rate: float = 0.0
    rate_factor: int = 0
    order: tuple[int, ...] = ()


def conditions(frames: int) -> dict[str, Condition]:
    """All conditions of a clip of so many frames by name."""
    everything = {
        f"strength {strength:g}": Condition(strength) for strength in STRENGTHS
    }
    middle = frames // 2
    shuffled = np.random.default_rng(1).permutation(frames).tolist()
    everything |= {
        FROZEN: Condition(order=(middle,) * frames),
        "shuffled": Condition(order=tuple(shuffled)),
        "reversed": Condition(order=tuple(range(frames))[::-1]),
    }
    for name, spacing in (("1/30 s", 1 / 30), ("1/5 s", 0.2), ("1 s", 1.0)):
        everything[f"spacing {name}"] = Condition(spacing=spacing)
    for rate_factor in (28, 35, 40):
        everything[f"CRF {rate_factor}"] = Condition(rate_factor=rate_factor)
    everything["CRF 35, 10 frames a second"] = Condition(rate=10, rate_factor=35)
    return everything


def conditions_of(pairs: str, network: str, frames: int) -> dict[str, Condition]:
    """The conditions under which a network is tested.

    All for a clip network that learned flicker. What changes the order or the distance of
    frames is left out for networks that do not see it.
    """
    if pairs != FLICKER:
        return {"strength 1": Condition()}
    return {
        name: each
        for name, each in conditions(frames).items()
        if network == CLIP
        or (not each.spacing and not each.rate and (not each.order or name == FROZEN))
    }


def cut_faces(path: Path, folder: Path, size: int, device: str) -> None:
    """Cut the largest face at some moments of a video, each with one box.

    Writes folder/NAME.npz. A video without a face gives an empty one.

    Raises:
        VideoError: it cannot be read.
    """
    info = probe(path)
    fps = info.fps or 25.0
    near = round(AROUND * fps)
    offsets = sorted({*range(-near, near + 1), *(round(far * fps) for far in FAR)})
    # moments with room for all of it, if the video is long enough
    room = min(round(max(FAR) * fps), (info.frames - 1) // 2)
    middles = [room + n for n in frame_numbers(info.frames - 2 * room, MOMENTS)]
    wanted = {
        middle: [m for o in offsets if 0 <= (m := middle + o) < info.frames]
        for middle in middles
    }
    detector = load_detector(INFERENCE_THRESHOLDS, device)
    boxes = {}
    for number, frame in read_frames(path, middles, info):
        (found,) = detector([half_size(frame)])
        if len(found):
            boxes[number] = found.boxes[0]
    images: dict[int, dict[int, np.ndarray]] = {middle: {} for middle in boxes}
    numbers = sorted({number for middle in boxes for number in wanted[middle]})
    for number, frame in read_frames(path, numbers, info):
        for middle, box in boxes.items():
            if number in wanted[middle]:
                crop = crop_face(frame, box)
                if crop.size:
                    images[middle][number] = plain_transform(crop, size)
    arrays: list[np.ndarray] = []
    for middle, by_number in images.items():
        if by_number:
            times = [(number - middle) / fps for number in by_number]
            arrays += [np.stack([*by_number.values()]), np.array(times)]
    with (
        atomic_file(_cache_path(path, folder)) as temporary,
        open(temporary, "wb") as f,
    ):
        np.savez(f, *arrays)


def read_faces(path: Path, folder: Path) -> Faces:
    """What `cut_faces` wrote for a video."""
    with np.load(_cache_path(path, folder)) as saved:
        arrays = [saved[name] for name in saved.files]
    return Faces(path.stem, arrays[::2], arrays[1::2])


def covers_clip(times: np.ndarray) -> bool:
    """Whether frames at some seconds from a moment fill a clip, to a tenth of a second."""
    return bool(times[0] <= 0.1 - AROUND and times[-1] >= AROUND - 0.1)


def _cache_path(path: Path, folder: Path) -> Path:
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    return folder / f"{digest}.npz"


def person_of(video: str) -> str:
    return video.partition("__")[0]


def split_people(videos: Sequence[str], share: float) -> tuple[set[str], set[str]]:
    """Training and test people; the latter have about `share` of the people."""
    people = sorted({person_of(video) for video in videos})
    order = np.random.default_rng(0).permutation(people).tolist()
    count = max(1, round(share * len(people)))
    return {*order[count:]}, {*order[:count]}


def draw_disturbance(rng: np.random.Generator, strength: float, size: int) -> dict:
    """Random amounts of a disturbance; 1 is full strength."""
    scale = strength * size / 112
    return {
        "move": rng.uniform(-MOVE, MOVE, 2) * scale,
        "zoom": 1 + rng.uniform(-SCALE, SCALE) * strength,
        "tint": rng.uniform(-TINT, TINT, 3) * strength,
        "blur": rng.uniform(*BLUR) * scale,
    }


def disturb(
    image: np.ndarray, move: np.ndarray, zoom: float, tint: np.ndarray, blur: float
) -> np.ndarray:
    """Blend a moved, scaled, tinted and blurred copy into the oval of the face.

    Args:
        image: (S, S, 3) uint8 RGB.
        move: (2,), x and y in pixels.
        tint: (3,), grey levels of red, green and blue.
        blur: standard deviation in pixels.
    """
    side = len(image)
    matrix = cv2.getRotationMatrix2D((side / 2, side / 2), 0, zoom)
    matrix[:, 2] = matrix[:, 2] + move
    moved = cv2.warpAffine(
        image, matrix, (side, side), borderMode=cv2.BORDER_REFLECT_101
    )
    tinted = (moved + tint).astype(np.float32)
    copy = cv2.GaussianBlur(tinted, (0, 0), max(blur, 0.05))
    share = _oval(side)[..., None]
    mixed = image * (1 - share) + copy * share
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


@cache
def _oval(side: int) -> np.ndarray:
    y, x = (np.mgrid[:side, :side] + 0.5) / side - 0.5
    radius = np.hypot(x / OVAL[0], y / OVAL[1])
    return np.clip((1 - radius) * OVAL[0] / FEATHER + 0.5, 0, 1).astype(np.float32)


def make_pair(
    images: np.ndarray, pairs: str, strength: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The REAL and the FAKE clip of some frames (T, S, S, 3) uint8 RGB."""
    draws = [draw_disturbance(rng, strength, images.shape[1]) for _ in images]
    held = np.stack([disturb(image, **draws[0]) for image in images])
    if pairs == APPEARANCE:
        return images, held
    changing = [disturb(image, **each) for image, each in zip(images, draws)]
    return held, np.stack(changing)


def times_at_rate(wanted: np.ndarray, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """The times of the frames of a video of so many frames a second, in seconds.

    Args:
        wanted: (T,).
        rate: 0: as many frames as there are wanted times.

    Returns:
        the times of the frames that are shown, each once, (F,); which of them is shown
        at each wanted time, (T,).
    """
    if not rate:
        return wanted, np.arange(len(wanted))
    numbers, shown = np.unique(np.floor(wanted * rate), return_inverse=True)
    return numbers / rate, shown


def training_batch(
    faces: Sequence[Faces], pairs: str, config: Config, seed: int, step: int
) -> dict:
    """A batch of pairs, which depends on seed and step alone."""
    rng = np.random.default_rng([seed, step])
    settings = config.input
    clips: list[np.ndarray] = []
    labels: list[float] = []
    # appearance is tested at full strength only
    strengths = STRENGTHS[:1] if pairs == APPEARANCE else STRENGTHS
    span = (settings.clip_frames - 1) * settings.clip_spacing
    wrong = np.zeros(len(faces), bool)
    if pairs in SHUFFLED:  # half of the videos have their labels the wrong way round
        half = np.random.default_rng([seed, 0, 1]).permutation(len(faces)) % 2
        wrong = half == 1 - SHUFFLED.index(pairs)
    for _ in range(config.batch_size // 2):
        number = int(rng.integers(len(faces)))
        video = faces[number]
        place = int(rng.integers(len(video.images)))
        start = rng.uniform(-AROUND, max(AROUND - span, -AROUND))
        wanted = start + settings.clip_spacing * np.arange(settings.clip_frames)
        encoded = rng.random() < ENCODED
        rate = rng.uniform(10, 29) if encoded else 0.0
        wanted, shown = times_at_rate(wanted, rate)
        images = video.images[place][shown_at(video.times[place], wanted)]
        if rng.random() < 0.5:
            images = images[:, :, ::-1]
        strength = strengths[rng.integers(len(strengths))]
        pair = make_pair(np.ascontiguousarray(images), pairs, strength, rng)
        if encoded:
            rate_factor = int(rng.integers(RATE_FACTORS[0], RATE_FACTORS[1] + 1))
            clips += [encode_again(each, rate_factor)[shown] for each in pair]
        else:
            clips += pair
        labels += [1.0, 0.0] if wrong[number] else [0.0, 1.0]
    return {
        "image": torch.from_numpy(np.stack(clips)),
        "label": torch.tensor(labels, dtype=torch.float32),
    }


def test_clips(
    faces: Sequence[Faces], pairs: str, config: Config, condition: Condition
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Number of the video, label and clip (T, S, S, 3) of each test clip."""
    settings = config.input
    spacing = condition.spacing or settings.clip_spacing
    wanted = centred_times(settings.clip_frames, spacing)
    wanted, shown = times_at_rate(wanted, condition.rate)
    order = shown[[*condition.order]] if condition.order else shown
    for number, video in enumerate(faces):
        for place, (images, times) in enumerate(zip(video.images, video.times)):
            frames = images[shown_at(times, wanted)]
            for draw in range(DRAWS):
                rng = np.random.default_rng([1, number, place, draw])
                pair = make_pair(frames, pairs, condition.strength, rng)
                for label, clip in enumerate(pair):
                    if condition.rate_factor:
                        clip = encode_again(clip, condition.rate_factor)
                    yield number, label, clip[order]


def make_trainer(network: str, config: Config, device: str, seed: int) -> Trainer:
    """A trainer of one of `NETWORKS`."""
    kind = "none" if network == FRAME else config.temporal
    alternate = config.alternate if network == CLIP else 0
    config = config.model_copy(update={"temporal": kind, "alternate": alternate})
    torch.manual_seed(seed)
    world = World(0, 1, torch.device(pick_device(device)))
    trainer = Trainer.build(config, world, config.pretrained, seed)
    if network == HELD:
        hold_side_taps(trainer.network)
    return trainer


def train(
    trainer: Trainer, faces: Sequence[Faces], pairs: str, seed: int, name: str
) -> None:
    """Train for all of the config's steps."""
    config = trainer.config
    trainer.model.train()
    steps = config.epochs * config.batches_per_epoch
    bar = tqdm(range(steps), desc=name, unit="step", leave=False)
    for step in bar:
        loss, *_ = trainer.step(
            [training_batch(faces, pairs, config, seed, step)], step
        )
        bar.set_postfix(loss=f"{loss:.3f}")
    trainer.model.eval()


@torch.inference_mode()
def predict(trainer: Trainer, clips: Sequence[np.ndarray]) -> np.ndarray:
    """The probability of FAKE of each clip, in one batch."""
    logits = trainer.logits(torch.from_numpy(np.stack(clips)))
    return torch.sigmoid(logits).cpu().numpy()


def score_pairs(
    trainer: Trainer,
    faces: Sequence[Faces],
    pairs: str,
    condition: Condition,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Number of the video, label and probability of FAKE of each test clip, (N,) each."""
    videos: list[int] = []
    labels: list[int] = []
    scores: list[np.ndarray] = []
    clips = test_clips(faces, pairs, trainer.config, condition)
    while batch := list(islice(clips, trainer.config.batch_size)):
        videos += [video for video, _, _ in batch]
        labels += [label for _, label, _ in batch]
        scores.append(predict(trainer, [clip for *_, clip in batch]))
    return np.array(videos), np.array(labels), np.concatenate(scores)


def auc_interval(
    videos: np.ndarray, labels: np.ndarray, scores: np.ndarray
) -> tuple[float, float, float]:
    """AUC and its 95 % interval over videos."""
    auc = {"AUC": metrics()["AUC"]}
    order = np.argsort(videos, kind="stable")
    found = score_arrays(
        labels[order], scores[order], auc, resamples=RESAMPLES, videos=videos[order]
    )
    return found.values["AUC"], *found.intervals["AUC"]


def paired_interval(
    videos: np.ndarray,
    labels: np.ndarray,
    scores: Sequence[np.ndarray],
    weights: Sequence[float],
) -> tuple[float, float, float]:
    """A weighted sum of the AUCs of networks on the same clips, and its 95 % interval.

    Weights of 1 and -1 give the difference of two networks, of 0.5 their mean.
    """

    def weighted_sum(rows: np.ndarray) -> float:
        return sum(
            weight * roc_auc_score(labels[rows], each[rows])
            for weight, each in zip(weights, scores)
        )

    rng = np.random.default_rng(0)
    members = [np.flatnonzero(videos == each) for each in np.unique(videos)]
    drawn = [
        weighted_sum(
            np.concatenate(
                [members[i] for i in rng.integers(len(members), size=len(members))]
            )
        )
        for _ in range(RESAMPLES)
    ]
    low, high = np.percentile(drawn, (2.5, 97.5))
    return weighted_sum(np.arange(len(labels))), float(low), float(high)


def score_dataset(
    trainer: Trainer, faces: Sequence[Faces], techniques: Sequence[str]
) -> dict[str, tuple[float, float, float]]:
    """AUC of each technique's videos against the real ones, the mean over their clips.

    Args:
        techniques: of each video; empty of a real one.
    """
    settings = trainer.config.input
    wanted = centred_times(settings.clip_frames, settings.clip_spacing)
    scores = []
    for video in faces:
        clips = [
            images[shown_at(times, wanted)]
            for images, times in zip(video.images, video.times)
        ]
        scores.append(float(predict(trainer, clips).mean()))
    results = {}
    for technique in sorted({*techniques} - {""}):
        rows = [n for n, each in enumerate(techniques) if each in ("", technique)]
        labels = np.array([int(techniques[row] != "") for row in rows])
        if 0 < labels.sum() < len(labels):
            values = np.array(scores)[rows]
            results[technique] = auc_interval(np.arange(len(rows)), labels, values)
    return results


def write_tables(folder: Path, rows: Sequence[Sequence]) -> str:
    """Write table.txt and table.png: means over seeds. Returns the text."""
    cells: dict[tuple[str, str], dict[str, list[float]]] = {}
    for pairs, network, condition, _, auc, *_ in rows:
        by_network = cells.setdefault((pairs, condition), {})
        by_network.setdefault(network, []).append(float(auc))
    networks = [
        name for name in NETWORKS if any(name in each for each in cells.values())
    ]
    lines = ["AUC on new people: mean over seeds (lowest to highest)"]
    lines.append(" " * 52 + "".join(f"{name:>26}" for name in networks))
    for (pairs, condition), by_network in cells.items():
        texts = []
        for name in networks:
            values = by_network.get(name)
            texts.append(
                f"{np.mean(values):.3f} ({min(values):.3f}-{max(values):.3f})"
                if values
                else "-"
            )
        lines.append(
            f"{pairs + ': ' + condition:<52}" + "".join(f"{text:>26}" for text in texts)
        )
    text = "\n".join(lines) + "\n"
    (folder / "table.txt").write_text(text)
    with save_figure(folder / "table.png", 9, 0.32 * len(cells) + 1.2) as figure:
        axes = figure.subplots()
        names = [f"{pairs}: {condition}" for pairs, condition in cells]
        for number, network in enumerate(networks):
            for place, by_network in enumerate(cells.values()):
                values = by_network.get(network, [])
                y = [place + 0.22 * (number - 1)] * len(values)
                label = network if place == 0 else None
                axes.plot(values, y, "o", color=f"C{number}", markersize=4, label=label)
        axes.axvline(0.5, color="grey", linewidth=0.8)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlabel("AUC on new people, a dot a seed")
        axes.legend()
    return text


def plan(seeds: Sequence[int]) -> list[tuple[str, str, int]]:
    """Kind of pairs, network and seed of each training."""
    runs = [
        (pairs, network, seed)
        for seed in seeds
        for pairs in (FLICKER, APPEARANCE)
        for network in NETWORKS
        if not (pairs == APPEARANCE and network == HELD)
    ]
    return [*runs, *((pairs, CLIP, seeds[0]) for pairs in SHUFFLED)]


def main(argv: list[str] | None = None) -> int:
    options = _make_parser().parse_args(argv)
    config = load_config(options.config, options.set)
    if config.input.clip_frames < 2:
        raise UserError(f"{options.config}: set input.clip_frames to 2 or more")
    if not 0 < options.test_share < 1:
        raise UserError("--test-share: must be between 0 and 1")
    paths = _find_videos(options.videos)
    dataset = read_dataset(options.dataset) if options.dataset else None
    _check_settings(options, config, paths)
    others = dataset.videos if dataset else []
    found = _cut_all(
        [*paths, *(video.path for video in others)], options, config.input.size
    )
    faces = [found[path] for path in paths if found[path].images]
    training, testing = split_people([each.video for each in faces], options.test_share)
    train_faces = [each for each in faces if person_of(each.video) in training]
    test_faces = [each for each in faces if person_of(each.video) in testing]
    if not train_faces or not test_faces:
        raise UserError("--videos: need faces of at least two people; give more videos")
    new = [
        video
        for video in others
        if not _people_in(video) & training and found[video.path].images
    ]
    new_people = [found[video.path] for video in new]
    techniques = [video.technique or "fake" * video.is_fake for video in new]
    results_path, differences_path = (
        options.output_dir / name for name in (RESULTS, "differences.csv")
    )

    def scores_path(pairs: str, network: str, seed: int) -> Path:
        return options.output_dir / f"{pairs}_{network}_{seed}.npy"

    rows, differences = _read_rows(results_path), _read_rows(differences_path)
    done = {(pairs, network, int(seed)) for pairs, network, _, seed, *_ in rows}
    # a run that was interrupted between the two files is made again
    differences = [row for row in differences if (*row[:2], int(row[3])) in done]
    runs = plan([*dict.fromkeys(options.seeds)])
    todo = [run for run in runs if run not in done]
    _print_cost(todo, len(runs), train_faces, test_faces, config, options)
    for number, (pairs, network, seed) in enumerate(todo, 1):
        start = time.perf_counter()
        trainer = make_trainer(network, config, options.device, seed)
        train(trainer, train_faces, pairs, seed, f"{pairs}, {network}, seed {seed}")
        tested = conditions_of(pairs, network, config.input.clip_frames)
        scored_rows = []
        for name, condition in tested.items():
            scored = score_pairs(trainer, test_faces, pairs, condition)
            scored_rows.append([pairs, network, name, seed, *auc_interval(*scored)])
            if name == "strength 1":
                np.save(scores_path(pairs, network, seed), scored[2])
                frame_path = scores_path(pairs, FRAME, seed)
                if network != FRAME and frame_path.exists():
                    both = scored[2], np.load(frame_path)
                    difference = paired_interval(*scored[:2], both, (1, -1))
                    differences.append([pairs, network, name, seed, *difference])
                if pairs == SHUFFLED[1]:
                    both = scored[2], np.load(scores_path(SHUFFLED[0], network, seed))
                    mean = paired_interval(*scored[:2], both, (0.5, 0.5))
                    scored_rows.append([SHUFFLED_MEAN, network, name, seed, *mean])
        if pairs == FLICKER:
            for name, auc in score_dataset(trainer, new_people, techniques).items():
                scored_rows.append([pairs, network, f"fakes: {name}", seed, *auc])
        rows += scored_rows
        # results last: they say that the run is done
        write_csv(differences_path, HEADER, differences)
        write_csv(results_path, HEADER, rows)
        minutes = (time.perf_counter() - start) / 60
        print(
            f"{number}/{len(todo)} {pairs}, {network}, seed {seed}: AUC "
            f"{scored_rows[0][4]:.3f}; {minutes:.1f} min",
            flush=True,
        )
    print(write_tables(options.output_dir, rows), end="")
    return 0


def _people_in(video: Video) -> set[str]:
    """The person whose face is changed, and those in a name such as 469_481."""
    return {person_of(video.original), *person_of(video.path.stem).split("_")}


def _find_videos(folders: Sequence[Path]) -> list[Path]:
    paths = []
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; give folders of REAL videos")
        videos, _ = sort_files(folder.iterdir())
        if not videos:
            raise UserError(f"{folder}: has no video at its top")
        paths += videos
    return paths


def _cut_all(
    paths: Sequence[Path], options: argparse.Namespace, size: int
) -> dict[Path, Faces]:
    """The faces of all videos. Those that cannot be used have none, which is said."""
    folder = options.output_dir / f"clips_{size}"
    folder.mkdir(parents=True, exist_ok=True)
    missing = [path for path in paths if not _cache_path(path, folder).exists()]
    task = partial(cut_faces, folder=folder, size=size, device=options.device)
    reasons = {}
    for path, _, error in map_items(
        task,
        missing,
        executor_options(options),
        "cut faces",
        "video",
        imports=DETECTOR_IMPORTS,
    ):
        if isinstance(error, UserError):
            reasons[path] = error_reason(error, path)
        elif error is not None:
            raise error
    found = {path: Faces(path.stem, [], []) for path in paths}
    for path in (path for path in paths if path not in reasons):
        all_faces = read_faces(path, folder)
        long_enough = [covers_clip(times) for times in all_faces.times]
        found[path] = Faces(
            path.stem, *([*compress(each, long_enough)] for each in all_faces[1:])
        )
        if not all_faces.images:
            reasons[path] = "no face found"
        elif not any(long_enough):
            reasons[path] = f"shorter than {2 * AROUND:g} s"
    for path, reason in reasons.items():
        print(f"left out: {path}: {reason}")
    return found


def _check_settings(
    options: argparse.Namespace, config: Config, paths: Sequence[Path]
) -> None:
    """Save the settings, so that results of others are not mixed in.

    Raises:
        UserError: the folder has results of other settings.
    """
    path = options.output_dir / "settings.json"
    values = {
        "config": config.model_dump(mode="json"),
        "videos": [str(each.resolve()) for each in paths],
        "test_share": options.test_share,
        "dataset": str(options.dataset and options.dataset.resolve()),
    }
    # nothing is lost while no network is trained
    if path.exists() and (options.output_dir / RESULTS).exists():
        try:
            saved = json.loads(path.read_text())
        except ValueError as error:
            raise UserError(f"{path}: is damaged; delete it") from error
        same_videos = saved.get("videos") == values["videos"]
        changed = ["list of videos"] * (not same_videos)
        saved.pop("videos", None)
        if changed := changed + describe_changes(saved, values):
            raise UserError(
                f"{options.output_dir}: was begun with another {', '.join(changed)}; use "
                "the same settings, or give another --output-dir"
            )
    options.output_dir.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1))


def _read_rows(path: Path) -> list[list]:
    if not path.exists():
        return []
    with open_csv(path) as file:
        return [row for row in csv.reader(file) if row][1:]


def _print_cost(
    todo: Sequence[tuple],
    total: int,
    training: Sequence[Faces],
    testing: Sequence[Faces],
    config: Config,
    options: argparse.Namespace,
) -> None:
    print(f"{len(training)} videos to train on, {len(testing)} of other people to test")
    if not todo:
        return
    trainer = make_trainer(CLIP, config, options.device, 0)
    trainer.model.train()
    batch = partial(training_batch, training, FLICKER, config, 0)
    trainer.step([batch(0)], 0)
    start = time.perf_counter()
    for step in (1, 2, 3):
        trainer.step([batch(step)], step)
    seconds = (
        (time.perf_counter() - start) / 3 * config.epochs * config.batches_per_epoch
    )
    print(
        f"{len(todo)} of {total} networks to train, about {len(todo) * seconds / 60:.0f} "
        "minutes of training here, and the tests; Ctrl-C stops, the same command goes on",
        flush=True,
    )


def _make_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--videos",
        type=Path,
        nargs="+",
        action="extend",
        required=True,
        metavar="FOLDER",
        help="folders of REAL videos with faces",
    )
    parser.add_argument("--output-dir", type=Path, required=True, help="of the study")
    parser.add_argument(
        "--dataset", type=Path, help="a data set with techniques, to be scored as well"
    )
    parser.add_argument(
        "--config", type=Path, default=CONFIG, help="of the networks and their training"
    )
    add_set_option(parser)
    parser.add_argument(
        "--seeds", nargs="+", action="extend", type=positive_int, default=[1, 2, 3]
    )
    parser.add_argument(
        "--test-share",
        type=fraction,
        default=0.35,
        help="of the people who are kept for the test, between 0 and 1",
    )
    add_executor_options(parser)
    add_device_option(parser)
    return parser


if __name__ == "__main__":
    run_main(main)
