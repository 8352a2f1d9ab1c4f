"""Datasets of crops for training and validation, and the balanced sampler.

Every random choice depends only on (seed, epoch, position in the epoch), not on a
generator's state, so that an epoch is the same with any number of loader processes and
after a resume.
"""

import random
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from preprocessing.crop_table import CropTable
from preprocessing.dataset import NO_FOLD
from preprocessing.layout import folds_path
from runtime.cli import UserError
from training.augment import TrainingTransform, plain_transform
from training.config import Config
from training.cutout import half_cutout, hull_cutout, landmark_cutout
from training.samples import Sample

# Crops tried for one item, the first included; if none is readable, it is an error.
MAX_ATTEMPTS = 5
# Shards of each class that crops are drawn from at the same time.
INTERLEAVED_SHARDS = 8


def train_val_split(
    crops: CropTable, fold: int, validation_frame_step: int
) -> tuple[CropTable, CropTable]:
    """Training crops (all other folds) and validation crops (this fold).

    Validation uses every `validation_frame_step`-th frame. Test crops, whose split is
    test or whose fold is `NO_FOLD`, are in neither.

    Raises:
        UserError: one of the two has no reals or no fakes.
    """
    usable = (crops["fold"] != NO_FOLD) & ~crops.is_value("split", "test")
    training = crops.select(usable & (crops["fold"] != fold))
    in_fold = usable & (crops["fold"] == fold)
    validation = crops.select(in_fold & (crops["frame"] % validation_frame_step == 0))
    for part, name in ((training, "the other folds"), (validation, f"fold {fold}")):
        for label, label_name in ((0, "REAL"), (1, "FAKE")):
            if not (part["label"] == label).any():
                raise UserError(
                    f"{folds_path(crops.root)}: {name} hold no {label_name} crop; "
                    "choose another --fold, 0 to 15"
                )
    return training, validation


class BalancedSampler(Sampler[tuple[int, int]]):
    """Draws the crops of an epoch for one process, as many fakes as reals.

    Yields (row, seed); the seed determines all random choices for that crop. A draw
    takes every crop of the smaller class and as many of the other, without replacement,
    in random order. An epoch that needs more crops than one draw is made of several.
    Method: the winner's, whose draw takes all reals and as many fakes.

    A step has `world_size * accumulate` batches. Batch i belongs to the process of rank
    i % world_size, which yields its batches of a step one after the other. The batches
    depend on that product only, so that they are the same for any number of processes.

    Args:
        labels: (N,), 0 for REAL and 1 for FAKE.
        count: steps per epoch times `batch_size`.
        shards: (N,), the shard of each crop. If given, whole shards are drawn, some at
            a time, and each is read in order. The distributions of the number of fakes
            in a batch and of how often a crop is drawn stay the same.

    `epoch` must be set before each epoch.
    """

    def __init__(
        self,
        labels: np.ndarray,
        count: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        batch_size: int = 1,
        accumulate: int = 1,
        shards: np.ndarray | None = None,
    ):
        self._rows_by_label = [np.flatnonzero(labels == label) for label in (0, 1)]
        self._count, self._seed = count, seed
        self._rank, self._world_size = rank, world_size
        self._batch_size, self._accumulate = batch_size, accumulate
        self._shards = shards
        self.epoch = 0

    def __len__(self) -> int:
        return self._count * self._accumulate

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = np.random.default_rng([self._seed, self.epoch])
        batches_per_step = self._world_size * self._accumulate
        total = self._count * batches_per_step
        draws: list[np.ndarray] = []
        while sum(map(len, draws)) < total:
            draws.append(self._draw(generator))
        rows = np.concatenate(draws)[:total]
        seeds = generator.integers(2**63, size=total)
        # (step, position in the batch, batch of the step)
        order = np.arange(total).reshape(-1, self._batch_size, batches_per_step)
        own = order[:, :, self._rank :: self._world_size].swapaxes(1, 2).ravel()
        yield from zip(rows[own].tolist(), seeds[own].tolist())

    def _draw(self, generator: np.random.Generator) -> np.ndarray:
        """Rows of as many crops of each class as the smaller class has, mixed."""
        per_class = min(map(len, self._rows_by_label))
        if self._shards is not None:
            return self._draw_shards(self._shards, per_class, generator)
        chosen = [
            generator.choice(rows, per_class, replace=False)
            for rows in self._rows_by_label
        ]
        return generator.permutation(np.concatenate(chosen))

    def _draw_shards(
        self, shards: np.ndarray, per_class: int, generator: np.random.Generator
    ) -> np.ndarray:
        """Rows as from `_draw`, but shard by shard.

        The shards are read from a random position, so that the last crops of a shard
        are not drawn less often than others.
        """
        by_class = []
        for rows in self._rows_by_label:
            rows_by_shard = np.split(rows, np.flatnonzero(np.diff(shards[rows])) + 1)
            order = [
                rows_by_shard[number]
                for number in generator.permutation(len(rows_by_shard))
            ]
            groups = [
                order[start : start + INTERLEAVED_SHARDS]
                for start in range(0, len(order), INTERLEAVED_SHARDS)
            ]
            mixed = np.concatenate([interleave(group, generator) for group in groups])
            start = generator.integers(len(mixed))
            by_class.append(np.roll(mixed, start)[:per_class])
        return interleave(by_class, generator)


