"""The `--device` option and what it means on this machine."""

import argparse
import os
import re

from runtime.cli import MachineError

CHOICES = "cpu, cuda, cuda:N or auto"
# What else is typed, in lower case, and what to write for it.
_OTHER_NAMES = {
    "cpu:0": "cpu",
    "-1": "cpu",  # in some libraries
    "gpu": "cuda",
    "nvidia": "cuda",
    "hip": "cuda",  # AMD's GPUs have that name in PyTorch
    "rocm": "cuda",
}
_turn: list[int] = []  # of a worker process, its number
# Of other makers; PyTorch has them, the networks here have not been tried on them.
_UNSUPPORTED = ("mps", "metal", "xpu", "tpu", "xla", "hpu", "npu", "mlu")


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Add `--device`, which `pick_device` resolves."""
    parser.add_argument(
        "--device",
        default="auto",
        help="cpu, cuda or cuda:N; auto: the GPUs if there are any. Finding faces and "
        "prediction use all of them",
    )


def pick_device(name: str) -> str:
    """The torch device that a `--device` value stands for on this machine.

    Of auto a worker process gets the GPU at which it has its turn.

    Returns:
        "cpu", "cuda" or "cuda:N".

    Raises:
        MachineError: it is no device, or a GPU that is not there. Not a `UserError`:
            in a worker process that would be taken for the fault of one video.
    """
    import torch

    has_gpu = torch.cuda.is_available()
    if name == "auto":
        if has_gpu and _turn and (count := torch.cuda.device_count()) > 1:
            return f"cuda:{_turn[-1] % count}"
        return "cuda" if has_gpu else "cpu"
    if name == "cpu":
        return name
    written = _spell(name)
    if not written.startswith("cuda"):
        raise MachineError(f"--device {name}: write {written}")
    meant = "" if written == name else f"{written} is meant, but "
    if not has_gpu:
        raise MachineError(
            f"--device {name}: {meant}PyTorch finds no GPU here; use cpu or auto"
            f"{_visible_devices()}"
        )
    count = torch.cuda.device_count()
    number = int(written.partition(":")[2] or 0)
    if number >= count:
        last = f" to cuda:{count - 1}" if count > 1 else ""
        raise MachineError(
            f"--device {name}: {meant}PyTorch finds {count_gpus(count)} here; "
            f"use cuda:0{last}, or auto{_visible_devices()}"
        )
    if written != name:
        raise MachineError(f"--device {name}: write {written}")
    return name


def pick_devices(name: str) -> list[str]:
    """The devices that a `--device` value stands for: of auto all GPUs.

    Raises:
        MachineError: as `pick_device`.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto" and count > 1:
        return [f"cuda:{number}" for number in range(count)]
    return [pick_device(name)]


def take_turns(number: int) -> None:
    """Make this process number `number` of those that take turns at the GPUs."""
    _turn.append(number)


def count_gpus(count: int) -> str:
    """Such as `1 GPU` or `4 GPUs`."""
    return f"{count} GPU{'s' * (count != 1)}"


def _spell(name: str) -> str:
    """How a device is written, right or not: cpu, auto, cuda or cuda:N.

    Raises:
        MachineError: it cannot be told which is meant.
    """
    text = name.strip().lower()
    if text in ("cpu", "cuda", "auto"):
        return text
    if text in _OTHER_NAMES:
        return _OTHER_NAMES[text]
    if numbered := re.fullmatch(r"(?:cuda|gpu)?[: _=-]?([0-9]{1,9})", text):
        return f"cuda:{int(numbered[1])}"
    if text.partition(":")[0] in _UNSUPPORTED:
        raise MachineError(
            f"--device {name}: these devices are not supported; write cpu, or cuda "
            "for a GPU of NVIDIA"
        )
    numbers = re.findall("[0-9]+", text)
    is_list = len(numbers) > 1 and re.fullmatch(r"[cudagp0-9:, +]+", text)
    if is_list or text == "all":
        count = len(numbers) or "NUMBER"
        chosen = f"CUDA_VISIBLE_DEVICES={','.join(numbers)} and " if numbers else ""
        raise MachineError(
            f"--device {name}: write {chosen}auto for all GPUs, or train on them with "
            f"torchrun --nproc_per_node={count}"
        )
    raise MachineError(f"--device {name!r}: no such device; write {CHOICES}")


def _visible_devices() -> str:
    """A hint at the variable that hides GPUs, if it is set."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return ""
    return f" (CUDA_VISIBLE_DEVICES is {visible!r}; other GPUs are hidden)"
