"""Datasets of crops for training and validation, and the balanced sampler.

Every random choice depends only on (seed, epoch, position in the epoch), not on a
generator's state, so that an epoch is the same with any number of loader processes and
after a resume.
"""

import random
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from preprocessing.clips import choose_frames
from preprocessing.crop_table import CHANGE_COLUMN, CropTable
from preprocessing.dataset import NO_FOLD
from preprocessing.layout import folds_path
from runtime.cli import UserError
from training.augment import TrainingTransform, plain_transform
from training.codec import FRAME_RATES, compress, encode_clip
from training.config import Config, InputSettings
from training.cutout import half_cutout, hull_cutout, landmark_cutout
from training.samples import Sample
from training.self_blend import part_blend, self_blend

# Crops tried for one item, the first included; if none is readable, it is an error.
MAX_ATTEMPTS = 5
# Shards of each class that crops are drawn from at the same time.
INTERLEAVED_SHARDS = 8
# Of clips: a factor of the playback speed at most, and how often a frame is dropped.
MAX_SPEED, DROPPED_FRAMES = 1.25, 0.25
# Below this largest value of its diff (255 at an SSIM of 0) a fake crop shows a face that
# was not changed, only compressed again. Of 1,170 fake crops of real videos (DFDC's and
# FaceForensics++'s at c40) the 108 of a bystander had 72 to 167, all others 233 to 255.
MIN_CHANGE = 200


def train_val_split(
    crops: CropTable, fold: int, validation_frame_step: int, self_blended: float = 0.0
) -> tuple[CropTable, CropTable]:
    """Training crops (all other folds) and validation crops (this fold).

    Validation uses every `validation_frame_step`-th frame. Test crops, whose split is
    test or whose fold is `NO_FOLD`, are in neither.

    Args:
        self_blended: if 1, training needs no fakes.

    Raises:
        UserError: one of the two has no reals or no fakes.
    """
    usable = (crops["fold"] != NO_FOLD) & ~crops.is_value("split", "test")
    training = crops.select(usable & (crops["fold"] != fold))
    in_fold = usable & (crops["fold"] == fold)
    validation = crops.select(in_fold & (crops["frame"] % validation_frame_step == 0))
    parts = (training, "the other folds hold"), (validation, f"fold {fold} holds")
    for part, name in parts:
        for label, label_name in ((0, "REAL"), (1, "FAKE")):
            if part is training and label == 1 and self_blended == 1:
                continue
            if not (part["label"] == label).any():
                remedy = "choose another --fold, 0 to 15"
                if not (crops["label"][usable] == label).any():
                    remedy = "there are none in any fold, and validation needs some"
                raise UserError(
                    f"{folds_path(crops.root)}: {name} no {label_name} crop; {remedy}"
                )
    return training, validation


def leave_out(crops: CropTable, techniques: Sequence[str]) -> CropTable:
    """The crops without the fakes of some techniques.

    Raises:
        UserError: a technique has no crop.
    """
    kept = np.ones(len(crops), bool)
    for technique in techniques:
        is_left_out = crops.is_value("technique", technique)
        if not is_left_out.any():
            names = ", ".join(name for name in crops.counts() if name != "real")
            raise UserError(
                f"--leave-out {technique}: no crop has this technique; there are {names}"
            )
        kept &= ~is_left_out
    return crops.select(kept)


def treat_unchanged(crops: CropTable, treatment: str) -> tuple[CropTable, int]:
    """Leave out fake crops that equal their original's, or call them real.

    Args:
        treatment: keep, drop or real.

    Returns:
        the crops, and how many were dropped or changed.

    Raises:
        UserError: nobody has measured the changes.
    """
    if treatment == "keep":
        return crops, 0
    if CHANGE_COLUMN not in crops.columns:
        raise UserError(
            f"{folds_path(crops.root)}: has no column {CHANGE_COLUMN}, which "
            f"unchanged={treatment} needs; run preprocessing.05_make_folds with "
            "--measure-changes"
        )
    change = crops[CHANGE_COLUMN]
    unchanged = (crops["label"] == 1) & (change >= 0) & (change < MIN_CHANGE)
    if treatment == "drop":
        return crops.select(~unchanged), int(unchanged.sum())
    changed = crops.select(np.ones(len(crops), bool))
    changed.rows["label"][unchanged] = 0
    return changed, int(unchanged.sum())


