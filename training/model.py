"""The network: an EfficientNet encoder, average pool, dropout, one logit. It knows nothing of files or processes.

Method: the winner's `DeepFakeClassifier`. The encoder keeps its unused ImageNet classifier, so that the 1,202 entries of
a published B7 checkpoint fit one to one.
"""

import re
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from runtime.cli import UserError
from training.weights_file import read_weights

EFFICIENTNET_PYTORCH = "efficientnet_pytorch/"


class DeepFakeClassifier(nn.Module):
    """Probability of FAKE, as a logit, of face crops.

    Args:
        encoder: a timm EfficientNet such as `tf_efficientnet_b7.ns_jft_in1k`, or `efficientnet_pytorch/efficientnet-b7`.
        pretrained: "none", "hub" (ImageNet weights by the encoder's name, downloaded), or a local file of them.
        dropout: before the last layer.
        drop_path_rate: of stochastic depth in the encoder.
    """

    def __init__(
        self,
        encoder: str,
        pretrained: str = "none",
        dropout: float = 0.0,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        self.encoder, unused = _make_encoder(encoder, pretrained, drop_path_rate)
        # no gradient ever reaches the ImageNet classifier; distributed training must know
        unused.requires_grad_(False)
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(unused.in_features, 1)
        self._extract = (
            self.encoder.extract_features
            if encoder.startswith(EFFICIENTNET_PYTORCH)
            else self.encoder.forward_features
        )

    def forward(self, images: Tensor) -> Tensor:
        """images: (N, 3, S, S) float, RGB, normalised. Returns logits (N,)."""
        features = self.avg_pool(self.features(images)).flatten(1)
        return self.fc(self.dropout(features)).squeeze(1)

    def features(self, images: Tensor) -> Tensor:
        """The encoder's features (N, C, h, w) of the same images, before the pool."""
        return self._extract(images)


class Normalize(nn.Module):
    """uint8 images (N, S, S, 3) RGB to the network's input (N, 3, S, S) float32: x / 255, minus mean, over std."""

    def __init__(
        self, mean: tuple[float, float, float], std: tuple[float, float, float]
    ):
        super().__init__()
        self.register_buffer(
            "mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False
        )
        self.register_buffer(
            "std", torch.tensor(std).view(1, 3, 1, 1), persistent=False
        )

    def forward(self, images: Tensor) -> Tensor:
        return (images.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std


def _make_encoder(
    name: str, pretrained: str, drop_path_rate: float
) -> tuple[nn.Module, nn.Linear]:
    """The encoder and its unused classifier."""
    make = (
        _from_efficientnet_pytorch
        if name.startswith(EFFICIENTNET_PYTORCH)
        else _from_timm
    )
    encoder, classifier = make(name, pretrained == "hub", drop_path_rate)
    if pretrained not in ("hub", "none"):
        _load_encoder_weights(encoder, Path(pretrained))
    return encoder, classifier


def _from_timm(
    name: str, download: bool, drop_path_rate: float
) -> tuple[nn.Module, nn.Linear]:
    if not re.fullmatch(r"(tf_)?efficientnet_b[0-7](\.\w+)?", name):
        raise UserError(
            f"encoder {name!r}: give an EfficientNet B0-B7 of timm, such as tf_efficientnet_b7.ns_jft_in1k"
        )
    try:
        encoder = timm.create_model(
            name, pretrained=download, drop_path_rate=drop_path_rate
        )
    except (RuntimeError, OSError) as error:
        raise UserError(
            _no_weights(name, error) if download else f"encoder {name!r}: timm: {error}"
        ) from error
    return encoder, encoder.classifier


def _from_efficientnet_pytorch(
    name: str, download: bool, drop_path_rate: float
) -> tuple[nn.Module, nn.Linear]:
    from efficientnet_pytorch import VALID_MODELS, EfficientNet

    short = name.removeprefix(EFFICIENTNET_PYTORCH)
    if short not in VALID_MODELS:
        raise UserError(
            f"encoder {name!r}: efficientnet-pytorch knows {', '.join(VALID_MODELS)}"
        )
    try:
        make = EfficientNet.from_pretrained if download else EfficientNet.from_name
        encoder = make(short, drop_connect_rate=drop_path_rate)
    except OSError as error:
        raise UserError(_no_weights(name, error)) from error
    return encoder, encoder._fc


def _no_weights(name: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200]
    return (
        f"the ImageNet weights of {name} could not be downloaded ({reason}); download them elsewhere and set "
        "`pretrained` to the file, or to `none` to train from scratch"
    )


def _load_encoder_weights(encoder: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise UserError(
            f"pretrained: {path}: no such file; give `hub`, `none` or a file of encoder weights"
        )
    entries = read_weights(path)
    try:
        encoder.load_state_dict(entries.get("state_dict", entries))
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(
            f"pretrained: {path}: not weights of this encoder ({' '.join(str(error).split())[:200]})"
        ) from error
