"""Distributed training: one process per GPU (or CPU) under torchrun, or a single one."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from runtime.cli import MachineError, UserError
from runtime.device import count_gpus, pick_device
from runtime.process import die_with_parent

# For a process that does not answer although its connection is not broken.
TIMEOUT = timedelta(minutes=10)
# What torchrun sets for each process.
RANKS = ("WORLD_SIZE", "RANK", "LOCAL_RANK")
ADDRESS = ("MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class World:
    """This process's rank, the world size, and this process's device."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def wrap(self, model: nn.Module, sync_batchnorm: bool) -> nn.Module:
        """Move a model to the device; with several processes, average its gradients.

        The model is modified in place. Batch norm is synchronised on GPUs only:
        PyTorch's SyncBatchNorm has no CPU version.
        """
        # not at the top: loader processes import this module and need no network
        from timm.layers import convert_sync_batchnorm

        from training.model import to_channels_last

        model = to_channels_last(model.to(self.device))
        if self.size == 1:
            return model
        on_gpu = self.device.type == "cuda"
        if sync_batchnorm and on_gpu:
            # Not PyTorch's own function: timm's batch norm layers include the
            # activation, which it would drop.
            model = convert_sync_batchnorm(model)
        # The gradients of depthwise convolutions have ambiguous strides; this costs a
        # copy when they are averaged, nothing else.
        warnings.filterwarnings("ignore", "Grad strides do not match")
        return DistributedDataParallel(
            model, device_ids=[self.device.index] if on_gpu else None
        )

    def gather(self, items: list) -> list:
        """The items of all processes, in order of rank, on every process."""
        if self.size == 1:
            return items
        gathered: list = [None] * self.size
        dist.all_gather_object(gathered, items)
        return [item for part in gathered for item in part]

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


def local_world_size() -> int:
    """The number of training processes on this machine.

    Raises:
        UserError: the environment variable is not a number.
    """
    return _number_from_environment("LOCAL_WORLD_SIZE", default=1, minimum=1)


@contextmanager
def init_distributed(device: str = "auto") -> Iterator[World]:
    """Join torchrun's process group; without torchrun, give a world of one process.

    Args:
        device: a `--device` value.

    Raises:
        UserError: only some of torchrun's environment variables are there.
        MachineError: there is no such device, there are fewer GPUs than processes, or
            another process of the group did not come or ended.
    """
    rank, size, local_rank = _read_ranks()
    own = _own_device(pick_device(device), size, local_rank)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    if size == 1:
        yield World(rank, size, own)
        return
    # torchrun leaves its processes running if it is killed
    die_with_parent()
    try:
        backend = "nccl" if own.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT)
    except (dist.DistError, ValueError) as error:
        reason = " ".join(str(error).split())
        address = ":".join(os.environ[name] for name in ADDRESS)
        raise MachineError(
            f"process {rank} of {size} does not reach the others at {address}; start "
            "all of them by torchrun, with a name and a port that each node can reach "
            f"({reason})"
        ) from error
    try:
        yield World(rank, size, own)
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "peer" not in str(error).lower():
            raise
        raise MachineError(
            f"process {rank}: another training process ended, or its node was lost; "
            "the reason is printed above, or by torchrun below. Run the same command "
            "again to resume after the last epoch; with fewer nodes or GPUs the images "
            "per step stay the same"
        ) from error
    finally:
        dist.destroy_process_group()


def _read_ranks() -> tuple[int, int, int]:
    """Rank, world size and local rank from torchrun's environment variables.

    Raises:
        UserError: they are left over from another program, or incomplete.
    """
    size = _number_from_environment("WORLD_SIZE", default=1, minimum=1)
    rank = _number_from_environment("RANK", default=0, minimum=0)
    local_rank = _number_from_environment("LOCAL_RANK", default=0, minimum=0)
    found = [name for name in RANKS if name in os.environ]
    if rank >= size or local_rank > rank:
        values = ", ".join(f"{name}={os.environ[name]}" for name in found)
        raise UserError(f"{values} in the environment cannot be; {_unset(found)}")
    needed = ("WORLD_SIZE", "RANK", *ADDRESS)
    missing = [name for name in needed if not os.environ.get(name)]
    if size > 1 and missing:
        raise UserError(
            f"WORLD_SIZE is {size} in the environment, but {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not there; {_unset(found)}"
        )
    return rank, size, local_rank


def _own_device(name: str, size: int, local_rank: int) -> torch.device:
    """This process's device. With several processes, each has the GPU of its number."""
    if name == "cpu" or size == 1:
        return torch.device("cuda", 0) if name == "cuda" else torch.device(name)
    if name != "cuda":
        raise UserError(
            f"--device {name}: of {size} processes each takes a GPU of its own; write "
            "--device cuda, and choose the GPUs with CUDA_VISIBLE_DEVICES"
        )
    count = torch.cuda.device_count()
    if local_rank >= count:
        processes = max(local_world_size(), local_rank + 1)
        raise MachineError(
            f"{processes} processes on this machine, but PyTorch finds "
            f"{count_gpus(count)}; start as many processes as GPUs (./train.sh DATA "
            f"{count}, or torchrun --nproc_per_node={count}), or use --device cpu"
        )
    return torch.device("cuda", local_rank)


MAX_NUMBER = 10**6  # of processes; larger ones overflow PyTorch's integers


def _number_from_environment(name: str, default: int, minimum: int) -> int:
    text = os.environ.get(name, str(default))
    # isdecimal is true of other scripts' digits too, which int() reads as well
    if not text.isdecimal() or not minimum <= int(text) <= MAX_NUMBER:
        raise UserError(
            f"{name} is {text!r} in the environment, not a number of at least "
            f"{minimum}; {_unset([name])}"
        )
    return int(text)


def _unset(names: list[str]) -> str:
    return f"unset {' '.join(names)}, or start by torchrun"
