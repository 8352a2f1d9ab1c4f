"""The networks of an ensemble on all GPUs of a machine, fed from one queue."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from queue import SimpleQueue

import torch

from inference.ensemble import DEFAULT_ENGINE, Ensemble, Prediction, predict_batch
from inference.extraction import VideoFaces
from inference.members import Engine, Member
from runtime.cli import MachineError

Group = dict[Path, VideoFaces]


class EnsemblePool:
    """One `Ensemble` on each device; whichever is idle takes the next videos.

    A video's scores do not depend on which of equal devices takes it.

    Attributes:
        first: the ensemble of the first device.
    """

    def __init__(
        self,
        members: Sequence[Member],
        devices: Sequence[str],
        engine: Engine = DEFAULT_ENGINE,
    ):
        self._ensembles = [Ensemble(members, device, engine) for device in devices]
        self.first = self._ensembles[0]

    def predict(
        self, videos: Iterable[tuple[Path, VideoFaces]], grad_cam: int = 0
    ) -> Iterator[tuple[Path, Prediction]]:
        """Score videos as they come.

        Args:
            videos: each with its faces.
            grad_cam: for how many of each video's top faces a heatmap is wanted.

        Yields:
            the videos in the order in which the devices finish. What is finished is
            given before an error of `videos` is raised.

        Raises:
            MachineError: a device failed; it says which.
        """
        idle: SimpleQueue[Ensemble] = SimpleQueue()
        for ensemble in self._ensembles:
            idle.put(ensemble)

        def score(group: Group) -> list[tuple[Path, Prediction]]:
            ensemble = idle.get()
            try:
                return [*zip(group, predict_batch(ensemble, group, grad_cam))]
            except torch.AcceleratorError as error:
                raise MachineError(f"{ensemble.device}: {error}") from error
            finally:
                idle.put(ensemble)

        groups = self._groups(videos)
        if len(self._ensembles) == 1:
            for group in groups:
                yield from score(group)
            return
        with ThreadPoolExecutor(len(self._ensembles)) as threads:
            yield from _in_threads(threads, len(self._ensembles), score, groups)

    def _groups(self, videos: Iterable[tuple[Path, VideoFaces]]) -> Iterator[Group]:
        """Videos that are scored together: as many as fill a device."""
        group: Group = {}
        for path, faces in videos:
            group[path] = faces
            if sum(len(each.frames) for each in group.values()) >= self.first.min_faces:
                yield group
                group = {}
        if group:
            yield group


def _in_threads(
    threads: ThreadPoolExecutor,
    count: int,
    score: Callable[[Group], list[tuple[Path, Prediction]]],
    groups: Iterator[Group],
) -> Iterator[tuple[Path, Prediction]]:
    """Score groups in `count` threads; one group more is made in advance."""
    pending: set[Future] = set()
    failure: BaseException | None = None
    while True:
        try:
            pending.add(threads.submit(score, next(groups)))
        except StopIteration:
            break
        except BaseException as error:  # noqa: BLE001 - raised below
            failure = error
            break
        timeout = None if len(pending) > count else 0
        done, pending = wait(pending, timeout, FIRST_COMPLETED)
        for each in done:
            yield from each.result()
    while pending:
        done, pending = wait(pending, None, FIRST_COMPLETED)
        for each in done:
            yield from each.result()
    if failure is not None:
        raise failure
