"""Pixel fingerprints: a second stem that sees what prediction from neighbours leaves over.

Three fixed high-pass filters of steganalysis (SRM) take the picture away and leave the
camera's noise, and traces of upsampling and blending. What a small convolutional stem
makes of them is added to the output of the encoder's first convolution. Its last layer
begins as zeros, so that the network's first answers are those of the encoder alone.

Method: Zhou et al., "Learning Rich Features for Image Manipulation Detection" (2018), with
       filters of Fridrich and Kodovsky (2012).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from runtime.cli import UserError
from training.model import DeepFakeClassifier

LIMIT = 3.0  # grey levels, at which residuals are clipped
DIVISORS = (4, 12, 2)
CHANNELS = 16
STEM = "residual_stem"


def filters() -> Tensor:
    """The three filters, (3, 1, 5, 5), to be divided by `DIVISORS`: 3 x 3 square, 5 x 5
    square, 1 x 3 second order. Whole numbers, which every precision holds exactly.
    """
    small = torch.zeros(5, 5)
    small[1:4, 1:4] = torch.tensor(
        [[-1.0, 2.0, -1.0], [2.0, -4.0, 2.0], [-1.0, 2.0, -1.0]]
    )
    corner = torch.tensor([[-1.0, 2.0, -2.0], [2.0, -6.0, 8.0], [-2.0, 8.0, -12.0]])
    half = torch.cat((corner, corner[:, :2].flip(1)), 1)
    large = torch.cat((half, half[:2].flip(0)))
    line = torch.zeros(5, 5)
    line[2, 1:4] = torch.tensor([1.0, -2.0, 1.0])
    return torch.stack((small, large, line))[:, None]


class ResidualStem(nn.Module):
    """From normalised images (N, 3, S, S) to what is added to the first features.

    Args:
        channels: of the encoder's first features.
        std: that the images were divided by, of values in 0..1.
    """

    kernels: Tensor
    scale: Tensor

    def __init__(self, channels: int, std: tuple[float, float, float]):
        super().__init__()
        scale = 255 * torch.tensor(std).view(1, 3, 1, 1)
        self.register_buffer("kernels", filters(), persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        last = nn.Conv2d(CHANNELS, channels, 1, bias=False)
        nn.init.zeros_(last.weight)
        self.layers = nn.Sequential(
            nn.Conv2d(3, CHANNELS, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(CHANNELS),
            nn.ReLU(),
            last,
        )

    def residuals(self, images: Tensor) -> Tensor:
        """(N, 3, S, S), in grey levels, within -LIMIT..LIMIT.

        In float32 whatever the precision, else the picture would leak in. Images that
        come in bfloat16 (`predict --precision bfloat16`) are rounded already.
        """
        divisors = torch.tensor(DIVISORS, device=images.device).view(1, 3, 1, 1)
        with torch.autocast(images.device.type, enabled=False):
            # the filters' sums are 0, so the mean that was subtracted does not matter
            grey = (images.float() * self.scale.float()).mean(1, keepdim=True)
            grey = functional.pad(grey, (2, 2, 2, 2), mode="replicate")
            found = functional.conv2d(grey, self.kernels.float()) / divisors
        return found.clamp(-LIMIT, LIMIT).to(images.dtype)

    def forward(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """(N, channels, h, w) of the wanted size."""
        return functional.adaptive_avg_pool2d(self.layers(self.residuals(images)), size)


def is_of_residuals(key: str) -> bool:
    """Whether an entry of a network's weights belongs to this stem."""
    return key.startswith(f"{STEM}.")


def add_residuals(model: DeepFakeClassifier, std: tuple[float, float, float]) -> None:
    """Give a classifier the second stem, in place.

    Raises:
        UserError: its encoder has no convolution of an RGB image.
    """
    first = next(
        (
            layer
            for layer in model.encoder.modules()
            if isinstance(layer, nn.Conv2d) and layer.in_channels == 3
        ),
        None,
    )
    if first is None:
        raise UserError(
            "srm: the encoder has no two-dimensional convolution of an RGB image"
        )
    stem = ResidualStem(first.out_channels, std)
    setattr(model, STEM, stem)
    first.register_forward_hook(
        lambda _, inputs, features: features + stem(inputs[0], features.shape[2:])
    )
