"""Train one network of the ensemble on one fold.

    torchrun --nproc_per_node=4 -m training.train --config configs/b7.yaml --data-dir DATA --seed 111 --fold 0
    python -m training.train …        the same in one process, on the GPU where there is one, else on the CPU

Reads  DATA/folds.csv, DATA/crops, DATA/landmarks, DATA/diffs; with --format wds DATA/shards instead
Writes weights/{prefix}DeepFakeClassifier_{encoder}_{fold}_{epoch} after each epoch, and …_last, from which an
       interrupted run goes on by itself; logs/{run}/metrics.csv, curves.png, args.yaml and TensorBoard's events
Method: the winner's (configs/b7.yaml). What he took from apex is in PyTorch now: mixed precision (torch.amp), distributed
       data parallel and synchronised batch norm. apex's FusedSGD serves where it is installed and asked for.
"""

import argparse
import csv
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from preprocessing.crop_table import FORMATS, CropTable, read_crop_table
from runtime.cli import MachineError, UserError, make_parser, non_negative_int, run_main
from runtime.files import atomic_file, open_csv, write_csv, write_errors
from runtime.process import block_sigint, die_with_parent, tune_malloc
from training.checkpoint import load_checkpoint, run_name, save_checkpoint
from training.config import Config, load_config
from training.curves import draw_curves
from training.dataset import (
    BalancedSampler,
    TrainingCrops,
    ValidationCrops,
    collate,
    train_val_split,
)
from training.distributed import World, init_distributed
from training.losses import balanced_loss, video_losses
from training.model import DeepFakeClassifier, Normalize
from training.schedule import poly_learning_rate

MAX_SKIPPED_STEPS = 20  # steps in a row without finite gradients; the scaler halves its scale at each, from 65,536 to below 1


class NonFiniteError(UserError):
    """A step whose loss or gradients are not finite, where that is no longer the scaler's search for its scale."""


