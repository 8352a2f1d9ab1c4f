"""The network: an EfficientNet encoder, average pooling, dropout, one logit.

Method: the winner's `DeepFakeClassifier`. The encoder keeps its unused ImageNet
classifier, so that the 1,202 entries of a published B7 checkpoint match one to one.
"""

import re
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from runtime.cli import UserError, one_line
from training.weights_file import read_weights

EFFICIENTNET_PYTORCH = "efficientnet_pytorch/"


class DeepFakeClassifier(nn.Module):
    """Classifies face crops; the output is the logit of the probability of FAKE.

    Args:
        encoder: an EfficientNet of timm, such as `tf_efficientnet_b7.ns_jft_in1k`, or
            `efficientnet_pytorch/efficientnet-b7`.
        pretrained: "none", "hub" (ImageNet weights by the encoder's name, downloaded),
            or a local file of them.
        dropout: rate before the last layer.
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
        # The ImageNet classifier never gets a gradient, and DistributedDataParallel
        # would wait for one.
        unused.requires_grad_(False)
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(unused.in_features, 1)
        is_timm = not encoder.startswith(EFFICIENTNET_PYTORCH)
        method = "forward_features" if is_timm else "extract_features"
        self._extract: Callable[[Tensor], Tensor] = getattr(self.encoder, method)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N,) of images (N, 3, S, S) float, RGB, normalised."""
        features = self.avg_pool(self.features(images)).flatten(1)
        return self.fc(self.dropout(features)).squeeze(1)

    def features(self, images: Tensor) -> Tensor:
        """The encoder's feature maps (N, C, h, w) of such images, before pooling."""
        return self._extract(images)


class Normalize(nn.Module):
    """Convert uint8 images to the network's input: x / 255, minus mean, over std.

    Images are (N, S, S, 3) uint8 RGB, the result is (N, 3, S, S) float32.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, mean: tuple[float, float, float], std: tuple[float, float, float]
    ):
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            buffer = torch.tensor(values).view(1, 3, 1, 1)
            self.register_buffer(name, buffer, persistent=False)

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
            f"encoder {name!r}: give an EfficientNet B0-B7 of timm, such as "
            "tf_efficientnet_b7.ns_jft_in1k"
        )
    try:
        encoder = timm.create_model(
            name, pretrained=download, drop_path_rate=drop_path_rate
        )
    except (RuntimeError, OSError) as error:
        raise UserError(
            _download_failed(name, error)
            if download
            else f"encoder {name!r}: timm: {error}"
        ) from error
    classifier = encoder.classifier
    assert isinstance(classifier, nn.Linear)
    return encoder, classifier


def _from_efficientnet_pytorch(
    name: str, download: bool, drop_path_rate: float
) -> tuple[nn.Module, nn.Linear]:
    from efficientnet_pytorch import VALID_MODELS, EfficientNet

    short = name.removeprefix(EFFICIENTNET_PYTORCH)
    if short not in VALID_MODELS:
        raise UserError(
            f"encoder {name!r}: efficientnet-pytorch has {', '.join(VALID_MODELS)}"
        )
    try:
        make = EfficientNet.from_pretrained if download else EfficientNet.from_name
        encoder = make(short, drop_connect_rate=drop_path_rate)
    except OSError as error:
        raise UserError(_download_failed(name, error)) from error
    return encoder, encoder._fc


def _download_failed(name: str, error: Exception) -> str:
    return (
        f"the ImageNet weights of {name} could not be downloaded ({one_line(error)}); "
        "download them elsewhere and set `pretrained` to the file, or to `none` to "
        "train from scratch"
    )


def _load_encoder_weights(encoder: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise UserError(
            f"pretrained: {path}: no such file; give `hub`, `none` or a file of "
            "encoder weights"
        )
    entries = read_weights(path)
    try:
        encoder.load_state_dict(entries.get("state_dict", entries))
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(
            f"pretrained: {path}: not weights of this encoder ({one_line(error)})"
        ) from error
