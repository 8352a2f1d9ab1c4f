"""The networks of an ensemble, and what they say of the faces of videos.

On one machine `Ensemble` lives in the main process, and worker processes only extract
faces. On a cluster one machine's networks would not keep up: there each worker has its
own, and `predict_video` does all the work for a video.
"""

import socket
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from inference.aggregate import TOP_FACES, top_faces
from inference.engine import (
    ONNX,
    TorchNetwork,
    input_shape,
    load_network,
    resolve,
)
from inference.extraction import (
    ClipInput,
    FramePlan,
    VideoFaces,
    Wanted,
    extract_faces,
)
from inference.members import MAX_FRAMES, Engine, Member, unique_names
from runtime.cli import MachineError, UserError
from runtime.device import pick_device
from training.checkpoint import load_classifier
from training.config import InputSettings
from training.residuals import LIMIT, STEM

GPU_BATCH = 64  # faces a forward pass on a GPU, enough to fill it; not measured
# On a CPU each thread runs whole batches by itself: a convolution's sums differ in the
# last digit with the number of threads that share it, and a score must be the same on
# any machine. Batches of B7 of more than two faces are slower then (docs/LOG.md).
CPU_BATCH, CPU_BATCH_PIXELS = 8, 300_000


CLIP_SETTINGS = ("clip_frames", "clip_spacing", "clips_per_video", "frames_per_video")
DEFAULT_ENGINE = Engine()
FACE_SETTINGS = ("detector_thresholds", "margin_parts")


class Prediction(NamedTuple):
    """What the networks say of one video.

    entry: its line in the journal (`inference.submission.Journal`).
    faces: its faces.
    heatmaps: (N, h, w) in 0..1 of its top faces, if asked for.
    clip_view: what a report shows of its top clips; None where there are none.
    residuals: (N, S, S, 3) uint8 RGB, the noise residuals of the same faces, if the
        first network sees them.
    """

    entry: dict
    faces: VideoFaces
    heatmaps: np.ndarray | None
    clip_view: "ClipView | None" = None
    residuals: np.ndarray | None = None


class ClipView(NamedTuple):
    """One frame of each of a video's clips with the highest scores.

    images: (N, S, S, 3) uint8 RGB.
    heatmaps: (N, h, w) in 0..1, Grad-CAM of the first network, if it sees clips and the
        heatmaps are asked for.
    """

    images: np.ndarray
    heatmaps: np.ndarray | None