@dataclass
class Trainer:
    """What a training step works with. `model` may be wrapped for several processes; `network` is the model inside."""

    config: Config
    world: World
    model: torch.nn.Module
    network: DeepFakeClassifier
    normalize: Normalize
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    seed: int
    accumulate: int  # batches of this process in a step
    skipped: int = 0  # steps that the scaler left out because gradients were not finite, until the last but one
    _in_a_row: int = 0
    _scale: float = 0.0

    @classmethod
    def build(
        cls,
        config: Config,
        world: World,
        pretrained: str,
        seed: int = 0,
        accumulate: int = 1,
    ) -> "Trainer":
        network = DeepFakeClassifier(
            config.encoder, pretrained, config.dropout, config.drop_path_rate
        )
        for layer in network.modules():
            if isinstance(
                layer, torch.nn.BatchNorm2d
            ):  # so that its memory reaches back as many steps as with one batch a step
                layer.momentum = 1 - (1 - layer.momentum) ** (1 / accumulate)
        model = world.wrap(network, config.sync_batchnorm)
        network = model.module if hasattr(model, "module") else model
        scaler = torch.amp.GradScaler(
            enabled=config.precision == "float16" and world.device.type == "cuda"
        )
        normalize = Normalize(config.input.mean, config.input.std).to(world.device)
        return cls(
            config,
            world,
            model,
            network,
            normalize,
            _make_optimizer(config, network),
            scaler,
            seed,
            accumulate,
        )

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N,) float32 of images (N, S, S, 3) uint8 RGB, in the configured precision on a GPU."""
        images = self.normalize(images.to(self.world.device, non_blocking=True))
        kind = self.world.device.type
        precision = getattr(torch, self.config.precision)
        # the wrapped model waits for the other processes, whose validation batches may be fewer
        model = self.model if self.model.training else self.network
        with torch.autocast(
            kind, precision, enabled=kind == "cuda" and precision != torch.float32
        ):
            return model(images).float()

    def step(
        self, batches: Sequence[dict], iteration: int
    ) -> tuple[float, float, float]:
        """One optimizer step with the mean gradient of the batches. Returns the loss over fakes and reals, over fakes, over
        reals, each the mean of the batches'.

        Raises:
            NonFiniteError: the loss is not, or the scaler has skipped `MAX_SKIPPED_STEPS` steps in a row. Such a loss comes from
                activations that are in batch norm's statistics by now: no later step would mend that.
        """
        config = self.config
        learning_rate = poly_learning_rate(
            iteration, config.learning_rate, config.poly_power, config.max_iterations
        )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.zero_grad(set_to_none=True)
        values = []
        for number, batch in enumerate(batches):
            self._seed_dropout(iteration, number)
            last = number == len(batches) - 1
            with (
                nullcontext()
                if last or self.model is self.network
                else self.model.no_sync()
            ):
                losses = balanced_loss(
                    self.logits(batch["image"]), batch["label"].to(self.world.device)
                )
                values.append(
                    torch.stack(losses).tolist()
                )  # one wait for the GPU, not three
                if not number:
                    self._count_skips()
                finite = math.isfinite(values[-1][0])
                if not finite or self._in_a_row > MAX_SKIPPED_STEPS:
                    what = (
                        "the gradients are not finite"
                        if finite
                        else f"the loss is {values[-1][0]}"
                    )
                    raise NonFiniteError(
                        f"{what} at iteration {iteration}; lower learning_rate, or set precision to bfloat16"
                    )
                self.scaler.scale(losses[0] / len(batches)).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(
            self.network.parameters(), config.clip_gradient_norm
        )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return tuple(sum(each) / len(each) for each in zip(*values))

    def _seed_dropout(self, iteration: int, number: int) -> None:
        """What dropout and stochastic depth draw follows from the seed, the iteration and the part of the epoch alone."""
        part = self.world.rank + number * self.world.size
        torch.manual_seed(
            int(
                np.random.SeedSequence([self.seed, iteration, part]).generate_state(
                    1, np.uint64
                )[0]
            )
        )

    def _count_skips(self) -> None:
        """The scaler lowers its scale where it skips a step. Asked one step later, when the GPU has got there anyway."""
        scale = self.scaler.get_scale()
        if scale < self._scale:
            self.skipped, self._in_a_row = self.skipped + 1, self._in_a_row + 1
        else:
            self._in_a_row = 0
        self._scale = scale


def train_epoch(trainer: Trainer, loader: DataLoader, epoch: int, log: Path) -> dict:
    """One pass. Returns this epoch's training columns of metrics.csv. `log` is for the names of a bad batch."""
    trainer.model.train()
    config, world = trainer.config, trainer.world
    start, broken, sums, skipped = (
        time.perf_counter(),
        0,
        [0.0, 0.0, 0.0],
        trainer.skipped,
    )
    steps = zip(*[batches(loader)] * trainer.accumulate)
    bar = tqdm(
        steps,
        desc=f"epoch {epoch}",
        unit="step",
        total=config.batches_per_epoch,
        disable=not world.is_main,
    )
    for number, parts in enumerate(bar):
        try:
            losses = trainer.step(parts, epoch * config.batches_per_epoch + number)
        except NonFiniteError as error:
            path = _write_bad_batch(
                log / f"bad_batch_{world.rank}.csv", loader.dataset.crops, parts
            )
            raise UserError(
                f"{error}. The batch's crops are listed in {path}"
            ) from error
        sums = [total + loss for total, loss in zip(sums, losses)]
        bar.set_postfix(
            loss=f"{sums[0] / (number + 1):.4f}",
            lr=f"{trainer.optimizer.param_groups[0]['lr']:.2e}",
        )
        for message in (
            message
            for batch in parts
            for messages in batch["broken"]
            for message in messages
        ):
            broken += 1
            tqdm.write(
                f"another crop was taken in place of: {message}", file=sys.stderr
            )
        if broken > config.max_broken_crops * len(loader) * config.batch_size:
            raise UserError(
                f"{broken} crops of epoch {epoch} cannot be read, more than max_broken_crops allows"
            )
    means = [
        sum(each) / (config.batches_per_epoch * world.size)
        for each in zip(*world.gather([sums]))
    ]
    images = len(loader) * config.batch_size * world.size
    return {
        "epoch": epoch,
        "learning_rate": trainer.optimizer.param_groups[0]["lr"],
        **dict(zip(("train_loss", "train_fake_loss", "train_real_loss"), means)),
        "broken_crops": sum(world.gather([broken])),
        "skipped_steps": trainer.skipped - skipped,
        "images_per_second": round(images / (time.perf_counter() - start), 1),
    }