class BalancedSampler(Sampler[tuple[int, ...]]):
    """Draws the crops of an epoch for one process, as many fakes as reals.

    Yields (row, seed); the seed determines all random choices for that crop. With
    `self_blended` it yields (row, seed, is_blend), where a blend has row and seed of a
    real crop of its batch. A draw
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
        self_blended: fraction of the fakes that are replaced by blends. If it is 1 and
            there are no fakes, each real crop counts as one too.

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
        self_blended: float = 0.0,
    ):
        # the crop of each row; rows beyond the table are real crops that count as fakes
        self._crops = np.arange(len(labels))
        if self_blended == 1 and not (labels == 1).any():
            self._crops = np.tile(self._crops, 2)
            labels = np.repeat([0, 1], len(labels))
            shards = None if shards is None else np.tile(shards, 2)
        self._labels, self._self_blended = labels, self_blended
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
        if not self._self_blended:
            yield from zip(rows[own].tolist(), seeds[own].tolist())
            return
        blends = np.zeros(total, bool)
        for batch in order.swapaxes(1, 2).reshape(-1, self._batch_size):
            self._choose_blends(batch, rows, seeds, blends, generator)
        blends |= self._crops[rows] != rows  # of a batch without a real crop
        rows = self._crops[rows]
        yield from zip(rows[own].tolist(), seeds[own].tolist(), blends[own].tolist())

    def _choose_blends(
        self,
        batch: np.ndarray,
        rows: np.ndarray,
        seeds: np.ndarray,
        blends: np.ndarray,
        generator: np.random.Generator,
    ) -> None:
        """Replace fakes of a batch by blends of its real crops, in place.

        Args:
            batch: positions in the other arrays.
        """
        is_fake = self._labels[rows[batch]] == 1
        reals, fakes = batch[~is_fake], batch[is_fake]
        chosen = fakes[generator.random(len(fakes)) < self._self_blended]
        if not len(reals):
            return
        # each real crop once, before any is taken twice
        partners = np.resize(generator.permutation(reals), len(chosen))
        rows[chosen], seeds[chosen] = rows[partners], seeds[partners]
        blends[chosen] = True

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
    """Augmented crops or clips, indexed by (row, seed) or (row, seed, is_blend).

    An item has `image` (S, S, 3) uint8 RGB, of a clip (T, S, S, 3), `label` (smoothed),
    `row`, `seed`, and `broken`: the error of each unreadable crop that was replaced.
    `row` is the row of the crop that was used. All frames of a clip are augmented by
    the same draws.
    """

    def __init__(self, crops: CropTable, config: Config):
        self.crops, self.config = crops, config
        self._transform: TrainingTransform | None = None
        self._originals = None
        if config.pair_mixup:
            self._originals = crops.original_rows()
            if (self._originals < 0).all():
                raise UserError(
                    f"{folds_path(crops.root)}: no fake has its original's crop beside "
                    "it, of the same name; leave pair_mixup out"
                )

    def __getitem__(self, item: tuple[int, ...]) -> dict:
        row, seed, *rest = item
        is_blend = bool(rest and rest[0])
        rng = random.Random(seed)
        # apart from `rng`, so that a real crop and its blend are cut and augmented alike
        extra = np.random.default_rng([seed, 1])
        broken: list[str] = []
        for _ in range(MAX_ATTEMPTS):
            try:
                images, label = self._read(row, is_blend, rng, extra)
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
            transform_seed = rng.getrandbits(32)
            images = self._transform.clip(images, transform_seed)
        else:
            images = [plain_transform(image, size) for image in images]
        smoothing = self.config.label_smoothing
        label = float(np.clip(label, smoothing, 1 - smoothing))
        return {
            "image": np.stack(images) if self.config.input.clip_frames else images[0],
            "label": np.float32(label),
            "row": row,
            "seed": seed,
            "broken": broken,
        }

    def _read(
        self,
        row: int,
        is_blend: bool,
        rng: random.Random,
        extra: np.random.Generator,
    ) -> tuple[list[np.ndarray], float]:
        """The frames of a clip, or the one image of a crop, each (h, w, 3) uint8 RGB,
        with at most one cutout, and its label.

        Args:
            extra: for what the winner's recipe lacks.
        """
        config, sample = self.config, Sample(self.crops, row)
        # files first: a crop that cannot be read must not change the draws
        landmarks, is_clip = sample.landmarks(), bool(config.input.clip_frames)
        frames, fps = sample.clip() if is_clip else (sample.image()[None], 0.0)
        label, diff = float(self.crops["label"][row]), None
        codec_seed = extra.integers(2**63)
        codec = np.random.default_rng(codec_seed)
        is_encoded = bool(config.codec) and codec.random() < config.codec
        chosen = [0]
        if is_clip:
            rate = codec.uniform(*FRAME_RATES) if is_encoded else 0.0
            chosen = self._choose_frames(len(frames), fps, rate, extra)
        # a frame that is shown twice is one picture, with one disturbance
        numbers, shown = np.unique(chosen, return_inverse=True)
        images = [frames[number] for number in numbers]
        if is_blend or (is_clip and label == 0):
            images, mask = self._blend(images, sample, is_blend, extra)
            label = float(is_blend)
            diff = (mask * 255).astype(np.uint8)
        elif label == 1 and extra.random() < config.pair_mixup:
            images[0], label = self._mix_with_original(row, images[0], extra)
        images = [images[number] for number in shown]
        if is_encoded and is_clip:
            images = [*encode_clip(np.stack(images), codec)]
        elif is_encoded:
            images = [compress(images[0], codec)]
        state, cut = rng.getstate(), []
        for image in images:
            rng.setstate(state)
            cut.append(self._cut(image, landmarks, sample, diff, is_blend, row, rng))
        return cut, label

    def _cut(
        self,
        image: np.ndarray,
        landmarks: np.ndarray | None,
        sample: Sample,
        diff: np.ndarray | None,
        is_blend: bool,
        row: int,
        rng: random.Random,
    ) -> np.ndarray:
        """An image with at most one cutout."""
        config = self.config
        if landmarks is not None and rng.random() < config.landmark_cutout:
            return landmark_cutout(image, landmarks, rng)
        if rng.random() < config.hull_cutout:
            return hull_cutout(image, sample.outline_landmarks(), rng)
        if rng.random() < config.half_cutout:
            diff = sample.diff() if diff is None else diff
            if diff is None:
                diff = np.zeros(image.shape[:2], np.uint8)
            if diff.shape != image.shape[:2]:
                raise sample.diff_size_error()
            is_fake = is_blend or bool(self.crops["label"][row])
            return half_cutout(image, diff, is_fake, rng)
        return image

    def _choose_frames(
        self, count: int, fps: float, rate: float, rng: np.random.Generator
    ) -> list[int]:
        """The frames of a clip that the network sees, at a random place and speed.

        Args:
            count: of the clip's frames.
            rate: frames a second to which the clip is reduced; 0: none.
        """
        settings = self.config.input
        speed, start, drop = 1.0, rng.random(), rng.random()
        if rng.random() < self.config.augmented:
            speed = float(np.exp(rng.uniform(-1, 1) * np.log(MAX_SPEED)))
        numbers = choose_frames(
            count,
            fps,
            settings.clip_frames,
            settings.clip_spacing * speed,
            start,
            min(rate, fps),
        )
        if drop < DROPPED_FRAMES * self.config.augmented and len(numbers) > 1:
            place = int(rng.integers(1, len(numbers)))
            numbers[place] = numbers[place - 1]
        return numbers

    def _blend(
        self,
        images: list[np.ndarray],
        sample: Sample,
        is_blend: bool,
        rng: np.random.Generator,
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Self-blends of the frames, and the first one's mask.

        Of a crop one blend. Of a clip: a blend has other draws in each frame, so that it
        flickers. The real clips, of which a fraction is blended too, have the same draws
        in all of them, so that a single frame does not hold the label.
        """
        config, is_clip = self.config, bool(self.config.input.clip_frames)
        seed = int(rng.integers(2**63)) if is_clip else 0
        if not is_blend and not rng.random() < config.self_blended:
            return images, np.zeros(images[0].shape[:2], np.float32)
        points, blends = sample.outline_landmarks(), []
        for number, image in enumerate(images):
            draws = np.random.default_rng([seed, number if is_blend else 0])
            draws = draws if is_clip else rng
            in_part = config.part_blended and draws.random() < config.part_blended
            if in_part and points is not None:
                blends.append(part_blend(image, points, draws))
            else:
                blends.append(self_blend(image, points, draws))
        return [image for image, _ in blends], blends[0][1]

    def _mix_with_original(
        self, row: int, image: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, float]:
        """Mixup of a fake crop and the real one of the same place and frame.

        Where there is no such crop of the same size, the fake is returned as it is.
        Method: NtechLab (third place), after Zhang et al., "mixup" (2018).

        Returns:
            (1 - t) * real + t * fake, uint8, and t from Beta(0.5, 0.5).
        """
        assert self._originals is not None
        share = float(rng.beta(0.5, 0.5))
        original = int(self._originals[row])
        if original < 0:
            return image, 1.0
        real = Sample(self.crops, original).image()
        if real.shape != image.shape:
            return image, 1.0
        mixed = (1 - share) * real.astype(np.float32) + share * image
        return np.rint(mixed).astype(np.uint8), share


