"""Crops for training and validation, and the sampler that draws as many fakes as reals.

Every random choice follows from (seed, epoch, position in the epoch), not from a state: an epoch is the same with any
number of loader workers and after a resume.
"""

import random
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Dataset, Sampler

from preprocessing.crop_table import CropTable
from preprocessing.layout import folds_path
from runtime.cli import UserError
from training.augment import TrainingTransform, plain_transform
from training.config import Config
from training.cutout import half_cutout, hull_cutout, landmark_cutout
from training.samples import Sample

MAX_RETRIES = 5  # crops tried in place of an unreadable one before it is an error
SHARDS_AT_A_TIME = 8  # of each kind that crops are taken from by turns


def train_val_split(
    crops: CropTable, fold: int, validation_frame_step: int
) -> tuple[CropTable, CropTable]:
    """Training crops (all other folds) and validation crops (this fold, every n-th frame).

    Raises:
        UserError: one side lacks reals or fakes.
    """
    training = crops.where(crops["fold"] != fold)
    validation = crops.where(
        (crops["fold"] == fold) & (crops["frame"] % validation_frame_step == 0)
    )
    for part, name in ((training, "the other folds"), (validation, f"fold {fold}")):
        for label, kind in ((0, "REAL"), (1, "FAKE")):
            if not (part["label"] == label).any():
                raise UserError(
                    f"{folds_path(crops.root)}: {name} hold no {kind} crop; choose another --fold, 0 to 15"
                )
    return training, validation


class BalancedSampler(Sampler[tuple[int, int]]):
    """Draws `epoch`'s crops for one process: as many fakes as reals, mixed, drawn anew each epoch.

    Yields (row, seed): the seed is the crop's own for all that is random in it. A draw takes every crop of the rarer
    kind and as many of the other without replacement; where an epoch needs more crops than that, it draws again.
    Method: the winner's, whose draw takes all reals and as many fakes.

    An epoch is cut into as many parts as there are processes, or `accumulate` times as many: then a process has several
    parts, by turns a batch of `batch_size` of each. The parts, and the batches in them, are the same for any number of
    processes among which they are shared. `count` is the crops of a part.

    `shards`: the shard that each crop lies in. Then the shards are drawn instead of the crops, some at a time, and each is
    read in its order; how many fakes a batch has, and how often a crop is drawn, follows the same law.
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
        self._kinds = [np.flatnonzero(labels == label) for label in (0, 1)]
        self._count, self._seed, self._rank, self._world_size = (
            count,
            seed,
            rank,
            world_size,
        )
        self._batch_size, self._accumulate, self._shards = (
            batch_size,
            accumulate,
            shards,
        )
        self.epoch = 0

    def __len__(self) -> int:
        return self._count * self._accumulate

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = np.random.default_rng([self._seed, self.epoch])
        parts = self._world_size * self._accumulate
        total = self._count * parts
        each = min(map(len, self._kinds))
        draws: list[np.ndarray] = []
        while sum(map(len, draws)) < total:
            draws.append(
                self._draw(each, generator)
                if self._shards is None
                else self._draw_in_order(each, generator)
            )
        rows = np.concatenate(draws)[:total]
        seeds = generator.integers(2**63, size=total)
        by_part = np.arange(total).reshape(
            -1, self._batch_size, parts
        )  # step, place in the batch, part
        mine = by_part[:, :, self._rank :: self._world_size].swapaxes(1, 2).ravel()
        yield from zip(rows[mine].tolist(), seeds[mine].tolist())

    def _draw(self, each: int, generator: np.random.Generator) -> np.ndarray:
        """So many crops of each kind, mixed."""
        return generator.permutation(
            np.concatenate(
                [generator.choice(kind, each, replace=False) for kind in self._kinds]
            )
        )

    def _draw_in_order(self, each: int, generator: np.random.Generator) -> np.ndarray:
        """The same, shard by shard, from a place in the middle on, so that no shard's last crops are drawn less often."""
        kinds = []
        for kind in self._kinds:
            shards = np.split(kind, np.flatnonzero(np.diff(self._shards[kind])) + 1)
            order = [shards[number] for number in generator.permutation(len(shards))]
            groups = [
                order[at : at + SHARDS_AT_A_TIME]
                for at in range(0, len(order), SHARDS_AT_A_TIME)
            ]
            walk = np.concatenate([interleave(group, generator) for group in groups])
            kinds.append(np.roll(walk, generator.integers(len(walk)))[:each])
        return interleave(kinds, generator)


def interleave(parts: list[np.ndarray], generator: np.random.Generator) -> np.ndarray:
    """All values of some arrays, each array's in its order, at random places among the others'."""
    turns = generator.permutation(
        np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    )
    mixed = np.empty(len(turns), np.int64)
    for number, part in enumerate(parts):
        mixed[turns == number] = part
    return mixed


class TrainingCrops(Dataset):
    """Augmented crops. Item (row, seed): image (S, S, 3) uint8 RGB, smoothed label, the row it is of, seed, and why each crop
    that it replaces could not be read."""

    def __init__(self, crops: CropTable, config: Config):
        self.crops, self.config = crops, config
        self._transform: TrainingTransform | None = None

    def __getitem__(self, item: tuple[int, int]) -> dict:
        row, seed = item
        rng = random.Random(seed)
        broken: list[str] = []
        for _ in range(MAX_RETRIES):
            try:
                image = self._read(row, rng)
                break
            except UserError as error:
                broken.append(str(error))
                same_kind = np.flatnonzero(
                    self.crops["label"] == self.crops["label"][row]
                )
                row = int(rng.choice(same_kind))
        else:
            raise UserError(
                f"{MAX_RETRIES} crops in a row cannot be read, the last: {broken[-1]}"
            )
        if rng.random() < self.config.augmented:
            self._transform = self._transform or TrainingTransform(
                self.config.input.size
            )
            image = self._transform(image, rng.getrandbits(32))
        else:
            image = plain_transform(image, self.config.input.size)
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
                raise sample.wrong_size()
            return half_cutout(image, diff, bool(self.crops["label"][row]), rng)
        return image


class ValidationCrops(Dataset):
    """Plain crops. Item row: image (S, S, 3) uint8 RGB, label 0 or 1, row. An unreadable crop is an error."""

    def __init__(self, crops: CropTable, size: int):
        self.crops, self._size = crops, size

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, row: int) -> dict:
        image = plain_transform(Sample(self.crops, row).image(), self._size)
        return {"image": image, "label": self.crops["label"][row], "row": row}


def collate(samples: list[dict]) -> dict:
    """A batch: image (N, S, S, 3) uint8 and label (N,) as tensors; lists of all else."""
    import torch

    batch = {key: [sample[key] for sample in samples] for key in samples[0]}
    batch["image"] = torch.from_numpy(np.stack(batch["image"]))
    batch["label"] = torch.from_numpy(np.array(batch["label"], np.float32))
    return batch
