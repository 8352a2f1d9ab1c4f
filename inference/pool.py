"""The networks of an ensemble on all GPUs of a machine, fed from one queue."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from queue import SimpleQueue

import torch

from inference.ensemble import Ensemble, Prediction, predict_batch
from inference.extraction import VideoFaces
from inference.members import Member
from runtime.cli import MachineError

Group = dict[Path, VideoFaces]


class EnsemblePool:
    """One `Ensemble` on each device; whichever is idle takes the next videos.

    A video's scores do not depend on which of equal devices takes it.

    Attributes:
        first: the ensemble of the first device.
    """

    def __init__(self, members: Sequence[Member], devices: Sequence[str]):
        self._ensembles = [Ensemble(members, device) for device in devices]
        self.first = self._ensembles[0]

    def predict(
        self, groups: Iterable[Group], grad_cam: int = 0
    ) -> Iterator[tuple[list[Path], list[Prediction]]]:
        """Score videos, a group of them at a time.

        Args:
            groups: videos that are scored together, with their faces.
            grad_cam: for how many of each video's top faces a heatmap is wanted.

        Yields:
            the videos of a group and what was found, in the order in which the devices
            finish. One group more than there are devices is under way.

        Raises:
            MachineError: a device failed; it says which.
        """
        if len(self._ensembles) == 1:
            for group in groups:
                yield [*group], [*predict_batch(self.first, group, grad_cam)]
            return
        idle: SimpleQueue[Ensemble] = SimpleQueue()
        for ensemble in self._ensembles:
            idle.put(ensemble)

        def score(group: Group) -> tuple[list[Path], list[Prediction]]:
            ensemble = idle.get()
            try:
                return [*group], [*predict_batch(ensemble, group, grad_cam)]
            except torch.AcceleratorError as error:
                raise MachineError(f"{ensemble.device}: {error}") from error
            finally:
                idle.put(ensemble)

        pending: set[Future] = set()
        with ThreadPoolExecutor(len(self._ensembles)) as threads:
            for group in groups:
                pending.add(threads.submit(score, group))
                enough = len(pending) > len(self._ensembles)
                done, pending = wait(pending, None if enough else 0, FIRST_COMPLETED)
                yield from (each.result() for each in done)
            while pending:
                done, pending = wait(pending, None, FIRST_COMPLETED)
                yield from (each.result() for each in done)
