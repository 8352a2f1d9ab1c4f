"""The epochs of a training run: train, validate, save, resume."""

import argparse
import csv
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from preprocessing.crop_table import CropTable, read_crop_table
from preprocessing.layout import landmarks_dir
from runtime.cli import UserError, describe_changes
from runtime.files import atomic_file, open_csv, write_csv, write_errors
from runtime.process import tune_malloc
from training.checkpoint import load_checkpoint, run_name, save_checkpoint
from training.config import Config
from training.curves import draw_curves
from training.dataset import (
    BalancedSampler,
    TrainingCrops,
    ValidationCrops,
    leave_out,
    train_val_split,
    treat_unchanged,
)
from training.distributed import World
from training.loaders import check_shared_memory, iterate_batches, make_loader
from training.losses import video_losses
from training.trainer import NonFiniteError, Trainer


def train(options: argparse.Namespace, config: Config, world: World) -> None:
    """Run the epochs that are not done yet."""
    name = run_name(options.prefix or f"{options.seed}_", config.encoder, options.fold)
    last, log = options.output_dir / f"{name}_last", options.logdir / name
    tune_malloc()
    torch.manual_seed(options.seed)
    torch.backends.cudnn.benchmark = True
    resumed = _find_resume(options, last, config)
    if resumed and resumed["epoch"] >= config.epochs:
        if world.is_main:
            print(f"{last}: all {config.epochs} epochs are done")
        return
    # batches of a step, over all processes
    parts = (resumed or {}).get("parts", world.size * config.accumulate)
    accumulate = _accumulation_steps(parts, config.batch_size, world.size)
    pretrained = "none" if resumed else config.pretrained
    trainer = Trainer.build(config, world, pretrained, options.seed, accumulate)
    start, best = 0, math.inf
    if resumed:
        _restore(trainer, resumed)
        start, best = resumed["epoch"], resumed["bce_best"]
    if len(set(world.gather([start]))) > 1:
        raise UserError(
            f"{options.output_dir}: the processes do not see the same checkpoint in "
            "it; it must be on a file system that all nodes share"
        )
    crops = read_crop_table(options.data_dir, options.format, config.input.kind)
    crops = leave_out(crops, options.leave_out)
    training, validation = train_val_split(
        crops, options.fold, config.validation_frame_step, config.self_blended
    )
    training, unchanged = treat_unchanged(training, config.unchanged)
    sampler = _make_sampler(trainer, training)
    train_set = TrainingCrops(training, config)
    train_loader = make_loader(train_set, options.workers, config.batch_size, sampler)
    val_loader = _make_validation_loader(trainer, validation, options.workers)
    check_shared_memory([train_loader, val_loader], config.input)
    if world.is_main:
        _print_summary(name, trainer, training, validation, start)
        if config.unchanged != "keep":
            print(
                f"  unchanged={config.unchanged}: {unchanged} crops that equal their "
                f"original's, {unchanged / max(len(crops), 1):.1%} of all crops"
            )
        _save_arguments(log, options, config, training, validation)
    for epoch in range(start, config.epochs):
        sampler.epoch = epoch
        row = train_epoch(trainer, train_loader, training, epoch, log)
        with trainer.evaluated_weights():
            row |= validate(trainer, val_loader, validation)
        best = min(best, row["val_loss"])
        if world.is_main:
            entries = {
                "epoch": epoch + 1,
                "bce_best": best,
                "config": config.model_dump(),
                "seed": options.seed,
                "parts": parts,
            }
            if options.leave_out:
                entries["left_out"] = options.leave_out
            checkpoint = options.output_dir / f"{name}_{epoch}"
            _save_epoch(trainer, checkpoint, last, log, row, entries)
        world.barrier()


