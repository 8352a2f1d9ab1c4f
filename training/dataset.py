"""Crops from disk for training and validation, and the sampler that draws as many fakes as reals.

Reads DATA/folds.csv, DATA/crops, DATA/landmarks, DATA/diffs, as preprocessing (or the winner's own scripts) wrote them

Every random choice follows from (seed, epoch, position in the epoch), not from a state: an epoch is the same with any
number of loader workers and after a resume.
"""

import csv
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from torch.utils.data import Dataset, Sampler

from preprocessing.cli import UserError
from preprocessing.crops import read_image
from preprocessing.dfdc import crops_folder, diffs_folder, folds_file, landmarks_folder
from preprocessing.files import TABLE
from training.augment import TrainingTransform, plain_transform
from training.config import Config
from training.cutout import cut_half, cut_hull, cut_landmark

COLUMNS = {"video", "file", "label", "original", "frame", "fold"}
REPLACEMENTS = 5  # crops tried in place of an unreadable one before it is an error


@dataclass(frozen=True)
class Crops:
    """folds.csv by columns, each an array (N,): one row a crop. `label` is 1 for FAKE."""

    root: Path
    video: np.ndarray
    file: np.ndarray
    original: np.ndarray
    label: np.ndarray
    frame: np.ndarray
    fold: np.ndarray

    def __len__(self) -> int:
        return len(self.label)

    def where(self, mask: np.ndarray) -> "Crops":
        columns = (self.video, self.file, self.original, self.label, self.frame, self.fold)
        return Crops(self.root, *(column[mask] for column in columns))


