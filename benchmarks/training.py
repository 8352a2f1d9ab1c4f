"""Time training steps on images already in memory, and the data loader.

    python -m benchmarks.training --device cuda     B7 at 380 px
    python -m benchmarks.training --encoder tf_efficientnet_b0 --size 96
        --batch 32                                  a small network, on a CPU

Variants: plain  NCHW, eager, float16 on a GPU
          ours   the step of training.train
The data loader reads synthetic crops of 300 pixels with the full augmentation. It keeps
up if it delivers more images a second than the step consumes.
"""

import os
import sys
import tempfile
import time
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import ratio_rows, side_by_side, synchronize
from preprocessing.crop_table import COLUMNS, read_crop_table
from preprocessing.crops import write_image
from preprocessing.layout import crops_dir, folds_path
from runtime.cli import make_parser, positive_int
from runtime.files import write_csv
from runtime.process import tune_malloc
from runtime.results import print_results
from training.config import Config
from training.dataset import BalancedSampler, TrainingCrops
from training.distributed import World
from training.loaders import make_loader
from training.losses import balanced_loss
from training.model import DeepFakeClassifier, Normalize
from training.trainer import Trainer


def config(encoder, size, batch):
    return Config(
        encoder=encoder, pretrained="none", batch_size=batch, input={"size": size}
    )


def random_batch(size, batch):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(
        0, 256, (batch, size, size, 3), dtype=torch.uint8, generator=generator
    )
    return {"image": images, "label": (torch.arange(batch) % 2).float()}


@cache
def plain_setup(encoder, size, batch, device):
    torch.backends.cudnn.benchmark = True
    settings = config(encoder, size, batch)
    model = DeepFakeClassifier(
        encoder, dropout=settings.dropout, drop_path_rate=settings.drop_path_rate
    )
    model.to(device).train()
    parameters = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.SGD(
        parameters, lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4
    )
    scaler = torch.amp.GradScaler(enabled=device != "cpu")
    normalize = Normalize(settings.input.mean, settings.input.std).to(device)
    return model, optimizer, scaler, normalize, random_batch(size, batch)


def plain_steps(encoder, size, batch, device, steps):
    setup = plain_setup(encoder, size, batch, device)
    model, optimizer, scaler, normalize, data = setup
    for _ in range(steps):
        images = normalize(data["image"].to(device)).contiguous()
        with torch.autocast(device, torch.float16, enabled=device != "cpu"):
            logits = model(images).float()
        loss = balanced_loss(logits, data["label"].to(device))[0]
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1)
        scaler.step(optimizer)
        scaler.update()
    synchronize(device)


@cache
def our_setup(encoder, size, batch, device):
    torch.backends.cudnn.benchmark = True
    tune_malloc()
    trainer = Trainer.build(
        config(encoder, size, batch), World(0, 1, torch.device(device)), "none"
    )
    trainer.model.train()
    return trainer, random_batch(size, batch)


def our_steps(encoder, size, batch, device, steps):
    trainer, data = our_setup(encoder, size, batch, device)
    for number in range(steps):
        trainer.step([data], number)
    synchronize(device)


def make_crops(root):
    """Write 64 crops of a real and of a fake video, and folds.csv."""
    rng, rows = np.random.default_rng(0), []
    for video in ("real", "fake"):
        crops_dir(root, video).mkdir(parents=True)
        for number in range(64):
            coarse = rng.integers(0, 255, (30, 30, 3))
            image = np.kron(coarse, np.ones((10, 10, 1))).astype(np.uint8)
            name, label = f"{number}_0.png", int(video == "fake")
            write_image(crops_dir(root, video) / name, image)
            rows.append([video, name, label, "real", number, 0])
    write_csv(folds_path(root), COLUMNS, rows)


def loader_speed(size, batch, workers, batches):
    """Images a second of the training loader."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_crops(root)
        crops = read_crop_table(root)
        count = (batches + 2 * workers) * batch
        sampler = BalancedSampler(crops["label"], count, 0, 0, 1)
        dataset = TrainingCrops(crops, config("tf_efficientnet_b0", size, batch))
        loader = iter(make_loader(dataset, workers, batch, sampler))
        for _ in range(2 * workers):  # the batches prepared during start-up
            next(loader)
        start = time.perf_counter()
        for _ in range(batches):
            next(loader)
        return batches * batch / (time.perf_counter() - start)


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument(
        "--encoder",
        default="tf_efficientnet_b7.ns_jft_in1k",
        help="name of a timm encoder",
    )
    parser.add_argument(
        "--size", type=positive_int, default=380, help="input size, pixels a side"
    )
    parser.add_argument(
        "--batch",
        type=positive_int,
        default=12,
        help="images a step; the winner's B7 took 12 a GPU",
    )
    parser.add_argument("--steps", type=positive_int, default=10, help="steps a run")
    parser.add_argument(
        "--workers", type=positive_int, default=os.cpu_count(), help="loader workers"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--rounds", type=positive_int, default=3, help="timed runs of each variant"
    )
    options = parser.parse_args(argv)
    arguments = (
        options.encoder,
        options.size,
        options.batch,
        options.device,
        options.steps,
    )
    variants = {
        "plain": partial(plain_steps, *arguments),
        "ours": partial(our_steps, *arguments),
    }
    seconds = side_by_side(variants, options.rounds)
    images = options.steps * options.batch
    rows = [
        row | {"images a second": round(images / row["seconds"], 1)}
        for row in ratio_rows(seconds, "plain")
    ]
    batches = max(20, 2 * options.workers)
    loaded = loader_speed(options.size, options.batch, options.workers, batches)
    print_results(
        "training",
        rows,
        encoder=options.encoder,
        size=options.size,
        batch=options.batch,
        device=options.device,
        loader_images_a_second=round(loaded, 1),
        loader_workers=options.workers,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
