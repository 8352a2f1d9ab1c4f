"""The `--device` option and what it means on this machine."""

import argparse

from runtime.cli import MachineError


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Add `--device`, which `pick_device` resolves."""
    parser.add_argument(
        "--device",
        default="auto",
        help="cpu, cuda or cuda:N; auto: the GPU if there is one",
    )


def pick_device(name: str) -> str:
    """The torch device that a `--device` value stands for on this machine.

    Raises:
        MachineError: a GPU is asked for and there is none.
    """
    import torch

    has_gpu = torch.cuda.is_available()
    if name.startswith("cuda") and not has_gpu:
        raise MachineError(
            f"--device {name}: PyTorch finds no GPU here; use cpu or auto"
        )
    return ("cuda" if has_gpu else "cpu") if name == "auto" else name