class Ensemble:
    """Trained networks that score the same faces.

    float16 on a GPU, as the winner's; float32 on a CPU, unless `engine` says otherwise.

    Attributes:
        names: of the networks, unique.
        settings: the input settings of each network.
        wanted: what they need of a video.
        shown_size: input size of the first network of frames, whose faces a report
            shows; 0 if there is none.
        min_faces: faces to gather before a call. A GPU wants full batches; on a CPU
            each video is scored alone, so that its scores do not depend, in the last
            digit, on its neighbours.
    """

    def __init__(
        self, members: Sequence[Member], device: str, engine: Engine = DEFAULT_ENGINE
    ):
        self.device = torch.device(pick_device(device))
        on_gpu = self.device.type == "cuda"
        engine = resolve(engine, self.device.type)
        self.members = members
        paths = [Path(member.checkpoint) for member in members]
        self.names = unique_names(paths)
        self.batch = GPU_BATCH
        self.min_faces = self.batch if on_gpu else 0
        self._threads = ThreadPoolExecutor(
            torch.get_num_threads(), initializer=partial(torch.set_num_threads, 1)
        )
        self._in_batches = self._on_gpu if on_gpu else self._on_cpu
        loaded = [
            load_network(path, self.device, engine, torch.get_num_threads())
            for path in paths
        ]
        self._networks = [network for network, _ in loaded]
        self._precision = engine.precision
        self.settings = [
            _as_member(settings, member)
            for (_, settings), member in zip(loaded, members)
        ]
        self._plans = [
            FramePlan(settings.frames_per_video, member.every)
            for settings, member in zip(self.settings, members)
        ]
        sizes = [each.size for each in self.settings if not each.clip_frames]
        self.shown_size = next(iter(sizes), 0)
        self.wanted = Wanted(
            self._common_settings(paths),
            sorted({*sizes}),
            [*dict.fromkeys(self._plans)],
            self._common_clips(paths),
        )

    @cached_property
    def _first(self) -> TorchNetwork:
        """The first network in PyTorch, which heatmaps and residuals need."""
        if isinstance(self._networks[0], TorchNetwork):
            return self._networks[0]
        path = Path(self.members[0].checkpoint)
        if path.suffix == ONNX:
            raise MachineError(
                f"--grad-cam: {path.name} is an ONNX file; put a checkpoint first, or "
                "leave --grad-cam out"
            )
        return TorchNetwork(*load_classifier(path), self.device, self._precision)

    def _common_clips(self, paths: Sequence[Path]) -> ClipInput | None:
        """The clips, which all clip networks must agree on."""
        found = [
            (path, each) for path, each in zip(paths, self.settings) if each.clip_frames
        ]
        if not found:
            return None
        first_path, first = found[0]
        for path, other in found:
            if any(getattr(first, key) != getattr(other, key) for key in CLIP_SETTINGS):
                raise UserError(
                    f"{path}: expects other clips than {first_path.name}; predict apart"
                )
        return ClipInput(first, sorted({each.size for _, each in found}))

    def _common_settings(self, paths: Sequence[Path]) -> InputSettings:
        """How faces are found, which all networks must agree on."""
        first = self.settings[0]
        for path, other in zip(paths, self.settings):
            if any(getattr(first, key) != getattr(other, key) for key in FACE_SETTINGS):
                raise UserError(
                    f"{path}: expects other thresholds or margins than "
                    f"{paths[0].name}; predict apart"
                )
        return first

    def __call__(self, videos: Sequence[VideoFaces]) -> list[list[np.ndarray]]:
        """The probability of FAKE of each face; by a clip network of each clip.

        Where the GPU's memory is short the batches become smaller, and stay so. Any
        other error of the GPU ends the run.

        Returns:
            for each video, for each network, (K,) float32; (C,) by a clip network; NaN
            of a face that the network does not see.

        Raises:
            MachineError: there is not enough memory even for one face.
            UserError: a network's outputs are not finite.
        """
        by_network = []
        for number in range(len(self.settings)):
            seen = [self._seen(number, faces) for faces in videos]
            scores = self._classify(number, videos, seen)
            by_video = np.split(scores, np.cumsum([each.sum() for each in seen])[:-1])
            by_network.append(
                [_spread(each, place) for each, place in zip(by_video, seen)]
            )
        return [list(by_model) for by_model in zip(*by_network)]

    def _seen(self, number: int, faces: VideoFaces) -> np.ndarray:
        """Which faces or clips of a video a network sees, (K,) or (C,) bool."""
        sees_clips = self.settings[number].clip_frames
        frames = faces.clip_frames if sees_clips else faces.frames
        boxes = faces.clip_boxes if sees_clips else faces.boxes
        seen = np.ones(len(frames), bool)
        if faces.total and not sees_clips:
            seen &= np.isin(frames, self._plans[number].numbers(faces.total))
        if self.members[number].faces == "largest":
            seen &= _largest(frames, boxes)
        return seen

    def grad_cam(self, images: np.ndarray) -> np.ndarray:
        """Grad-CAM of the first network: which parts of a face raised its score.

        The gradient of its one logit by each feature is, through the average pool, the
        last layer's weight over the number of places, so the weighted sum of the
        features is all there is to compute.

        Args:
            images: (N, S, S, 3) uint8 RGB of the network's input size.

        Returns:
            (N, h, w) float32 in 0..1.

        Raises:
            UserError: the network has no such feature maps, as vision transformers.
        """
        maps, _ = self._threads.submit(
            self._grad_cam, torch.from_numpy(images)
        ).result()
        return maps

    @torch.inference_mode()
    def residuals(self, images: np.ndarray) -> np.ndarray | None:
        """The noise residuals that the first network sees; None if it sees none.

        Args:
            images: (N, S, S, 3) uint8 RGB of the network's input size.

        Returns:
            (N, S, S, 3) uint8 RGB, a channel a filter, grey where there is no residual.
        """
        stem = getattr(self._first.model, STEM, None)
        if stem is None:
            return None
        values = stem.residuals(self._first.inputs(torch.from_numpy(images))).float()
        shown = (127.5 + 127.5 / LIMIT * values).round().to(torch.uint8)
        return shown.permute(0, 2, 3, 1).cpu().numpy()

    def check_heatmaps(self) -> None:
        """Try the first network's heatmap on a black image.

        Raises:
            UserError: as `grad_cam`.
            MachineError: it is an ONNX file.
        """
        images = torch.zeros(input_shape(self.settings[0], 1), dtype=torch.uint8)
        self._threads.submit(self._grad_cam, images.flatten(0, -4)).result()

    def clip_view(self, clips: np.ndarray) -> ClipView:
        """The frame of each clip that the first network finds most suspicious.

        Args:
            clips: (N, T, S, S, 3) uint8 RGB.
        """
        images, heatmaps = [], []
        for clip in clips:  # one at a time: memory
            maps, logits = self._threads.submit(
                self._grad_cam, torch.from_numpy(clip)
            ).result()
            images.append(clip[logits.argmax()])
            heatmaps.append(maps[logits.argmax()])
        return ClipView(np.stack(images), np.stack(heatmaps))

    @torch.inference_mode()
    def _grad_cam(self, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Heatmaps (N, h, w) and logits (N,) of images, of clips of all frames."""
        model = self._first.model
        features = model.features(self._first.inputs(images))
        pooled = model.pool(features)
        is_average = features.ndim == 4 and pooled.shape == features.shape[:2]
        if not is_average or not torch.allclose(
            features.mean((2, 3)), pooled, rtol=1e-2, atol=1e-3
        ):
            raise UserError(
                f"--grad-cam: {self.names[0]} does not classify the mean of feature "
                "maps; put another network first, or leave --grad-cam out"
            )
        maps = torch.einsum("c,nchw->nhw", model.fc.weight[0], features)
        maps = torch.relu(maps).float()
        largest = maps.amax((1, 2), keepdim=True).clamp(min=1e-12)
        logits = model.fc(pooled).squeeze(1).float()
        return (maps / largest).cpu().numpy(), logits.cpu().numpy()

    def _classify(
        self, number: int, videos: Sequence[VideoFaces], seen: Sequence[np.ndarray]
    ) -> np.ndarray:
        """The faces or clips that a network sees of all videos, batches across videos."""
        size = self.settings[number].size
        inputs = []
        for faces, places in zip(videos, seen):
            if places.any():
                kind, frames = faces.inputs, faces.frames
                if self.settings[number].clip_frames:
                    kind, frames = faces.clips, faces.clip_frames
                images = kind[size] if places.all() else kind[size][places]
                if self.members[number].mirrored == "alternate":
                    images = _mirror_every_second(images, np.array(frames)[places])
                inputs.append(images)
        if not inputs:
            return np.zeros(0, np.float32)
        images = torch.from_numpy(np.concatenate(inputs))
        scores = torch.cat(self._in_batches(number, images)).cpu().numpy()
        if not np.isfinite(scores).all():
            raise UserError(
                f"{self.names[number]}: answers with numbers that are not finite; "
                "its weights are damaged"
            )
        return scores

    def _on_cpu(self, number: int, images: Tensor) -> list[Tensor]:
        pixels = images[0].numel() // 3
        batch = min(CPU_BATCH, max(1, CPU_BATCH_PIXELS // pixels))
        scores = partial(self._scores, number)
        return [*self._threads.map(scores, images.split(batch))]

    def _on_gpu(self, number: int, images: Tensor) -> list[Tensor]:
        """One batch after the other, smaller ones once the GPU's memory is short."""
        scores: list[Tensor] = []
        done, frames = 0, max(1, self.settings[number].clip_frames)
        while done < len(images):
            count = max(1, self.batch // frames)
            try:
                scores.append(self._scores(number, images[done : done + count]))
                done += len(scores[-1])
                continue
            except torch.OutOfMemoryError as error:
                if count == 1:
                    raise MachineError(
                        f"{self.names[number]}: not enough GPU memory for one face "
                        f"({error}); use a larger GPU, or predict with fewer networks "
                        "at a time"
                    ) from error
            # past the except block, which still holds what did not fit
            self.batch //= 2
            torch.cuda.empty_cache()
            print(
                f"GPU memory is short: {self.batch} faces at a time from here on",
                file=sys.stderr,
            )
        return scores

    @torch.inference_mode()
    def _scores(self, number: int, images: Tensor) -> Tensor:
        network = self._networks[number]
        scores = torch.sigmoid(network(images)).float()
        if self.settings[number].mirrored:
            mirrored = torch.sigmoid(network(images.flip(-2))).float()
            scores = (scores + mirrored) / 2
        return scores


def predict_batch(
    ensemble: Ensemble, found: dict[Path, VideoFaces], grad_cam: int = 0
) -> Iterator[Prediction]:
    """Score the faces of some videos together.

    Args:
        found: the faces of each video.
        grad_cam: for how many of each video's top faces a heatmap is wanted.
    """
    for (path, faces), scores in zip(found.items(), ensemble(list(found.values()))):
        by_model: dict[str, list[float]] = {}
        by_clip_model: dict[str, list[float]] = {}
        for name, settings, each in zip(ensemble.names, ensemble.settings, scores):
            kind = by_clip_model if settings.clip_frames else by_model
            kind[name] = each.tolist()
        entry: dict = {
            "filename": path.name,
            "reason": faces.reason,
            "frames": faces.frames,
            "times": faces.times,
            "boxes": faces.boxes,
            "probabilities": by_model,
        }
        if ensemble.wanted.clips:
            entry["clips"] = {
                "frames": faces.clip_frames,
                "times": faces.clip_times,
                "boxes": faces.clip_boxes,
                "seconds": faces.clip_seconds,
                "probabilities": by_clip_model,
            }
        heatmaps, residuals, view = None, None, None
        sees_clips = bool(ensemble.settings[0].clip_frames)
        if grad_cam and faces.frames and not sees_clips:
            top = top_faces(by_model, min(grad_cam, TOP_FACES))
            images = faces.inputs[ensemble.settings[0].size][top]
            heatmaps = ensemble.grad_cam(images)
            residuals = ensemble.residuals(images)
        if faces.clip_frames:
            view = _clip_view(ensemble, faces, by_clip_model, grad_cam * sees_clips)
        yield Prediction(entry, faces, heatmaps, view, residuals)


def _clip_view(
    ensemble: Ensemble, faces: VideoFaces, by_model: dict[str, list[float]], count: int
) -> ClipView:
    """The middle frames of the top clips; with `count`, the most suspicious frames and
    heatmaps of so many.
    """
    if count:
        clips = faces.clips[ensemble.settings[0].size]
        return ensemble.clip_view(clips[top_faces(by_model, min(count, TOP_FACES))])
    clips = next(iter(faces.clips.values()))
    return ClipView(clips[top_faces(by_model), clips.shape[1] // 2], None)


def predict_video(
    path: Path,
    members: tuple[Member, ...],
    device: str,
    engine: Engine,
    details: bool,
    grad_cam: int,
) -> Prediction:
    """Extract and score one video in a process that has its own networks.

    The result's `faces.inputs` hold only what a report shows, and only with `details`.

    Raises:
        VideoError: the file cannot be read as a video.
        MachineError: the networks cannot be loaded here.
    """
    ensemble = _load_ensemble(members, device, engine)
    faces = extract_faces(path, ensemble.wanted, device, details)
    (prediction,) = predict_batch(ensemble, {path: faces}, grad_cam)
    shown = ensemble.shown_size
    keep = details and shown in faces.inputs
    faces.inputs = {shown: faces.inputs[shown]} if keep else {}
    faces.clips = {}
    return prediction


@cache
def _load_ensemble(
    members: tuple[Member, ...], device: str, engine: Engine
) -> Ensemble:
    """One ensemble a process. The machine that started the run has loaded the same
    files, so what fails here is this machine's fault.
    """
    try:
        return Ensemble(members, device, engine)
    except UserError as error:
        raise MachineError(f"on the machine {socket.gethostname()}: {error}") from error


def _as_member(settings: InputSettings, member: Member) -> InputSettings:
    """A network's input settings with those that the ensemble replaces.

    Raises:
        UserError: they are of single frames, and the network sees clips.
    """
    new: dict = {}
    if member.frames or member.every:
        if settings.clip_frames:
            raise UserError(
                f"{member.checkpoint}: sees clips; leave `frames` and `every` out"
            )
        new["frames_per_video"] = member.frames or MAX_FRAMES
    if member.mirrored:
        new["mirrored"] = member.mirrored == "mean"
    return settings.model_copy(update=new)


def _spread(scores: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The scores at their places, NaN at all others."""
    spread = np.full(len(places), np.nan, np.float32)
    spread[places] = scores
    return spread


def _largest(frames: Sequence[int], boxes: Sequence[Sequence[int]]) -> np.ndarray:
    """Which face of each frame is the largest, (K,) bool; of equal ones the first."""
    best: dict[int, tuple[int, int]] = {}
    for place, (frame, (x1, y1, x2, y2)) in enumerate(zip(frames, boxes)):
        area = (x2 - x1) * (y2 - y1)
        if frame not in best or area > best[frame][0]:
            best[frame] = area, place
    return np.isin(range(len(frames)), [place for _, place in best.values()])


def _mirror_every_second(images: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """(K, …, S, S, 3) with those of the second, fourth, … of their frames (K,) mirrored,
    so that of several people in a frame each is mirrored half of the time.
    """
    images = images.copy()
    is_second = np.unique(frames, return_inverse=True)[1] % 2 == 1
    images[is_second] = images[is_second][..., ::-1, :]
    return images