@torch.no_grad()
def validate(trainer: Trainer, loader: DataLoader, crops: CropTable) -> dict:
    """Score every video of the fold. Returns the validation columns of metrics.csv."""
    trainer.model.eval()
    scores = []
    for batch in tqdm(
        batches(loader),
        desc="validate",
        unit="batch",
        total=len(loader),
        disable=not trainer.world.is_main,
    ):
        probabilities = torch.sigmoid(trainer.logits(batch["image"])).tolist()
        scores += zip(
            crops["video"][batch["row"]].tolist(),
            probabilities,
            batch["label"].tolist(),
        )
    fake_loss, real_loss = video_losses(trainer.world.gather(scores))
    return {
        "val_fake_loss": fake_loss,
        "val_real_loss": real_loss,
        "val_loss": (fake_loss + real_loss) / 2,
    }


def batches(loader: DataLoader) -> Iterator[dict]:
    """A loader's batches, with the errors of its processes as our own."""
    with block_sigint():
        iterator = iter(loader)
    try:
        yield from iterator
    except (
        UserError
    ) as error:  # from a loader process it comes inside that process's traceback
        raise UserError(str(error).rpartition("UserError: ")[2].strip()) from error


def train(options: argparse.Namespace, config: Config, world: World) -> None:
    """All epochs that are still to do."""
    name = run_name(options.prefix or f"{options.seed}_", config.encoder, options.fold)
    last, log = options.output_dir / f"{name}_last", options.logdir / name
    tune_malloc()
    torch.manual_seed(options.seed)
    torch.backends.cudnn.benchmark = True
    resumed = _find_resume(options, last, config, world)
    if resumed and resumed["epoch"] >= config.epochs:
        if world.is_main:
            print(f"{last}: all {config.epochs} epochs are done")
        return
    parts = (resumed or {}).get("parts", world.size * config.accumulate)
    accumulate = _accumulation_steps(parts, config.batch_size, world.size)
    trainer = Trainer.build(
        config,
        world,
        "none" if resumed else config.pretrained,
        options.seed,
        accumulate,
    )
    start, best = 0, math.inf
    if resumed:
        trainer.network.load_state_dict(resumed["state_dict"])
        trainer.optimizer.load_state_dict(resumed["optimizer"])
        trainer.scaler.load_state_dict(resumed["scaler"])
        start, best = resumed["epoch"], resumed["bce_best"]
    if len(set(world.gather([start]))) > 1:
        raise UserError(
            f"{options.output_dir}: the processes do not see the same checkpoint in it; it must lie on a file "
            "system that all nodes share"
        )
    training, validation = train_val_split(
        read_crop_table(options.data_dir, options.format),
        options.fold,
        config.validation_frame_step,
    )
    sampler = BalancedSampler(
        training["label"],
        config.batches_per_epoch * config.batch_size,
        options.seed,
        world.rank,
        world.size,
        config.batch_size,
        accumulate,
        training["shard"] if training.packed else None,
    )
    train_loader = _make_loader(
        TrainingCrops(training, config), options.workers, config.batch_size, sampler
    )
    mine = Subset(
        ValidationCrops(validation, config.input.size),
        range(world.rank, len(validation), world.size),
    )
    val_loader = _make_loader(mine, options.workers, 2 * config.batch_size)
    if world.is_main:
        _print_summary(name, config, world, accumulate, training, validation, start)
        _save_arguments(log, options, config)
    for epoch in range(start, config.epochs):
        sampler.epoch = epoch
        row = train_epoch(trainer, train_loader, epoch, log)
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
            weights = trainer.network.state_dict()
            save_checkpoint(
                options.output_dir / f"{name}_{epoch}", state_dict=weights, **entries
            )
            draw_curves(_append_metrics(log, row), log / "curves.png")
            state = {
                "optimizer": trainer.optimizer.state_dict(),
                "scaler": trainer.scaler.state_dict(),
            }
            save_checkpoint(last, state_dict=weights, **state, **entries)
            both = f"fake {row['val_fake_loss']:.4f}, real {row['val_real_loss']:.4f}"
            print(
                f"epoch {epoch}: validation loss {row['val_loss']:.4f} ({both}), best {best:.4f}"
            )
        world.barrier()