def interleave(arrays: list[np.ndarray], generator: np.random.Generator) -> np.ndarray:
    """Merge arrays in random order; the values of each array keep their order."""
    sources = generator.permutation(
        np.repeat(np.arange(len(arrays)), [len(array) for array in arrays])
    )
    merged = np.empty(len(sources), np.int64)
    for number, array in enumerate(arrays):
        merged[sources == number] = array
    return merged


class TrainingCrops(Dataset):
    """Augmented crops, indexed by (row, seed).

    An item has `image` (S, S, 3) uint8 RGB, `label` (smoothed), `row`, `seed`, and
    `broken`: the error of each unreadable crop that was replaced. `row` is the row of
    the crop that was used.
    """

    def __init__(self, crops: CropTable, config: Config):
        self.crops, self.config = crops, config
        self._transform: TrainingTransform | None = None

    def __getitem__(self, item: tuple[int, int]) -> dict:
        row, seed = item
        rng = random.Random(seed)
        broken: list[str] = []
        for _ in range(MAX_ATTEMPTS):
            try:
                image = self._read(row, rng)
                break
            except UserError as error:
                broken.append(str(error))
                same_label = self.crops["label"] == self.crops["label"][row]
                row = int(rng.choice(np.flatnonzero(same_label)))
        else:
            raise UserError(
                f"{MAX_ATTEMPTS} crops in a row cannot be read, the last: {broken[-1]}"
            )
        size = self.config.input.size
        if rng.random() < self.config.augmented:
            self._transform = self._transform or TrainingTransform(size)
            image = self._transform(image, rng.getrandbits(32))
        else:
            image = plain_transform(image, size)
        smoothing = self.config.label_smoothing
        label = float(np.clip(self.crops["label"][row], smoothing, 1 - smoothing))
        return {
            "image": image,
            "label": np.float32(label),
            "row": row,
            "seed": seed,
            "broken": broken,
        }

    def _read(self, row: int, rng: random.Random) -> np.ndarray:
        """A crop (h, w, 3) uint8 RGB with at most one cutout."""
        config, sample = self.config, Sample(self.crops, row)
        image, landmarks = sample.image(), sample.landmarks()
        if landmarks is not None and rng.random() < config.landmark_cutout:
            return landmark_cutout(image, landmarks, rng)
        if rng.random() < config.hull_cutout:
            return hull_cutout(image, landmarks, rng)
        if rng.random() < config.half_cutout:
            diff = sample.diff()
            if diff is None:
                diff = np.zeros(image.shape[:2], np.uint8)
            if diff.shape != image.shape[:2]:
                raise sample.diff_size_error()
            return half_cutout(image, diff, bool(self.crops["label"][row]), rng)
        return image


class ValidationCrops(Dataset):
    """Crops without augmentation, indexed by row.

    An item has `image` (S, S, 3) uint8 RGB, `label` (0 or 1) and `row`. An unreadable
    crop raises a `UserError`.
    """

    def __init__(self, crops: CropTable, size: int):
        self.crops, self._size = crops, size

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, row: int) -> dict:
        image = plain_transform(Sample(self.crops, row).image(), self._size)
        return {"image": image, "label": self.crops["label"][row], "row": row}


def collate(samples: list[dict]) -> dict:
    """A batch: image (N, S, S, 3) uint8 and label (N,) as tensors, others as lists."""
    batch: dict = {key: [sample[key] for sample in samples] for key in samples[0]}
    batch["image"] = torch.from_numpy(np.stack(batch["image"]))
    batch["label"] = torch.from_numpy(np.array(batch["label"], np.float32))
    return batch
