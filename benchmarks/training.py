"""Training steps on images that are in memory already, and the loader's images beside them.

    python -m benchmarks.training --device cuda                                       B7 at 380 px
    python -m benchmarks.training --encoder tf_efficientnet_b0 --size 96 --batch 32   a small one, on a CPU

plain: NCHW, eager, float16 on a GPU; ours: `training.train`'s own step. The loader reads made crops of 300 pixels with all of
the augmentation; it keeps up where its images a second are more than the step's.
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
from preprocessing.crop_table import read_crop_table
from preprocessing.crops import write_image
from preprocessing.layout import crops_dir, folds_path
from runtime.cli import make_parser, positive_int
from runtime.files import write_csv
from runtime.process import tune_malloc
from runtime.results import print_results
from training.config import Config
from training.dataset import BalancedSampler, TrainingCrops
from training.distributed import World
from training.losses import balanced_loss
from training.model import DeepFakeClassifier, Normalize
from training.train import Trainer, _make_loader


def config(encoder, size, batch):
    return Config(
        encoder=encoder, pretrained="none", batch_size=batch, input={"size": size}
    )


def batch_of(size, batch):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(
        0, 256, (batch, size, size, 3), dtype=torch.uint8, generator=generator
    )
    return {"image": images, "label": (torch.arange(batch) % 2).float()}


@cache
def plain_parts(encoder, size, batch, device):
    torch.backends.cudnn.benchmark = True
    settings = config(encoder, size, batch)
    model = (
        DeepFakeClassifier(
            encoder, dropout=settings.dropout, drop_path_rate=settings.drop_path_rate
        )
        .to(device)
        .train()
    )
    parameters = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.SGD(
        parameters, lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4
    )
    scaler = torch.amp.GradScaler(enabled=device != "cpu")
    normalize = Normalize(settings.input.mean, settings.input.std).to(device)
    return model, optimizer, scaler, normalize, batch_of(size, batch)


def plain_steps(encoder, size, batch, device, steps):
    model, optimizer, scaler, normalize, data = plain_parts(
        encoder, size, batch, device
    )
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
def our_parts(encoder, size, batch, device):
    torch.backends.cudnn.benchmark = True
    tune_malloc()
    trainer = Trainer.build(
        config(encoder, size, batch), World(0, 1, torch.device(device)), "none"
    )
    trainer.model.train()
    return trainer, batch_of(size, batch)


def our_steps(encoder, size, batch, device, steps):
    trainer, data = our_parts(encoder, size, batch, device)
    for number in range(steps):
        trainer.step([data], number)
    synchronize(device)


def loader_speed(size, batch, workers, batches):
    """Images a second of the training loader."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        root, rows = Path(name), []
        for video in ("real", "fake"):
            crops_dir(root, video).mkdir(parents=True)
            for number in range(64):
                smooth = np.kron(
                    rng.integers(0, 255, (30, 30, 3)), np.ones((10, 10, 1))
                ).astype(np.uint8)
                write_image(crops_dir(root, video) / f"{number}_0.png", smooth)
                rows.append(
                    [video, f"{number}_0.png", int(video == "fake"), "real", number, 0]
                )
        write_csv(
            folds_path(root),
            ["video", "file", "label", "original", "frame", "fold"],
            rows,
        )
        crops = read_crop_table(root)
        sampler = BalancedSampler(
            crops["label"], (batches + 2 * workers) * batch, 0, 0, 1
        )
        loader = iter(
            _make_loader(
                TrainingCrops(crops, config("tf_efficientnet_b0", size, batch)),
                workers,
                batch,
                sampler,
            )
        )
        for _ in range(2 * workers):  # what the workers prepare while they start
            next(loader)
        start = time.perf_counter()
        for _ in range(batches):
            next(loader)
        return batches * batch / (time.perf_counter() - start)


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument(
        "--encoder", default="tf_efficientnet_b7.ns_jft_in1k", help="of timm"
    )
    parser.add_argument("--size", type=positive_int, default=380, help="pixels a side")
    parser.add_argument(
        "--batch",
        type=positive_int,
        default=12,
        help="images a step; the winner's B7 took 12 a GPU",
    )
    parser.add_argument("--steps", type=positive_int, default=10, help="steps a run")
    parser.add_argument(
        "--workers", type=positive_int, default=os.cpu_count(), help="of the loader"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--rounds", type=positive_int, default=3, help="timed runs of each"
    )
    options = parser.parse_args(argv)
    what = (options.encoder, options.size, options.batch, options.device, options.steps)
    seconds = side_by_side(
        {"plain": partial(plain_steps, *what), "ours": partial(our_steps, *what)},
        options.rounds,
    )
    images = options.steps * options.batch
    rows = [
        row | {"images a second": round(images / row["seconds"], 1)}
        for row in ratio_rows(seconds, "plain")
    ]
    loaded = loader_speed(
        options.size, options.batch, options.workers, max(20, 2 * options.workers)
    )
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
