"""One video through the pipeline: decode, detect, cut (`extract_faces`), then classify (`Ensemble`).

`extract_faces` is a plain function of a path and runs in worker processes; `Ensemble` stays in the process that holds the
networks. What passes between them is what the networks take, so its size is bounded whatever the video's resolution. On a
cluster one machine's networks would not keep up: there each worker has its own, and `answer_alone` does all of it.
"""

import socket
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from inference.origin import origin
from inference.report import TOP_FACES, most_suspicious, thumbnail
from preprocessing.cli import MachineError, UserError
from preprocessing.crops import crop_face, full_box
from preprocessing.faces import half_size, load_detector, pick_device
from preprocessing.video import VideoError, probe, read_frames
from training.augment import plain_transform
from training.checkpoint import load_classifier
from training.config import InputSettings
from training.model import Normalize

GPU_BATCH = 64  # faces given to a network at a time on a GPU, enough to fill it; not measured
# On a CPU each thread takes a batch of its own and does all of it: a convolution's sums differ in the last digit with the
# number of threads it is shared by, and a score must be the same on any machine. Batches of B7 of more than two faces are
# slower then (docs/LOG.md).
CPU_BATCH, CPU_BATCH_PIXELS = 8, 300_000
DETECTED_PIXELS = 4_000_000  # of half-resolution frames that are searched together: 8 of a 1080p video, 2 of a 4K one


@dataclass
class VideoFaces:
    """The K faces of a video in order of frames.

    inputs: for each input size S, (K, S, S, 3) uint8 RGB, centred on black; frames, times (seconds), boxes
    (x1, y1, x2, y2 in whole full-resolution pixels, before the margin): one for each face; trouble: why some are missing.
    For a report: thumbnail, the first frame as a small JPEG in base64, and origin, what the container says, in words.
    """

    inputs: dict[int, np.ndarray] = field(default_factory=dict)
    frames: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    boxes: list[tuple[int, int, int, int]] = field(default_factory=list)
    trouble: str = ""
    thumbnail: str = ""
    origin: dict[str, str] = field(default_factory=dict)


class Answer(NamedTuple):
    """What the networks say of a video. entry: its line in the journal; heat: maps of its most suspicious faces, if asked for."""

    entry: dict
    faces: VideoFaces
    heat: np.ndarray | None


def frame_numbers(count: int, wanted: int) -> list[int]:
    """`wanted` evenly spaced frame numbers of a video of `count` frames, first and last included; fewer if it is short."""
    return sorted(set(np.linspace(0, count - 1, wanted, endpoint=True, dtype=int).tolist()))


def extract_faces(
    path: Path, settings: InputSettings, sizes: Sequence[int], device: str, for_report: bool = False
) -> VideoFaces:
    """Decode a video's frames, find its faces and make the networks' inputs of them.

    Args:
        settings: frames, detector thresholds and margin; its `size` is not used, `sizes` are.
        device: of the detector.
        for_report: whether thumbnail and origin are wanted.

    Raises:
        VideoError: the file cannot be read as a video.
    """
    info = probe(path)
    numbers = frame_numbers(info.frames, settings.frames_per_video)
    detector = load_detector(settings.detector_thresholds, device)
    faces, crops, read = VideoFaces(), [], 0

    def find_faces(batch: dict[int, np.ndarray]) -> None:
        found = detector([half_size(frame) for frame in batch.values()])
        for (number, frame), boxes in zip(batch.items(), (each.boxes for each in found)):
            for box in boxes:
                crop = crop_face(frame, box, settings.margin_parts)
                if crop.size:
                    crops.append([plain_transform(crop, size) for size in sizes])
                    faces.frames.append(number)
                    faces.times.append(number / info.fps if info.fps else 0.0)
                    faces.boxes.append(full_box(box))

    batch: dict[int, np.ndarray] = {}
    try:
        for number, frame in read_frames(path, numbers):
            if for_report and not read:
                faces.thumbnail, faces.origin = thumbnail(frame), origin(path)
            read += 1
            batch[number] = frame
            if len(batch) * frame.shape[0] * frame.shape[1] >= 4 * DETECTED_PIXELS:
                find_faces(batch)
                batch = {}
    except VideoError:
        if not read:  # else what was read before the damage counts, and the trouble says how much that is
            raise
    find_faces(batch)
    faces.inputs = {size: np.stack(images) for size, images in zip(sizes, zip(*crops))}
    if not read:
        raise VideoError(f"{path}: none of {len(numbers)} frames could be decoded")
    troubles = [f"only {read} of {len(numbers)} frames could be decoded"] if read < len(numbers) else []
    troubles += [] if crops else [f"no face found in {read} frames"]
    faces.trouble = "; ".join(troubles)
    return faces


