"""Parameters, multiply-adds and seconds an image of the networks of configs.

    python -m benchmarks.recipes [--configs configs/five/*.yaml]

Each beside the plain network of its encoder, without attention head, residual stem and
convolutions over time where it has some. An image is a face, or a clip as a whole. One
thread, float32, untrained; median of --rounds forward passes of one image.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from inference.engine import PackedNetwork, input_shape
from runtime.cli import make_parser, positive_int
from runtime.results import print_results
from training.config import Config, add_set_option, load_config
from training.model import VIDEO_NETWORKS
from training.networks import make_classifier

CONFIGS = Path(__file__).parent.parent / "configs"
PLAIN = {"head": "average", "srm": False}


def count(model: nn.Module, images: torch.Tensor) -> tuple[float, float]:
    """Millions of parameters, and billions of multiply-adds of a forward pass."""
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        model(images)
    parameters = sum(each.numel() for each in model.parameters())
    return parameters / 1e6, counter.get_total_flops() / 2e9


def measure(config: Config, rounds: int) -> list[float]:
    """Millions of parameters, billions of multiply-adds, seconds of one image."""
    model = make_classifier(config.model_copy(update={"pretrained": "none"}))
    model = PackedNetwork(model, config.input).eval()
    images = torch.zeros(input_shape(config.input, 1), dtype=torch.uint8)
    counts = count(model, images)
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        with torch.inference_mode():
            model(images)
        seconds.append(time.perf_counter() - start)
    return [*counts, float(np.median(seconds[1:]))]


def plain_of(config: Config) -> Config | None:
    """The frame network of the same encoder and size; None where there is none."""
    if config.encoder.startswith(VIDEO_NETWORKS):
        return None
    frames = config.input.model_copy(update={"clip_frames": 0})
    return config.model_copy(update={**PLAIN, "input": frames})


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument(
        "--configs",
        nargs="+",
        action="extend",
        type=Path,
        default=sorted((CONFIGS / "five").glob("*.yaml")),
        help="config files",
    )
    add_set_option(parser)
    parser.add_argument(
        "--rounds", type=positive_int, default=3, help="timed forward passes"
    )
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = []
    for path in options.configs:
        config = load_config(path, options.set)
        plain = plain_of(config)
        own = measure(config, options.rounds)
        others = own if plain in (None, config) else measure(plain, options.rounds)
        rows.append(
            {
                "config": path.stem,
                "encoder": config.encoder,
                "input": f"{config.input.size} px"
                + f" x {config.input.clip_frames}" * bool(config.input.clip_frames),
                "million parameters": f"{own[0]:.2f}",
                "billion multiply-adds": f"{own[1]:.2f}",
                "seconds": f"{own[2]:.3f}",
                "plain": "–"
                if others is own
                else f"{others[0]:.2f}, {others[1]:.2f}, {others[2]:.3f}",
            }
        )
    print_results("recipes", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
