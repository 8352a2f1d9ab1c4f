"""Distributed training: one process per GPU (or CPU) under torchrun, or a single one.

Only `training.train` and `training.trainer` use this module.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from runtime.cli import MachineError
from runtime.device import pick_device
from runtime.process import die_with_parent

# For a process that does not answer although its connection is not broken.
TIMEOUT = timedelta(minutes=10)


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
        # channels_last is faster on CPUs and on GPUs (benchmarks/README.md)
        model = model.to(self.device).to(memory_format=torch.channels_last)
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


@contextmanager
def init_distributed(device: str | None = None) -> Iterator[World]:
    """Join torchrun's process group; without torchrun, give a world of one process.

    Args:
        device: "cpu" or "cuda"; None: the GPU if there is one.

    Raises:
        MachineError: another process of the group ended.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    name = pick_device(device or "auto")
    own = torch.device(name, local_rank) if name == "cuda" else torch.device(name)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    if size == 1:
        yield World(rank, size, own)
        return
    # torchrun leaves its processes running if it is killed
    die_with_parent()
    dist.init_process_group("nccl" if own.type == "cuda" else "gloo", timeout=TIMEOUT)
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
