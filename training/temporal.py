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

import torch
from torch import Tensor, nn

from runtime.cli import UserError
from training.config import Temporal


class TemporalPointwise(nn.Conv2d):
    """A 1 x 1 convolution with a convolution over time.

    `weight` and `bias` are those of the frame network's layer. `side_taps` begin as
    zeros: depthwise (2, C_out), what is added of the frame before and the frame after;
    dense (2, C_out, C_in), the kernels of both. The depthwise `centre_tap`
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
        # three dimensions: `channels_last` refuses weights of five
        shape = (2, *self.weight.shape[: 2 if kind == "dense" else 1])
        self.side_taps = nn.Parameter(self.weight.new_zeros(shape))
        if kind == "depthwise":
            self.centre_tap = nn.Parameter(self.weight.new_ones(self.out_channels))

    def forward(self, images: Tensor) -> Tensor:
        """(N * T, C_in, H, W) to (N * T, C_out, H, W)."""
        features = super().forward(images)
        if self.kind == "dense":
            padded = self._repeat_ends(images)
            before, after = self.side_taps[..., None, None]
            convolve = nn.functional.conv2d
            return (
                features
                + convolve(self._frames(padded[:, :-2], images), before)
                + convolve(self._frames(padded[:, 2:], images), after)
            )
        before, after = self.side_taps
        kernel = torch.stack([before, self.centre_tap, after], 1)
        # an image of T + 2 rows, a row a frame, convolved along its columns
        convolved = nn.functional.conv2d(
            self._repeat_ends(features).permute(0, 3, 1, 2),
            kernel.view(-1, 1, 3, 1),
            groups=self.out_channels,
        )
        return self._frames(convolved.permute(0, 2, 3, 1), features)

    def _repeat_ends(self, images: Tensor) -> Tensor:
        """(N * T, C, H, W) to (N, T + 2, H * W, C), first and last frame twice."""
        rows = images.permute(0, 2, 3, 1)
        rows = rows.reshape(-1, self.frames, rows[0, :, :, 0].numel(), rows.shape[3])
        return torch.cat([rows[:, :1], rows, rows[:, -1:]], 1)

    @staticmethod
    def _frames(rows: Tensor, images: Tensor) -> Tensor:
        """(N, T, H * W, C) to (N * T, C, H, W), with H, W and strides like `images`."""
        frames = rows.reshape(-1, *images.shape[2:], rows.shape[3]).permute(0, 3, 1, 2)
        # else the layers that follow would round differently
        return frames.contiguous(memory_format=memory_format(images))


def memory_format(images: Tensor) -> torch.memory_format:
    """Whether (N, C, H, W) lies in memory as N, H, W, C or as N, C, H, W."""
    if images.is_contiguous():
        return torch.contiguous_format
    return torch.channels_last


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