def _make_optimizer(config: Config, network: torch.nn.Module) -> torch.optim.Optimizer:
    parameters = [
        parameter for parameter in network.parameters() if parameter.requires_grad
    ]
    make = torch.optim.SGD
    if config.optimizer == "apex_fused_sgd":
        try:
            from apex.optimizers import FusedSGD as make
        except ImportError as error:
            raise UserError(
                "optimizer is apex_fused_sgd, but NVIDIA's apex is not installed: build it from source "
                "(github.com/NVIDIA/apex; the package of that name in the registry is another project), or use sgd"
            ) from error
    return make(
        parameters,
        lr=config.learning_rate,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
    )


def _make_loader(
    dataset: torch.utils.data.Dataset, workers: int, batch_size: int, sampler=None
) -> DataLoader:
    return DataLoader(
        dataset,
        batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        drop_last=sampler is not None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_start_loader_worker,
        multiprocessing_context="spawn" if workers else None,
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # its own, so that the number of workers does not move the global one
    )


def _start_loader_worker(_: int) -> None:
    die_with_parent()
    cv2.setNumThreads(1)


def _write_bad_batch(path: Path, crops: CropTable, batches: Sequence[dict]) -> Path:
    """List some batches' crops: with row and seed `TrainingCrops` makes each image again."""
    rows = [pair for batch in batches for pair in zip(batch["row"], batch["seed"])]
    write_csv(
        path,
        ["row", "seed", "video", "file"],
        (
            [row, seed, crops.name("video", row), crops.name("file", row)]
            for row, seed in rows
        ),
    )
    return path


def _accumulation_steps(parts: int, batch_size: int, processes: int) -> int:
    """How many of a step's batches each process takes."""
    if parts % processes:
        fit = [str(number) for number in range(1, parts + 1) if parts % number == 0]
        raise UserError(
            f"a step of this run is {parts} batches of {batch_size} images, which {processes} processes cannot "
            f"share evenly; start {', '.join(fit[:-1])} or {fit[-1]}, or begin anew with --resume none or "
            "another --prefix"
        )
    return parts // processes


def _find_resume(
    options: argparse.Namespace, last: Path, config: Config, world: World
) -> dict | None:
    """The checkpoint to go on from, or None to begin."""
    if options.resume == "none" or (options.resume == "auto" and not last.exists()):
        return None
    path = last if options.resume == "auto" else Path(options.resume)
    checkpoint = load_checkpoint(path)
    if not {"optimizer", "scaler", "config", "seed"} <= checkpoint.keys():
        raise UserError(
            f"{path}: holds no optimizer; give a checkpoint whose name ends with _last"
        )
    before, now = (
        checkpoint["config"] | {"seed": checkpoint["seed"]},
        config.model_dump() | {"seed": options.seed},
    )
    changed = [
        key
        for key in now
        if before.get(key) != now[key] and key not in ("epochs", "accumulate")
    ]
    if changed:
        raise UserError(
            f"{path} was made with another {', '.join(changed)} ({before.get(changed[0])}, now {now[changed[0]]}); "
            "go on with the same settings, give another --prefix, or begin anew with --resume none"
        )
    return checkpoint