def read_crops(root: Path) -> Crops:
    """Read DATA/folds.csv.

    Raises:
        UserError: the file is missing, lacks a column or a number, or lists nothing.
    """
    path = folds_file(Path(root))
    try:
        with open(path, **TABLE) as file:
            reader = csv.DictReader(file)
            if missing := COLUMNS - set(reader.fieldnames or ()):
                raise UserError(f"{path}: lacks the column {', '.join(sorted(missing))}; run preprocessing step 5 again")
            names, numbers = [], []
            for row in reader:
                names.append((row["video"], row["file"], row["original"]))
                numbers.append((int(row["label"]), int(row["frame"]), int(row["fold"])))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); run ./preprocess_data.sh {root}") from error
    except (ValueError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: line {reader.line_num}: {error}; run preprocessing step 5 again") from error
    if not names:
        raise UserError(f"{path}: lists no crops; run ./preprocess_data.sh {root}")
    video, file_name, original = (np.array(column) for column in zip(*names))
    label, frame, fold = np.array(numbers, np.int64).T
    return Crops(Path(root), video, file_name, original, label, frame, fold)


def split_crops(crops: Crops, fold: int, validation_frame_step: int) -> tuple[Crops, Crops]:
    """Training crops (all other folds) and validation crops (this fold, every n-th frame).

    Raises:
        UserError: one side lacks reals or fakes.
    """
    training = crops.where(crops.fold != fold)
    validation = crops.where((crops.fold == fold) & (crops.frame % validation_frame_step == 0))
    for part, name in ((training, "the other folds"), (validation, f"fold {fold}")):
        for label, kind in ((0, "REAL"), (1, "FAKE")):
            if not (part.label == label).any():
                raise UserError(f"{folds_file(crops.root)}: {name} hold no {kind} crop; choose another --fold, 0 to 15")
    return training, validation


class BalancedSampler(Sampler[tuple[int, int]]):
    """Draws `epoch`'s crops for one process: as many fakes as reals, mixed, drawn anew each epoch.

    Yields (row, seed): the seed is the crop's own for all that is random in it. A draw takes every crop of the rarer
    kind and as many of the other without replacement; where an epoch needs more crops than that, it draws again.
    Method: the winner's, whose draw takes all reals and as many fakes.

    An epoch is cut into as many parts as there are processes, or `accumulate` times as many: then a process has several
    parts, by turns a batch of `batch_size` of each. The parts, and the batches in them, are the same for any number of
    processes among which they are shared. `count` is the crops of a part.
    """

    def __init__(
        self, labels: np.ndarray, count: int, seed: int, rank: int = 0, world_size: int = 1, batch_size: int = 1,
        accumulate: int = 1,
    ):  # fmt: skip
        self._kinds = [np.flatnonzero(labels == label) for label in (0, 1)]
        self._count, self._seed, self._rank, self._world_size = count, seed, rank, world_size
        self._batch_size, self._accumulate = batch_size, accumulate
        self.epoch = 0

    def __len__(self) -> int:
        return self._count * self._accumulate

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = np.random.default_rng([self._seed, self.epoch])
        parts = self._world_size * self._accumulate
        total = self._count * parts
        draws: list[np.ndarray] = []
        while sum(map(len, draws)) < total:
            each = min(map(len, self._kinds))
            drawn = np.concatenate([generator.choice(kind, each, replace=False) for kind in self._kinds])
            draws.append(generator.permutation(drawn))
        rows = np.concatenate(draws)[:total]
        seeds = generator.integers(2**63, size=total)
        by_part = np.arange(total).reshape(-1, self._batch_size, parts)  # step, place in the batch, part
        mine = by_part[:, :, self._rank :: self._world_size].swapaxes(1, 2).ravel()
        yield from zip(rows[mine].tolist(), seeds[mine].tolist())


class TrainingCrops(Dataset):
    """Augmented crops. Item (row, seed): image (S, S, 3) uint8 RGB, smoothed label, the row it is of, seed, and why each crop
    that it replaces could not be read."""

    def __init__(self, crops: Crops, config: Config):
        self.crops, self.config = crops, config
        self._transform: TrainingTransform | None = None

    def __getitem__(self, item: tuple[int, int]) -> dict:
        row, seed = item
        rng = random.Random(seed)
        broken: list[str] = []
        for _ in range(REPLACEMENTS):
            try:
                image = self._read(row, rng)
                break
            except UserError as error:
                broken.append(str(error))
                same_kind = np.flatnonzero(self.crops.label == self.crops.label[row])
                row = int(rng.choice(same_kind))
        else:
            raise UserError(f"{REPLACEMENTS} crops in a row cannot be read, the last: {broken[-1]}")
        if rng.random() < self.config.augmented:
            self._transform = self._transform or TrainingTransform(self.config.input.size)
            image = self._transform(image, rng.getrandbits(32))
        else:
            image = plain_transform(image, self.config.input.size)
        smoothing = self.config.label_smoothing
        label = float(np.clip(self.crops.label[row], smoothing, 1 - smoothing))
        return {"image": image, "label": np.float32(label), "row": row, "seed": seed, "broken": broken}

    def _read(self, row: int, rng: random.Random) -> np.ndarray:
        """A crop (h, w, 3) uint8 RGB with at most one cutout."""
        crops, config = self.crops, self.config
        video, stem = crops.video[row], Path(crops.file[row]).stem
        image = read_image(crops_folder(crops.root, video) / crops.file[row])
        path = landmarks_folder(crops.root, crops.original[row]) / f"{stem}.npy"
        landmarks = _read_landmarks(path)
        if landmarks is not None and rng.random() < config.landmark_cutout:
            return cut_landmark(image, landmarks, rng)
        if rng.random() < config.hull_cutout:
            return cut_hull(image, landmarks, rng)
        if rng.random() < config.half_cutout:
            path = diffs_folder(crops.root, video) / f"{stem}_diff.png"
            diff = read_image(path, cv2.IMREAD_GRAYSCALE) if path.exists() else np.zeros(image.shape[:2], np.uint8)
            if diff.shape != image.shape[:2]:
                raise UserError(f"{path}: is not of the crop's size; delete the folder {path.parent} and run step 4 again")
            return cut_half(image, diff, bool(crops.label[row]), rng)
        return image


class ValidationCrops(Dataset):
    """Plain crops. Item row: image (S, S, 3) uint8 RGB, label 0 or 1, row. An unreadable crop is an error."""

    def __init__(self, crops: Crops, size: int):
        self.crops, self._size = crops, size

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, row: int) -> dict:
        path = crops_folder(self.crops.root, self.crops.video[row]) / self.crops.file[row]
        return {"image": plain_transform(read_image(path), self._size), "label": self.crops.label[row], "row": row}


def collate(samples: list[dict]) -> dict:
    """A batch: image (N, S, S, 3) uint8 and label (N,) as tensors; lists of all else."""
    import torch

    batch = {key: [sample[key] for sample in samples] for key in samples[0]}
    batch["image"] = torch.from_numpy(np.stack(batch["image"]))
    batch["label"] = torch.from_numpy(np.array(batch["label"], np.float32))
    return batch


def _read_landmarks(path: Path) -> np.ndarray | None:
    if not path.exists():
        return None
    try:
        landmarks = np.load(path)
        if landmarks.shape != (5, 2) or landmarks.dtype.kind not in "if":
            raise ValueError(f"{landmarks.dtype} {landmarks.shape}")
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path}: not landmarks; delete the folder {path.parent} and run the preprocessing again") from error
    return landmarks
