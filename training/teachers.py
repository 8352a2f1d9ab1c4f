"""Knowledge distillation: a small network learns from the answers of an ensemble.

Method: Hinton et al., "Distilling the Knowledge in a Neural Network" (2015), with the mean
       of the teachers' logits on the very images that the student sees.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from runtime.cli import UserError
from training.checkpoint import load_classifier
from training.config import InputSettings
from training.model import Normalize, to_channels_last

CLIP_SETTINGS = ("clip_frames", "clip_spacing")


class Teachers(nn.Module):
    """Trained networks that see the student's images, resized to their own input.

    A teacher of single frames sees each frame of a student's clips; a teacher of clips
    needs a student with the same ones (with `temporal: none` that is a network of
    frames).

    Raises:
        UserError: a checkpoint cannot be read, or sees other clips than the student.
    """

    def __init__(self, paths: Sequence[str], student: InputSettings):
        super().__init__()
        self._frames = max(1, student.clip_frames)
        loaded = [load_classifier(Path(path)) for path in paths]
        for path, (_, own) in zip(paths, loaded):
            if own.clip_frames and any(
                getattr(own, key) != getattr(student, key) for key in CLIP_SETTINGS
            ):
                raise UserError(
                    f"teachers: {path} sees clips of {own.clip_frames} frames "
                    f"{own.clip_spacing:.3g} s apart; give the student the same "
                    "(input.clip_frames, input.clip_spacing)"
                )
        self._sees_clips = [bool(own.clip_frames) for _, own in loaded]
        self._sizes = [own.size for _, own in loaded]
        self._networks = nn.ModuleList(to_channels_last(model) for model, _ in loaded)
        self._normalize = nn.ModuleList(
            Normalize(own.mean, own.std) for _, own in loaded
        )
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> "Teachers":
        """Teachers stay in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """The mean logit (N,) float32 of images (N, S, S, 3) or clips (N, T, S, S, 3),
        uint8 RGB.
        """
        logits = []
        for network, normalize, size, sees_clips in zip(
            self._networks, self._normalize, self._sizes, self._sees_clips
        ):
            inputs = normalize(images)
            if inputs.shape[2] != size:
                inputs = functional.interpolate(
                    inputs, (size, size), mode="bilinear", antialias=True
                )
            own = network(inputs).float()
            if not sees_clips and self._frames > 1:
                own = own.view(-1, self._frames).mean(1)
            logits.append(own)
        return torch.stack(logits).mean(0)