def _print_summary(
    name: str,
    config: Config,
    world: World,
    accumulate: int,
    training: CropTable,
    validation: CropTable,
    start: int,
) -> None:
    kinds = [
        f"{(part['label'] == 0).sum()} real and {(part['label'] == 1).sum()} fake"
        for part in (training, validation)
    ]
    effective = world.size * config.batch_size * accumulate
    if start:
        print(f"going on after epoch {start - 1}")
    print(
        f"{name}: {config.encoder} at {config.input.size} px on {world.size} x {world.device.type}"
    )
    print(f"  {kinds[0]} crops to train on, {kinds[1]} to validate on")
    steps = f"{config.batches_per_epoch} steps of {effective} images = {world.size} processes x {config.batch_size}"
    added = f" x {accumulate} batches added up" if accumulate > 1 else ""
    print(f"  epochs {start} to {config.epochs - 1}, each {steps}{added}")


def _save_arguments(log: Path, options: argparse.Namespace, config: Config) -> None:
    arguments = {
        key: str(value) if isinstance(value, Path) else value
        for key, value in vars(options).items()
    }
    text = yaml.safe_dump(
        {
            "options": arguments,
            "config": config.model_dump(mode="json"),
            "torch": str(torch.__version__),
        },
        sort_keys=False,
    )
    with atomic_file(log / "args.yaml") as temporary:
        temporary.write_text(text)


def _append_metrics(log: Path, row: dict) -> list[dict]:
    """Add an epoch to metrics.csv, in place of rows that an interrupted run left for it, and to TensorBoard's events.

    Returns the rows of all epochs.
    """
    from torch.utils.tensorboard import SummaryWriter

    path, rows = log / "metrics.csv", []
    if path.exists():
        with open_csv(path) as file:
            rows = [
                old for old in csv.DictReader(file) if int(old["epoch"]) < row["epoch"]
            ]
    write_csv(
        path, list(row), ([old.get(key, "") for key in row] for old in [*rows, row])
    )
    with write_errors(log), SummaryWriter(str(log)) as writer:
        for key, value in row.items():
            if key != "epoch":
                writer.add_scalar(key.replace("_", "/", 1), value, row["epoch"])
    return [*rows, row]


def main(argv: list[str] | None = None) -> int:
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    parser = make_parser(__doc__)
    parser.add_argument(
        "--config", type=Path, required=True, help="configs/b7.yaml is the winner's"
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        required=True,
        help="the folder that preprocess_data.sh worked on",
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="files",
        help="of the crops: files, or the WebDataset shards of preprocessing step 6",
    )
    parser.add_argument(
        "--output-dir", type=Path, default=Path("weights"), help="for checkpoints"
    )
    parser.add_argument(
        "--logdir",
        type=Path,
        default=Path("logs"),
        help="for metrics.csv, args.yaml and TensorBoard",
    )
    parser.add_argument(
        "--fold",
        type=int,
        default=0,
        choices=range(16),
        metavar="0..15",
        help="kept for validation",
    )
    parser.add_argument(
        "--seed", type=int, default=111, help="of weights, sampling and augmentation"
    )
    parser.add_argument(
        "--prefix", default="", help="of the checkpoints' names; SEED_ if not given"
    )
    parser.add_argument(
        "--resume",
        default="auto",
        help="auto: go on from …_last if it is there; none; or a file",
    )
    parser.add_argument(
        "--workers",
        type=non_negative_int,
        default=min(6, max(1, (os.cpu_count() or 1) // processes)),
        help="loader processes for each training process",
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        help="the GPU where there is one if not given",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="change settings of the config file",
    )
    options = parser.parse_args(argv)
    config = load_config(options.config, options.set)
    try:
        with init_distributed(options.device) as world:
            train(options, config, world)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise MachineError(
            f"{error} A loader process ended; if it was for want of memory, use fewer --workers. The same "
            "command goes on after the last epoch"
        ) from error
    return 0


if __name__ == "__main__":
    run_main(main)
