"""WS-DAN: a classifier that looks at parts of the face (the second-placed team's network).

Eight attention maps come from the encoder's feature maps by a 1 x 1 convolution. Each
weights the features before they are averaged, so that the last layer sees eight averages
in place of one. In training the network also sees the image cropped to where one map is
high, and the image without the place where another is. Prediction needs the first pass
alone.

Method: Hu et al., "See Better Before Looking Closer: Weakly Supervised Data Augmentation
       Network for Fine-Grained Visual Classification" (2019), with the numbers of the
       second-placed team in DFDC.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from runtime.cli import UserError
from training.losses import balanced_loss
from training.model import DeepFakeClassifier

MAPS = 8
SCALE = 100.0  # of the vector of length 1 that the last layer sees
EPSILON = 1e-12
DROPPED_MAPS = 0.5  # probability, of each map in the first pass
CROP_THRESHOLD, CROP_PADDING = (0.4, 0.6), 0.1
DROP_THRESHOLD = (0.4, 0.7)
CROP_WEIGHT, DROP_WEIGHT = 1 / 3, 1 / 2  # of their losses
CENTRE_RATE = 0.05


class AttentionClassifier(DeepFakeClassifier):
    """`DeepFakeClassifier` with bilinear attention pooling; same arguments.

    `centres`: where the pooled features of real and of fake images lie on average in
    training, (2, 8 C).
    """

    centres: Tensor

    def __init__(self, encoder: str, *arguments: Any, **options: Any):
        super().__init__(encoder, *arguments, **options)
        channels = getattr(self.encoder, "num_features", 0) or self.fc.in_features
        self.attention = nn.Sequential(
            nn.Conv2d(channels, MAPS, 1, bias=False),
            nn.BatchNorm2d(MAPS, eps=0.001),
            nn.ReLU(),
        )
        self.fc = nn.Linear(MAPS * channels, 1, bias=False)
        self.register_buffer("centres", torch.zeros(2, MAPS * channels))

    def pool(self, features: Tensor) -> Tensor:
        """What the last layer sees: (N, 8 C)."""
        pooled, _ = self._pool_by_maps(features)
        return SCALE * normalize(pooled).to(self.fc.weight.dtype)

    def forward(  # type: ignore[override]  # labels in training
        self, images: Tensor, labels: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (N,); with labels (N,) also the losses of all else in training.

        For these each image is cropped and masked by maps, which are drawn in proportion
        to the square roots of their sums.
        """
        if labels is None:
            return super().forward(images)
        pooled, maps = self._pool_by_maps(self.features(images))
        dropped = functional.dropout1d(pooled, DROPPED_MAPS, self.training)
        logits = self.fc(SCALE * normalize(dropped)).squeeze(1)
        with torch.no_grad():
            # that they are not finite is said by the check of the loss
            chances = (maps.sum((2, 3)) + EPSILON).sqrt().nan_to_num(1, 1, 1)
            chosen = torch.multinomial(chances, 2, replacement=True)
            rows = torch.arange(len(maps), device=maps.device)
            to_crop, to_drop = (maps[rows, each] for each in chosen.T)
            cropped = crop_to(images, to_crop, uniform(images, *CROP_THRESHOLD))
            masked = drop_from(images, to_drop, uniform(images, *DROP_THRESHOLD))
        extra = self._centre_loss(normalize(pooled), labels)
        for image, weight in ((cropped, CROP_WEIGHT), (masked, DROP_WEIGHT)):
            again = self.frame_logits(image).float()
            extra = extra + weight * balanced_loss(again, labels)[0]
        return logits, extra

    def _centre_loss(self, pooled: Tensor, labels: Tensor) -> Tensor:
        """Mean squared distance from the centre of the label, which moves after it."""
        kinds = (labels > 0.5).long()
        centres = functional.normalize(self.centres, dim=1)
        loss = ((pooled - centres[kinds]) ** 2).sum(1).mean()
        with torch.no_grad():
            # of several processes the first one's are kept: buffers are broadcast
            for kind in (0, 1):
                if (kinds == kind).any():
                    step = (pooled[kinds == kind] - centres[kind]).mean(0)
                    self.centres[kind] += CENTRE_RATE * step
        return loss

    def _pool_by_maps(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled features (N, M, C) and maps (N, M, h, w), float32 in any precision:
        small numbers have steep roots.
        """
        features = self._as_maps(features)
        maps = self.attention(features).float()
        with torch.autocast(features.device.type, enabled=False):
            return pool_by_maps(features.float(), maps), maps

    def _as_maps(self, features: Tensor) -> Tensor:
        """Feature maps (N, C, h, w), also of the tokens (N, K, C) of a vision transformer
        and of (N, h, w, C).
        """
        channels = self.fc.in_features // MAPS
        if features.ndim == 3:
            patches = features[:, getattr(self.encoder, "num_prefix_tokens", 0) :]
            side = math.isqrt(patches.shape[1])
            if side**2 == patches.shape[1]:
                features = patches.unflatten(1, (side, side))
        if features.ndim == 4 and features.shape[1] != channels:
            features = features.permute(0, 3, 1, 2)
        if features.ndim != 4 or features.shape[1] != channels:
            raise UserError(
                "head: attention needs an encoder with feature maps or a square of "
                "tokens, such as an EfficientNet, legacy_xception or vit_small_patch16_224"
            )
        return features


def is_of_head(key: str) -> bool:
    """Whether an entry of such a network's weights belongs to its head."""
    return key.startswith(("attention.", "fc.")) or key == "centres"


def is_attention(weights: Mapping[str, Any]) -> bool:
    """Whether weights are of a network with attention maps."""
    return any(key.startswith("attention.") for key in weights)


def pool_by_maps(features: Tensor, maps: Tensor) -> Tensor:
    """The mean of features (N, C, h, w) weighted by each map (N, M, h, w): (N, M, C)."""
    places = features.shape[2] * features.shape[3]
    return torch.einsum("nmhw,nchw->nmc", maps, features) / places


def normalize(pooled: Tensor) -> Tensor:
    """Signed square roots of (N, M, C) as vectors of length 1: (N, M C)."""
    roots = pooled.sign() * (pooled.abs() + EPSILON).sqrt()
    return functional.normalize(roots.flatten(1), dim=1)


def uniform(images: Tensor, low: float, high: float) -> Tensor:
    """A random number for each image, (N, 1, 1)."""
    return low + (high - low) * torch.rand(len(images), 1, 1, device=images.device)


def crop_to(images: Tensor, maps: Tensor, thresholds: Tensor) -> Tensor:
    """Enlarge the box in which a map is at least a part of its maximum.

    The box gets a margin of a tenth of the side, and is resized to the whole image.

    Args:
        images: (N, 3, H, W).
        maps: (N, h, w), not negative.
        thresholds: (N, 1, 1), parts of the maximum.
    """
    height, width = images.shape[2:]
    high = _resize(maps, height, width) >= thresholds * maps.amax((1, 2), keepdim=True)
    top, bottom = _ends(high.any(2), int(CROP_PADDING * height))
    left, right = _ends(high.any(1), int(CROP_PADDING * width))
    y = top + (bottom - 1 - top) * torch.linspace(0, 1, height, device=images.device)
    x = left + (right - 1 - left) * torch.linspace(0, 1, width, device=images.device)
    grid = torch.stack(
        (
            (2 * x / (width - 1) - 1)[:, None].expand(-1, height, -1),
            (2 * y / (height - 1) - 1)[:, :, None].expand(-1, -1, width),
        ),
        dim=3,
    )
    return functional.grid_sample(images, grid.to(images.dtype), align_corners=True)


def drop_from(images: Tensor, maps: Tensor, thresholds: Tensor) -> Tensor:
    """Replace pixels by 0, the mean that was subtracted, where a map is at least a part of its
    maximum. Arguments as of `crop_to`.
    """
    resized = _resize(maps, *images.shape[2:])
    kept = resized < thresholds * maps.amax((1, 2), keepdim=True)
    return images * kept[:, None]


def _resize(maps: Tensor, height: int, width: int) -> Tensor:
    return functional.interpolate(
        maps[:, None], (height, width), mode="bilinear", align_corners=True
    )[:, 0]


def _ends(used: Tensor, padding: int) -> tuple[Tensor, Tensor]:
    """First and behind-the-last place that is used of (N, L) bool, with a margin.

    Returns:
        (N, 1) each.
    """
    length = used.shape[1]
    first = used.int().argmax(1, keepdim=True)
    last = length - 1 - used.flip(1).int().argmax(1, keepdim=True)
    start = (first - padding).clamp(min=0)
    return start, (last + padding).clamp(max=length)
