"""3-D convolutional networks of torchvision, which see a clip as a whole.

The fifth-placed team's kind: R(2+1)D, MC3 and R3D with 18 layers, at 112 pixels, trained
from the weights of Kinetics-400.
"""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from runtime.cli import UserError
from training.model import (
    VIDEO_NETWORKS,
    DeepFakeClassifier,
    download_failed,
    load_encoder_weights,
)

NAMES = ("r2plus1d_18", "mc3_18", "r3d_18")


class VideoClassifier(DeepFakeClassifier):
    """Classifies clips; the output is the logit of the probability of FAKE.

    Args:
        encoder: `torchvision/NAME` with a name of `NAMES`.
        pretrained: "none", "hub" (Kinetics-400, downloaded), or a local file of them.
        dropout: rate before the last layer.
        clip_frames: T.
    """

    def __init__(
        self,
        encoder: str,
        pretrained: str = "none",
        dropout: float = 0.0,
        clip_frames: int = 0,
    ):
        nn.Module.__init__(self)
        if not clip_frames:
            raise UserError(f"encoder {encoder}: sees clips; set input.clip_frames")
        self.clip_frames = clip_frames
        self.encoder = _make_encoder(encoder, pretrained)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(self.encoder.fc.in_features, 1)
        self.encoder.fc = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N,) of (N * T, 3, S, S), the T frames of a clip in a row."""
        return self.frame_logits(images)

    def features(self, images: Tensor) -> Tensor:
        """The encoder's features of such images, (N, C, t, h, w)."""
        clips = images.view(-1, self.clip_frames, *images.shape[1:]).transpose(1, 2)
        encoder = self.encoder
        features = encoder.stem(clips)
        for layer in (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4):
            features = layer(features)
        return features

    def pool(self, features: Tensor) -> Tensor:
        """What the last layer sees of such features: (N, C)."""
        return features.mean((2, 3, 4))


def _make_encoder(name: str, pretrained: str) -> Any:
    from torchvision.models import get_model

    short = name.removeprefix(VIDEO_NETWORKS)
    if short not in NAMES:
        raise UserError(
            f"encoder {name!r}: of torchvision there are {', '.join(NAMES)}"
        )
    if pretrained == "package":
        raise UserError(f"pretrained: no package has weights of {name}")
    try:
        encoder = get_model(short, weights="DEFAULT" if pretrained == "hub" else None)
    except OSError as error:
        raise UserError(download_failed(name, error)) from error
    if pretrained not in ("hub", "none"):
        load_encoder_weights(encoder, Path(pretrained))
    return encoder