class ValidationCrops(Dataset):
    """Crops or clips without augmentation, indexed by row.

    An item has `image` (S, S, 3) uint8 RGB, of a clip (T, S, S, 3) from its middle,
    `label` (0 or 1) and `row`. An unreadable crop raises a `UserError`.
    """

    def __init__(self, crops: CropTable, settings: InputSettings):
        self.crops, self._settings = crops, settings

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, row: int) -> dict:
        sample, settings = Sample(self.crops, row), self._settings
        if settings.clip_frames:
            frames, fps = sample.clip()
            numbers = choose_frames(
                len(frames), fps, settings.clip_frames, settings.clip_spacing
            )
            image = np.stack(
                [plain_transform(frames[number], settings.size) for number in numbers]
            )
        else:
            image = plain_transform(sample.image(), settings.size)
        return {"image": image, "label": self.crops["label"][row], "row": row}


def collate(samples: list[dict]) -> dict:
    """A batch: image (N, S, S, 3) or (N, T, S, S, 3) uint8 and label (N,) as tensors,
    others as lists.
    """
    batch: dict = {key: [sample[key] for sample in samples] for key in samples[0]}
    batch["image"] = torch.from_numpy(np.stack(batch["image"]))
    batch["label"] = torch.from_numpy(np.array(batch["label"], np.float32))
    return batch