def _names(paths: Sequence[Path]) -> list[str]:
    """What tells the networks apart: the names of their files, or their paths where two have the same name."""
    names = [path.name for path in paths]
    names = names if len(set(names)) == len(names) else [str(path) for path in paths]
    if len(set(names)) < len(names):
        raise UserError(f"{max(names, key=names.count)}: is given twice; name each checkpoint once")
    return names


class Ensemble:
    """Trained networks that look at the same faces, float16 on a GPU as the winner's, float32 on a CPU."""

    def __init__(self, paths: Sequence[Path], device: str):
        self.device = torch.device(pick_device(device))
        self.names = _names(paths)
        self._dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        self.batch = GPU_BATCH
        # Faces to gather before calling: a GPU wants full batches; on a CPU each video goes alone, and so its scores do not
        # depend, in the last digit, on its neighbours.
        self.enough = self.batch if self.device.type == "cuda" else 0
        self._threads = ThreadPoolExecutor(torch.get_num_threads(), initializer=partial(torch.set_num_threads, 1))
        self._in_batches = self._on_gpu if self.device.type == "cuda" else self._on_cpu
        loaded = [load_classifier(path) for path in paths]
        self.settings = [settings for _, settings in loaded]
        self._models = [model.to(self.device, self._dtype, memory_format=torch.channels_last) for model, _ in loaded]
        self._normalize = [Normalize(each.mean, each.std).to(self.device) for each in self.settings]
        self.faces_settings = self._same_faces(paths)
        self.sizes = sorted({each.size for each in self.settings})

    def _same_faces(self, paths: Sequence[Path]) -> InputSettings:
        """How faces are found, which the networks must agree on; size, mean and std may differ."""
        ours = {"size", "mean", "std"}
        first = self.settings[0]
        for path, other in zip(paths, self.settings):
            if other.model_dump(exclude=ours) != first.model_dump(exclude=ours):
                raise UserError(f"{path}: expects other frames, thresholds or margins than {paths[0].name}; predict apart")
        return first

    def __call__(self, videos: Sequence[VideoFaces]) -> list[list[np.ndarray]]:
        """The probability of FAKE of each face: for each video, (K,) float32 for each network.

        Where the GPU's memory is short the batches become smaller, and stay so. Any other error of the GPU ends the run.

        Raises:
            MachineError: there is not enough memory even for one face.
            UserError: a network's answers are not finite.
        """
        counts = np.cumsum([len(faces.frames) for faces in videos])[:-1]
        scores = [self._classify(number, videos) for number in range(len(self.names))]
        return [list(parts) for parts in zip(*(np.split(each, counts) for each in scores))]

    def heat_maps(self, images: np.ndarray) -> np.ndarray:
        """Where the first network looked: Grad-CAM of images (N, S, S, 3) uint8 RGB of its size, as (N, h, w) in 0..1.

        The gradient of its one logit by each feature is, through the average pool, the last layer's weight over the number
        of places, so the weighted sum of the features is all there is to do.
        """
        return self._threads.submit(self._heat_maps, torch.from_numpy(images)).result()

    @torch.inference_mode()
    def _heat_maps(self, images: Tensor) -> np.ndarray:
        model, inputs = self._models[0], self._normalize[0](images.to(self.device)).to(self._dtype)
        heat = torch.relu(torch.einsum("c,nchw->nhw", model.fc.weight[0], model.features(inputs))).float()
        return (heat / heat.amax((1, 2), keepdim=True).clamp(min=1e-12)).cpu().numpy()

    def _classify(self, number: int, videos: Sequence[VideoFaces]) -> np.ndarray:
        """All faces of all videos by one network, batches across videos."""
        size = self.settings[number].size
        images = [faces.inputs[size] for faces in videos if faces.frames]
        if not images:
            return np.zeros(0, np.float32)
        images = torch.from_numpy(np.concatenate(images))
        scores = self._in_batches(number, images)
        scores = torch.cat(scores).cpu().numpy()
        if not np.isfinite(scores).all():
            raise UserError(f"{self.names[number]}: answers with numbers that are not finite; its weights are damaged")
        return scores

    def _on_cpu(self, number: int, images: Tensor) -> list[Tensor]:
        batch = min(CPU_BATCH, max(1, CPU_BATCH_PIXELS // images.shape[1] ** 2))
        return [*self._threads.map(partial(self._scores, number), images.split(batch))]

    def _on_gpu(self, number: int, images: Tensor) -> list[Tensor]:
        """One batch after the other; where the GPU's memory is short in smaller ones from there on."""
        scores, done = [], 0
        while done < len(images):
            try:
                scores.append(self._scores(number, images[done : done + self.batch]))
                done += len(scores[-1])
                continue
            except torch.OutOfMemoryError as error:
                if self.batch == 1:
                    raise MachineError(f"{self.names[number]}: not enough GPU memory for one face ({error}); use a larger "
                                       "GPU, or predict with fewer networks at a time") from error  # fmt: skip
            self.batch //= 2  # past the except block, which still holds what did not fit
            torch.cuda.empty_cache()
            print(f"GPU memory is short: {self.batch} faces at a time from here on", file=sys.stderr)
        return scores

    @torch.inference_mode()
    def _scores(self, number: int, images: Tensor) -> Tensor:
        inputs = self._normalize[number](images.to(self.device)).to(self._dtype)
        return torch.sigmoid(self._models[number](inputs)).float()


def answers(ensemble: Ensemble, found: dict[Path, VideoFaces], grad_cam: int = 0) -> Iterator[Answer]:
    """What the networks say of some videos, whose faces they look at together, with heat maps for the `grad_cam` most
    suspicious faces of each."""
    for (path, faces), scores in zip(found.items(), ensemble(list(found.values()))):
        entry = {
            "filename": path.name,
            "trouble": faces.trouble,
            "frames": faces.frames,
            "times": faces.times,
            "boxes": faces.boxes,
            "probabilities": {name: each.tolist() for name, each in zip(ensemble.names, scores)},
        }
        heat = None
        if grad_cam and faces.frames:
            top = most_suspicious(entry["probabilities"], min(grad_cam, TOP_FACES))
            heat = ensemble.heat_maps(faces.inputs[ensemble.settings[0].size][top])
        yield Answer(entry | ({"thumbnail": faces.thumbnail} if faces.thumbnail else {}), faces, heat)


def answer_alone(path: Path, weights: tuple[Path, ...], device: str, for_report: bool, grad_cam: int) -> Answer:
    """All that is done for a video, in a process that has its own networks. The inputs are left out, but for a report's.

    Raises:
        VideoError: the file cannot be read as a video.
        MachineError: the networks cannot be loaded here.
    """
    ensemble = _load_ensemble(weights, device)
    faces = extract_faces(path, ensemble.faces_settings, ensemble.sizes, device, for_report)
    (answer,) = answers(ensemble, {path: faces}, grad_cam)
    shown = ensemble.settings[0].size
    faces.inputs = {shown: faces.inputs[shown]} if for_report and shown in faces.inputs else {}
    return answer


@cache
def _load_ensemble(weights: tuple[Path, ...], device: str) -> Ensemble:
    """Once in each process. The machine that started the run has loaded them: what fails here is this machine's fault."""
    try:
        return Ensemble(weights, device)
    except UserError as error:
        raise MachineError(f"on the machine {socket.gethostname()}: {error}") from error