def train_epoch(
    trainer: Trainer, loader: DataLoader, crops: CropTable, epoch: int, log: Path
) -> dict:
    """Train for one epoch.

    Args:
        crops: the table that the rows of the batches refer to.
        log: the folder for bad_batch_{rank}.csv, if a loss is not finite.

    Returns:
        The training columns of metrics.csv.
    """
    trainer.model.train()
    config, world = trainer.config, trainer.world
    start = time.perf_counter()
    skipped_before = trainer.skipped
    broken, sums = 0, [0.0, 0.0, 0.0]
    # the batches in groups of `accumulate`
    steps = zip(*[iterate_batches(loader)] * trainer.accumulate)
    bar = tqdm(
        steps,
        desc=f"epoch {epoch}",
        unit="step",
        total=config.batches_per_epoch,
        disable=not world.is_main,
    )
    for number, batches in enumerate(bar):
        try:
            losses = trainer.step(batches, epoch * config.batches_per_epoch + number)
        except NonFiniteError as error:
            path = log / f"bad_batch_{world.rank}.csv"
            _write_bad_batch(path, crops, batches)
            raise UserError(
                f"{error}. The batch's crops are listed in {path}"
            ) from error
        sums = [total + loss for total, loss in zip(sums, losses)]
        bar.set_postfix(
            loss=f"{sums[0] / (number + 1):.4f}",
            lr=f"{trainer.optimizer.param_groups[0]['lr']:.2e}",
        )
        broken += _report_broken_crops(batches)
        if broken > config.max_broken_crops * len(loader) * config.batch_size:
            raise UserError(
                f"{broken} crops of epoch {epoch} cannot be read, "
                "more than max_broken_crops allows"
            )
    steps_of_all = config.batches_per_epoch * world.size
    means = [sum(column) / steps_of_all for column in zip(*world.gather([sums]))]
    images = len(loader) * config.batch_size * world.size
    return {
        "epoch": epoch,
        "learning_rate": trainer.optimizer.param_groups[0]["lr"],
        **dict(zip(("train_loss", "train_fake_loss", "train_real_loss"), means)),
        "broken_crops": sum(world.gather([broken])),
        "skipped_steps": trainer.skipped - skipped_before,
        "images_per_second": round(images / (time.perf_counter() - start), 1),
    }


@torch.no_grad()
def validate(trainer: Trainer, loader: DataLoader, crops: CropTable) -> dict:
    """Score every video of the fold. Returns the validation columns of metrics.csv."""
    trainer.model.eval()
    scores: list[tuple[str, float, float]] = []
    for batch in tqdm(
        iterate_batches(loader),
        desc="validate",
        unit="batch",
        total=len(loader),
        disable=not trainer.world.is_main,
    ):
        probabilities = torch.sigmoid(trainer.logits(batch["image"])).tolist()
        videos = crops["video"][batch["row"]].tolist()
        scores += zip(videos, probabilities, batch["label"].tolist())
    fake_loss, real_loss = video_losses(trainer.world.gather(scores))
    return {
        "val_fake_loss": fake_loss,
        "val_real_loss": real_loss,
        "val_loss": (fake_loss + real_loss) / 2,
    }


def _make_sampler(trainer: Trainer, training: CropTable) -> BalancedSampler:
    config, world = trainer.config, trainer.world
    return BalancedSampler(
        training["label"],
        config.batches_per_epoch * config.batch_size,
        trainer.seed,
        world.rank,
        world.size,
        config.batch_size,
        trainer.accumulate,
        training["shard"] if training.in_shards else None,
        config.self_blended,
    )


def _make_validation_loader(
    trainer: Trainer, validation: CropTable, workers: int
) -> DataLoader:
    """A loader of this process's share of the validation crops."""
    config, world = trainer.config, trainer.world
    subset = Subset(
        ValidationCrops(validation, config.input),
        range(world.rank, len(validation), world.size),
    )
    return make_loader(subset, workers, 2 * config.batch_size)


def _save_epoch(
    trainer: Trainer, checkpoint: Path, last: Path, log: Path, row: dict, entries: dict
) -> None:
    """Write the checkpoints, the metrics and the curves of an epoch.

    `last` is written at the end, so that a resumed run repeats an epoch that was not
    saved completely.
    """
    own = trainer.network.state_dict()
    weights = trainer.average.state if trainer.average else own
    save_checkpoint(checkpoint, state_dict=weights, **entries)
    draw_curves(_append_metrics(log, row), log / "curves.png")
    state = {
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
    }
    if trainer.average:
        state["trained_weights"] = own
    save_checkpoint(last, state_dict=weights, **state, **entries)
    print(
        f"epoch {row['epoch']}: validation loss {row['val_loss']:.4f} "
        f"(fake {row['val_fake_loss']:.4f}, real {row['val_real_loss']:.4f}), "
        f"best {entries['bce_best']:.4f}"
    )


def _report_broken_crops(batches: Sequence[dict]) -> int:
    """Print why crops of the batches were replaced. Returns their number."""
    messages = [
        message
        for batch in batches
        for item_messages in batch["broken"]
        for message in item_messages
    ]
    for message in messages:
        tqdm.write(f"another crop was taken in place of: {message}", file=sys.stderr)
    return len(messages)


def _write_bad_batch(path: Path, crops: CropTable, batches: Sequence[dict]) -> None:
    """List the crops of some batches.

    `TrainingCrops` reproduces each image from its row and seed.
    """
    pairs = [pair for batch in batches for pair in zip(batch["row"], batch["seed"])]
    rows = (
        [row, seed, crops.name("video", row), crops.name("file", row)]
        for row, seed in pairs
    )
    write_csv(path, ["row", "seed", "video", "file"], rows)


