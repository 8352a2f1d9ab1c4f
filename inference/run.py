"""A prediction run: workers find faces, networks score them, the journal keeps all."""

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from inference.aggregate import Aggregation
from inference.ensemble import Ensemble, Prediction, predict_video
from inference.extraction import VideoFaces, extract_faces
from inference.members import Member, engine_of, members_identity, read_members
from inference.pool import EnsemblePool
from inference.report import Report, thumbnail
from inference.submission import Journal, write_faces, write_submission
from inference.videos import TestVideos
from preprocessing.faces import DETECTOR_IMPORTS
from preprocessing.video import describe_unused
from runtime.cli import UserError
from runtime.device import pick_devices
from runtime.executor import ExecutorOptions, error_reason, executor_options, map_items
from runtime.files import file_size
from runtime.workers import GIB


def predict(wanted: TestVideos, options: argparse.Namespace) -> dict[str, dict]:
    """Predict every video and write the tables.

    Args:
        options: of `inference.predict`.

    Returns:
        the journal's entries by file name.
    """
    names = {path: name for name, path in wanted.paths.items()}
    for reason, paths in wanted.unused.items():
        print(f"{options.test_dir}: {describe_unused(reason, paths)}", file=sys.stderr)
    members, aggregation = read_members(options)
    executor = executor_options(options)
    devices = ["cpu"] if executor.is_cluster else pick_devices(options.device)
    pool = EnsemblePool(members, devices, engine_of(options))
    ensemble = pool.first
    if options.grad_cam:
        ensemble.check_heatmaps()
    report = Report(options.report, aggregation) if options.report else None
    journal = Journal(options.output, _identity(options, members, aggregation))
    todo = [path for name, path in wanted.paths.items() if name not in journal.entries]
    # large files first keep all workers busy to the end
    todo.sort(key=file_size, reverse=True)
    if len(todo) < len(names):
        done = len(names) - len(todo)
        print(f"going on: {done} of {len(names)} videos are done")
    task, executor = _make_task(options, members, ensemble, executor)

    def keep(path: Path, prediction: Prediction) -> None:
        entry, faces, heatmaps, clips, residuals = prediction
        entry["filename"] = names.get(path, str(path))
        if report:
            if faces.preview is not None:
                entry["thumbnail"] = thumbnail(faces.preview)
            images = faces.inputs.get(ensemble.shown_size)
            report.write_video(
                entry, images, faces.provenance, heatmaps, clips, residuals
            )
        journal.add(entry)

    def found() -> Iterator[tuple[Path, VideoFaces]]:
        """The faces of each video, as the workers find them."""
        for path, result, error in map_items(
            task,
            todo,
            executor,
            "predict",
            "video",
            options.test_dir,
            DETECTOR_IMPORTS,
        ):
            if isinstance(error, UserError):  # the video's own fault
                result = VideoFaces(reason=error_reason(error, path))
            elif error is not None:
                # a defect or the machine must not become a score of 0.5
                raise error
            if isinstance(result, Prediction):
                keep(path, result)
                continue
            assert isinstance(result, VideoFaces)
            yield path, result
        for name, reason in wanted.missing.items():
            names[Path("listed", name)] = name
            yield Path("listed", name), VideoFaces(reason=reason)

    for path, prediction in pool.predict(found(), options.grad_cam):
        keep(path, prediction)
    entries = {name: journal.entries[name] for name in wanted.order}
    write_submission(options.output, entries, aggregation, wanted.unused)
    if options.faces_csv:
        write_faces(options.faces_csv, entries)
    if report:
        notes = [describe_unused(*each) for each in wanted.unused.items()]
        report.write_index(entries.values(), notes)
    journal.finish()
    return entries


def _identity(
    options: argparse.Namespace, members: list[Member], aggregation: Aggregation
) -> dict:
    """What a run must have in common with an earlier one to continue it."""
    identity: dict[str, object] = {
        "test_dir": str(options.test_dir.resolve()),
        "members": members_identity(members),
        "engine": [*engine_of(options)],
    }
    if options.report:  # pages are written video by video, so all must be of one kind
        folder = str(options.report.resolve())
        identity["report"] = [folder, *aggregation, options.grad_cam]
    return identity


def _make_task(
    options: argparse.Namespace,
    members: list[Member],
    ensemble: Ensemble,
    executor: ExecutorOptions,
) -> tuple[Callable[[Path], VideoFaces | Prediction], ExecutorOptions]:
    """What is done for a video in a worker, and the worker's limits.

    On a cluster each worker has its own networks; the ensemble here only shows that
    they load.
    """
    details = bool(options.report)
    if not executor.is_cluster:
        task = partial(
            extract_faces,
            wanted=ensemble.wanted,
            device=options.device,
            details=details,
        )
        return task, executor
    weights_gib = sum(file_size(Path(each.checkpoint)) for each in members) / GIB
    limits = executor.limits._replace(memory=executor.limits.memory + weights_gib)
    task_with_networks = partial(
        predict_video,
        members=tuple(members),
        device=options.device,
        engine=engine_of(options),
        details=details,
        grad_cam=options.grad_cam,
    )
    return task_with_networks, executor._replace(limits=limits)
