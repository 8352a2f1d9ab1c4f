"""Where training runs: one process, or one for each GPU (or CPU share) of each node under torchrun. Only `training.train` asks here."""

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

LONGEST_WAIT = timedelta(
    minutes=10
)  # for a process that does not answer and whose connection does not break either


@dataclass(frozen=True)
class World:
    """This process's place: `rank` of `size` processes, and its device."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def wrap(self, model: nn.Module, sync_batchnorm: bool) -> nn.Module:
        """Put a model on this device and, with several processes, average its gradients over them.

        Batch norm's statistics are shared between processes on GPUs only: PyTorch's SyncBatchNorm has no CPU version.
        """
        model = model.to(
            self.device, memory_format=torch.channels_last
        )  # faster on either kind (benchmarks/README.md)
        if self.size == 1:
            return model
        on_gpu = self.device.type == "cuda"
        if sync_batchnorm and on_gpu:
            # not PyTorch's own: timm's batch norms hold the activation too, which that would leave out
            model = convert_sync_batchnorm(model)
        # the gradients of depthwise convolutions have ambiguous strides; averaging copies them, no more
        warnings.filterwarnings("ignore", "Grad strides do not match")
        return DistributedDataParallel(
            model, device_ids=[self.device.index] if on_gpu else None
        )

    def gather(self, items: list) -> list:
        """The items of all processes, in order of rank, on every process."""
        if self.size == 1:
            return items
        everyone: list = [None] * self.size
        dist.all_gather_object(everyone, items)
        return [item for part in everyone for item in part]

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


@contextmanager
def init_distributed(device: str | None = None) -> Iterator[World]:
    """Join the processes that torchrun started, or be alone. `device`: cpu or cuda; the GPU where there is one if None.

    Raises:
        MachineError: another of the processes ended.
    """
    size, rank, local_rank = (
        int(os.environ.get(name, default))
        for name, default in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0))
    )
    kind = pick_device(device or "auto")
    place = torch.device(kind, local_rank) if kind == "cuda" else torch.device(kind)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if size == 1:
        yield World(rank, size, place)
        return
    die_with_parent()  # torchrun, if it is killed, leaves its processes running
    dist.init_process_group(
        "nccl" if place.type == "cuda" else "gloo", timeout=LONGEST_WAIT
    )
    try:
        yield World(rank, size, place)
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "peer" not in str(error).lower():
            raise
        raise MachineError(
            f"process {rank}: another training process ended, or its node was lost; it says why above, or "
            "torchrun below. Run the same command again to go on after the last epoch; on fewer nodes or GPUs "
            "a step keeps its images"
        ) from error
    finally:
        dist.destroy_process_group()