def _accumulation_steps(parts: int, batch_size: int, processes: int) -> int:
    """How many of a step's `parts` batches each process takes."""
    if parts % processes:
        *others, last = [str(n) for n in range(1, parts + 1) if parts % n == 0]
        raise UserError(
            f"a step of this run is {parts} batches of {batch_size} images, which "
            f"{processes} processes cannot share evenly; start {', '.join(others)} or "
            f"{last}, or begin anew with --resume none or another --prefix"
        )
    return parts // processes


def _find_resume(
    options: argparse.Namespace, last: Path, config: Config
) -> dict | None:
    """The checkpoint to resume from, or None to start from the beginning."""
    if options.resume == "none" or (options.resume == "auto" and not last.exists()):
        return None
    path = last if options.resume == "auto" else Path(options.resume)
    checkpoint = load_checkpoint(path)
    if not {"optimizer", "scaler", "config", "seed"} <= checkpoint.keys():
        raise UserError(
            f"{path}: holds no optimizer; give a checkpoint whose name ends with _last"
        )
    # settings that a checkpoint of an earlier version lacks had their defaults
    defaults = Config().model_dump()
    old = defaults | checkpoint["config"] | {"seed": checkpoint["seed"]}
    old["input"] = defaults["input"] | old["input"]
    old["left_out"] = checkpoint.get("left_out", [])
    new = config.model_dump() | {"seed": options.seed, "left_out": options.leave_out}
    for key in ("epochs", "accumulate"):
        del new[key]
    if changed := describe_changes(old, new):
        raise UserError(
            f"{path} was made with another {', '.join(changed)}; use the same settings, "
            "give another --prefix, or begin anew with --resume none"
        )
    return checkpoint


def _restore(trainer: Trainer, checkpoint: dict) -> None:
    weights = checkpoint["state_dict"]
    if trainer.average:
        trainer.average.restore(weights)
        weights = checkpoint["trained_weights"]
    trainer.network.load_state_dict(weights)
    trainer.optimizer.load_state_dict(checkpoint["optimizer"])
    trainer.scaler.load_state_dict(checkpoint["scaler"])


def _print_summary(
    name: str,
    trainer: Trainer,
    training: CropTable,
    validation: CropTable,
    start: int,
) -> None:
    config, world, accumulate = trainer.config, trainer.world, trainer.accumulate
    counts = [
        " and ".join(f"{count} {name}" for name, count in crops.counts().items())
        for crops in (training, validation)
    ]
    if start:
        print(f"going on after epoch {start - 1}")
    print(
        f"{name}: {config.encoder} at {config.input.size} px on "
        f"{world.size} x {world.device.type}"
    )
    kind = config.input.kind
    print(f"  {counts[0]} {kind}s to train on, {counts[1]} to validate on")
    images = f"{world.size} processes x {config.batch_size}"
    if accumulate > 1:
        images += f" x {accumulate} batches added up"
    print(
        f"  epochs {start} to {config.epochs - 1}, "
        f"each {config.batches_per_epoch} steps of "
        f"{world.size * config.batch_size * accumulate} images = {images}"
    )


def _save_arguments(
    log: Path,
    options: argparse.Namespace,
    config: Config,
    training: CropTable,
    validation: CropTable,
) -> None:
    """Write args.yaml."""
    arguments = {
        key: str(value) if isinstance(value, Path) else value
        for key, value in vars(options).items()
    }
    content = {
        "options": arguments,
        "config": config.model_dump(mode="json"),
        "outline_landmarks": 68
        if landmarks_dir(options.data_dir, "", 68).exists()
        else 5,
        "crops": {"training": training.counts(), "validation": validation.counts()},
        "torch": str(torch.__version__),
    }
    with atomic_file(log / "args.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(content, sort_keys=False))


def _append_metrics(log: Path, row: dict) -> list[dict]:
    """Add an epoch to metrics.csv and to the TensorBoard events.

    In metrics.csv it replaces rows of this and later epochs, which an interrupted run
    may have left.

    Returns:
        The rows of all epochs.
    """
    from torch.utils.tensorboard import SummaryWriter

    path, old_rows = log / "metrics.csv", []
    if path.exists():
        with open_csv(path) as file:
            old_rows = [
                old for old in csv.DictReader(file) if int(old["epoch"]) < row["epoch"]
            ]
    rows = [*old_rows, row]
    write_csv(path, list(row), ([each.get(key, "") for key in row] for each in rows))
    with write_errors(log), SummaryWriter(str(log)) as writer:
        for key, value in row.items():
            if key != "epoch":
                writer.add_scalar(key.replace("_", "/", 1), value, row["epoch"])
    return rows
