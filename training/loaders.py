"""Data loaders: processes that read and augment crops ahead of the network.

The loader processes import this module, and no network.
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from runtime.cli import MachineError, UserError, one_line
from runtime.process import block_sigint, die_with_parent
from training.config import InputSettings
from training.dataset import collate
from training.distributed import TIMEOUT, local_world_size

# Loader processes hand over their batches here, where there is such a folder.
SHARED_MEMORY = Path("/dev/shm")
SHARED_MEMORY_HINT = (
    "start a container with --ipc=host or a larger --shm-size (docker run), or use "
    "--workers 0"
)
# Seconds to wait for a batch; less than for another process, which then waits too.
LOADER_TIMEOUT = 0.8 * TIMEOUT.total_seconds()


def iterate_batches(loader: DataLoader) -> Iterator[dict]:
    """A loader's batches. A `UserError` of a loader process is raised here as such."""
    with block_sigint():
        iterator = iter(loader)
    try:
        yield from iterator
    except UserError as error:
        # PyTorch puts the traceback of the loader process before the message
        raise UserError(str(error).rpartition("UserError: ")[2].strip()) from error


def make_loader(
    dataset: Dataset, workers: int, batch_size: int, sampler: Sampler | None = None
) -> DataLoader:
    """A data loader with `workers` processes; with a sampler, for training."""
    return DataLoader(
        dataset,
        batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=_collate_to_share,
        timeout=LOADER_TIMEOUT if workers else 0,
        drop_last=sampler is not None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_init_loader_worker,
        # not the forkserver of other workers: PyTorch learns of the death of its own
        # children at once, of others after the whole timeout
        multiprocessing_context="spawn" if workers else None,
        persistent_workers=workers > 0,
        # its own generator, so that the global one does not depend on `workers`
        generator=torch.Generator(),
    )


def check_shared_memory(loaders: Sequence[DataLoader], settings: InputSettings) -> None:
    """Refuse to begin where the loaders' batches do not fit in shared memory.

    Counted are the images that all training processes of this machine prefetch.

    Args:
        settings: of the network's input.

    Raises:
        MachineError: there is less free space.
    """
    images = 0
    for loader in loaders:
        batches = loader.num_workers * (loader.prefetch_factor or 0)
        images += min(batches, len(loader)) * (loader.batch_size or 0)
    size = 3 * settings.size**2 * max(1, settings.clip_frames)
    needed = images * size * local_world_size()
    free = free_shared_memory()
    if free is not None and needed > free:
        raise MachineError(
            f"{SHARED_MEMORY} has {free / 1e6:,.0f} MB free, but the images that the "
            f"loader processes prefetch take up to {needed / 1e6:,.0f} MB; "
            f"{SHARED_MEMORY_HINT} or fewer than {loaders[0].num_workers}"
        )


def free_shared_memory() -> int | None:
    """Free bytes of `SHARED_MEMORY`; None where there is no such folder."""
    try:
        return shutil.disk_usage(SHARED_MEMORY).free
    except OSError:
        return None


def _collate_to_share(samples: list[dict]) -> dict:
    """`collate`; in a loader process, with the images in shared memory.

    PyTorch would move them there, but in a thread whose error for lack of space only
    is printed, so that the training process waits for the batch.
    """
    batch = collate(samples)
    if get_worker_info() is not None:
        batch["image"].share_memory_()
    return batch


def describe_loader_error(error: RuntimeError) -> str | None:
    """What is wrong with the loader processes; None if the error is another."""
    text = str(error)
    if "DataLoader timed out" in text:
        return (
            f"no batch came from the loader processes for {LOADER_TIMEOUT / 60:.0f} "
            "minutes; look whether the disk of the data answers. If "
            f"{SHARED_MEMORY} is full, {SHARED_MEMORY_HINT}"
        )
    if "DataLoader worker" not in text and "Pin memory thread" not in text:
        return None
    if "shared memory" in text:
        # PyTorch puts the traceback of the loader process before the message
        reason = text.rpartition("RuntimeError: ")[2]
        return f"{SHARED_MEMORY} is full ({one_line(reason)}); {SHARED_MEMORY_HINT}"
    if text.startswith("Caught "):
        return None
    return (
        f"{one_line(text)} A data loader process ended; if it ran out of memory, use "
        "fewer --workers"
    )


def _init_loader_worker(_: int) -> None:
    die_with_parent()
    cv2.setNumThreads(1)
