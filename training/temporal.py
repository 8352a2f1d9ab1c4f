"""Networks that see change between frames: a frame network with convolutions over time.

Around the 1 x 1 convolution that expands the channels of each MBConv block of a timm
EfficientNet, a convolution over three neighbouring frames is added. It begins as the
identity, so that any checkpoint of a frame network becomes a clip network which gives,
at first, the frame network's logits bit for bit.

- depthwise: each channel by itself, after the 1 x 1 convolution; in a B7 210,000
  parameters more and 1 % more multiply-adds.
- dense: the 1 x 1 convolution becomes 3 x 1 x 1, as NtechLab's (third place in DFDC).
- none: the frame network itself, whose logits are averaged over the clip; a control.

Frames stay in the batch axis: (N * T, C, H, W), the T frames of a clip in a row. At a
clip's ends the first and the last frame are repeated.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from runtime.cli import UserError

Temporal = Literal["depthwise", "dense", "none"]


class TemporalPointwise(nn.Conv2d):
    """A 1 x 1 convolution with a convolution over time.

    `weight` and `bias` are those of the frame network's layer. `side_taps` begin as
    zeros: depthwise (2, C_out), what is added of the frame before and the frame after;
    dense (2, C_out, C_in, 1, 1), the kernels of both. The depthwise `centre_tap`
    (C_out,) begins as ones; the dense one is `weight`.

    Args:
        layer: the frame network's convolution.
        frames: T.
    """

    def __init__(self, layer: nn.Conv2d, frames: int, kind: Temporal):
        super().__init__(
            layer.in_channels, layer.out_channels, 1, bias=layer.bias is not None
        )
        self.weight, self.bias = layer.weight, layer.bias
        self.frames, self.kind = frames, kind
        shape = (2, *self.weight.shape) if kind == "dense" else (2, self.out_channels)
        self.side_taps = nn.Parameter(self.weight.new_zeros(shape))
        if kind == "depthwise":
            self.centre_tap = nn.Parameter(self.weight.new_ones(self.out_channels))

    def forward(self, images: Tensor) -> Tensor:
        """(N * T, C_in, H, W) to (N * T, C_out, H, W)."""
        features = super().forward(images)
        if self.kind == "dense":
            before, after = self._neighbours(images)
            convolve = nn.functional.conv2d
            return (
                features
                + convolve(before, self.side_taps[0])
                + convolve(after, self.side_taps[1])
            )
        before, after = self._neighbours(features)
        taps = [each.view(1, -1, 1, 1) for each in (self.centre_tap, *self.side_taps)]
        return taps[0] * features + taps[1] * before + taps[2] * after

    def _neighbours(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """For each frame the one before and the one after it in its clip."""
        places = torch.arange(len(images), device=images.device)
        first = places % self.frames == 0
        last = places % self.frames == self.frames - 1
        return images[places - 1 + first.long()], images[places + 1 - last.long()]


def add_time(encoder: nn.Module, frames: int, kind: Temporal) -> None:
    """Give each MBConv block of a timm EfficientNet convolutions over time, in place.

    Fused blocks (EfficientNetV2's first stages), which expand by a 3 x 3 convolution, get
    none.

    Raises:
        UserError: it has no such block, or others, as MixNet.
    """
    if kind == "none":
        return
    from timm.models._efficientnet_blocks import InvertedResidual

    blocks = [each for each in encoder.modules() if isinstance(each, InvertedResidual)]
    is_plain = [
        type(each.conv_pw) is nn.Conv2d and each.conv_pw.kernel_size == (1, 1)
        for each in blocks
    ]
    if blocks and all(is_plain):
        for block in blocks:
            block.conv_pw = TemporalPointwise(block.conv_pw, frames, kind)
    else:
        raise UserError(
            "input.clip_frames: convolutions over time need an EfficientNet of timm, "
            "such as tf_efficientnet_b7.ns_jft_in1k"
        )


def is_over_time(key: str) -> bool:
    """Whether an entry of a clip network's weights is none of its frame network's."""
    return key.endswith((".side_taps", ".centre_tap"))


def hold_side_taps(module: nn.Module) -> None:
    """Keep the taps of neighbouring frames at zero: a control that sees no time."""
    for layer in module.modules():
        if isinstance(layer, TemporalPointwise):
            layer.side_taps.requires_grad_(False)
