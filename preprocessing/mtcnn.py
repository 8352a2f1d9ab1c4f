"""MTCNN's cascade over many images at once: facenet-pytorch's networks and answers, another order of work.

facenet-pytorch cuts and shrinks every candidate by itself, thousands of small calls. Here all sums that shrinking needs come
from one integral image of each image, all candidates of all images go through the second and third network together, and
the first network's heads look only where a face may be. `tests/test_mtcnn.py` compares the two box by box.

Method: Zhang et al., "Joint Face Detection and Alignment using Multi-task Cascaded Convolutional Networks" (2016); integral
images: Viola and Jones (2001).
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from facenet_pytorch.models.mtcnn import ONet, PNet, RNet
from facenet_pytorch.models.utils.detect_face import batched_nms_numpy, bbreg, rerec
from torch import Tensor, nn
from torchvision.ops import batched_nms

WINDOW, STRIDE = (
    12,
    2,
)  # the first network's field of view and step, in pixels of the scaled image
FACTOR = 0.709  # from one scale to the next, facenet-pytorch's default
SLACK = (
    1e-3  # in logits: a first look may round differently from the second, which decides
)
CANDIDATES = {
    "cpu": 128,
    "cuda": 8192,
}  # through a network at a time; on two cores 64 to 256 take the same time


class Cascade:
    """The three networks on one device."""

    def __init__(self, device: str):
        self.device = torch.device(device)
        self._pnet, self._rnet, self._onet = (
            self._prepare(net) for net in (PNet(), RNet(), ONet())
        )
        heads = self._pnet.conv4_1, self._pnet.conv4_2
        self._scores, self._offsets = (
            (head.weight.flatten(1), head.bias) for head in heads
        )
        weight, bias = self._scores
        self._face_or_not = weight[1] - weight[0], bias[1] - bias[0]
        self._chunk = CANDIDATES[self.device.type]

    def _prepare(self, net: nn.Module) -> nn.Module:
        for name, layer in list(net.named_children()):
            if isinstance(layer, nn.MaxPool2d):
                setattr(net, name, MaxPool(layer.kernel_size))
            elif isinstance(layer, nn.PReLU) and hasattr(
                net, name.replace("prelu", "conv")
            ):
                setattr(net, name, PReLU(layer.weight.detach().to(self.device)))
        return (
            net.eval()
            .requires_grad_(False)
            .to(self.device, memory_format=torch.channels_last)
        )

    @torch.inference_mode()
    def __call__(
        self,
        images: Sequence[np.ndarray],
        thresholds: Sequence[float],
        smallest: int,
        together: bool,
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Find the faces in images (H, W, 3) uint8 RGB, which may differ in size.

        Args:
            thresholds: least probability after each of the three networks.
            smallest: side of the smallest face to look for, in pixels.
            together: suppress as facenet-pytorch does in a batch, where the images are kept apart by large float32 offsets
                that move borderline boxes; otherwise as it does with each image alone.

        Returns:
            boxes and probabilities (K, 5) and landmarks (K, 5, 2) of each image, float32, in no order.
        """
        suppress = _nms_in_batch if together else _nms_per_image
        nothing = [
            (np.zeros((0, 5), np.float32), np.zeros((0, 5, 2), np.float32))
            for _ in images
        ]
        pictures = IntegralImages(images, self.device)
        boxes, owners = self._propose(pictures, thresholds[0], smallest, suppress)
        boxes, owners, crops = pictures.cut(boxes, owners, 24, self._chunk)
        if not len(boxes):
            return nothing
        offsets, scores = self._run(self._rnet, crops)
        keep = scores[:, 1] > thresholds[1]
        boxes, owners, offsets = (
            torch.cat([boxes, scores[:, 1:]], 1)[keep],
            owners[keep],
            offsets[keep],
        )
        keep = suppress(_nms, boxes, owners, 0.7)
        boxes, owners = rerec(bbreg(boxes[keep], offsets[keep])), owners[keep]

        boxes, owners, crops = pictures.cut(boxes[:, :4], owners, 48, self._chunk)
        if not len(boxes):
            return nothing
        offsets, points, scores = self._run(self._onet, crops)
        keep = scores[:, 1] > thresholds[2]
        boxes, owners, offsets = (
            torch.cat([boxes, scores[:, 1:]], 1)[keep],
            owners[keep],
            offsets[keep],
        )
        sizes = boxes[:, None, 2:4] - boxes[:, None, :2] + 1
        points = sizes * points.view(-1, 2, 5)[keep].mT + boxes[:, None, :2] - 1
        boxes = bbreg(boxes, offsets)
        keep = suppress(_nms_min_area, boxes, owners, 0.7)
        boxes, points, owners = (
            part[keep].cpu().numpy() for part in (boxes, points, owners)
        )
        return [
            (boxes[owners == number], points[owners == number])
            for number in range(len(images))
        ]

    def _propose(
        self,
        pictures: "IntegralImages",
        threshold: float,
        smallest: int,
        suppress: Callable,
    ) -> tuple[Tensor, Tensor]:
        """The first network over all scales: boxes (M, 4) and the numbers of their images (M,)."""
        found = defaultdict(list)
        for numbers in pictures.groups:
            for scale in _scales(*pictures.shapes[numbers[0]], smallest):
                boxes, owners = self._propose_at_scale(
                    pictures.shrink(numbers, scale), scale, threshold
                )
                found[scale].append((boxes, owners + numbers[0]))
        kept = []
        for parts in found.values():
            boxes, owners = (torch.cat(part) for part in zip(*parts))
            keep = suppress(_nms, boxes, owners, 0.5)
            kept.append((boxes[keep], owners[keep]))
        boxes, owners = (torch.cat(part) for part in zip(*kept))
        keep = suppress(_nms, boxes, owners, 0.7)
        boxes, owners = boxes[keep], owners[keep]
        sides = (boxes[:, 2:4] - boxes[:, :2]).repeat(1, 2)
        return rerec(boxes[:, :4] + boxes[:, 5:] * sides), owners

    def proposal_features(self, images: Tensor) -> Tensor:
        """The first network without its heads: (N, 3, h, w) to (N, 32, h / 2 - 5, w / 2 - 5), channels last."""
        net = self._pnet
        features = net.pool1(net.prelu1(net.conv1(images)))
        return net.prelu3(net.conv3(net.prelu2(net.conv2(features))))

    def _propose_at_scale(
        self, images: Tensor, scale: float, threshold: float
    ) -> tuple[Tensor, Tensor]:
        """The first network on images (N, 3, h, w): rows x1, y1, x2, y2, probability, four offsets, and image numbers."""
        features = self.proposal_features(images)
        _, channels, height, width = features.shape
        features = features.permute(0, 2, 3, 1).reshape(-1, channels)
        weight, bias = self._face_or_not
        places = torch.nonzero(
            features @ weight + bias >= math.log(threshold / (1 - threshold)) - SLACK
        )[:, 0]
        features = features[places]
        probabilities = F.linear(features, *self._scores).softmax(1)[:, 1:]
        offsets = F.linear(features, *self._offsets)
        corner = (
            torch.stack([places % width, places // width % height], 1).float() * STRIDE
            + 1
        )
        boxes = [(corner / scale).floor(), ((corner + WINDOW - 1) / scale).floor()]
        keep = probabilities[:, 0] >= threshold
        return torch.cat([*boxes, probabilities, offsets], 1)[keep], (
            places // (width * height)
        )[keep]

    def _run(self, net: nn.Module, chunks: Sequence[Tensor]) -> list[Tensor]:
        outputs = [net(chunk) for chunk in chunks]
        return [torch.cat(parts) for parts in zip(*outputs)]


class IntegralImages:
    """Images as integral images, from which any part of them is shrunk as `interpolate(mode="area")` does, bit for bit.

    An integral image holds at (y, x) the sum over all pixels above and left of it, so that a rectangle's sum takes four
    reads. Four int32 a place, the last unused, which are read as one number of 16 bytes. Sums may wrap around; differences
    of them are right all the same.
    """

    def __init__(self, images: Sequence[np.ndarray], device: torch.device):
        self.shapes = [image.shape[:2] for image in images]
        sizes = [(height + 1) * (width + 1) for height, width in self.shapes]
        self._starts = torch.tensor([0, *np.cumsum(sizes)[:-1]], device=device)
        self._heights_widths = torch.tensor(self.shapes, device=device)
        self._widths = self._heights_widths[:, 1] + 1
        self._sums = torch.empty(sum(sizes), 4, dtype=torch.int32, device=device)
        for image, sums in zip(images, self._sums.split(sizes)):
            _integrate(image, sums.view(image.shape[0] + 1, image.shape[1] + 1, 4))
        self._small_sums = self._sums.to(torch.int16)
        self._device = device
        numbers = range(len(images))
        if device.type == "cpu":  # one at a time stays in the cache
            self.groups = [[number] for number in numbers]
        else:
            self.groups = [
                list(group)
                for _, group in groupby(numbers, key=lambda number: self.shapes[number])
            ]

    def shrink(self, numbers: Sequence[int], scale: float) -> Tensor:
        """Consecutive images of one size, shrunk: (N, 3, h, w) float32 in -1..1, channels last."""
        height, width = self.shapes[numbers[0]]
        first, size = self._starts[numbers[0]], (height + 1) * (width + 1)
        # sums of up to 32767 are right modulo 2^16 too, in half the memory
        small = (1 / scale + 2) ** 2 * 255 < 2**15
        sums = (self._small_sums if small else self._sums)[
            first : first + len(numbers) * size
        ]
        plan = _plan_resize(len(numbers), height, width, scale, self._device)
        rows = _as_words(sums).view(len(numbers), height + 1, width + 1)
        rows = _from_words(rows.index_select(1, plan.bottom), sums) - _from_words(
            rows.index_select(1, plan.top), sums
        )
        rows = _as_words(rows).view(-1)
        sums = _from_words(rows.index_select(0, plan.right), sums) - _from_words(
            rows.index_select(0, plan.left), sums
        )
        return _means(
            sums.view(len(numbers), len(plan.top), -1, 4), plan.heights, plan.widths
        )

    def cut(
        self, boxes: Tensor, owners: Tensor, size: int, chunk: int
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The boxes (M, 4) that show a part of their image, their images, and the crops as chunks of (m, 3, size, size)."""
        corners = boxes.trunc().long()
        top_left = corners[:, :2].clamp(min=1) - 1
        bottom_right = torch.minimum(
            corners[:, 2:], self._heights_widths[owners].flip(1)
        )
        inside = (bottom_right > top_left).all(1)
        boxes, owners, top_left, bottom_right = (
            each[inside] for each in (boxes, owners, top_left, bottom_right)
        )
        parts = (
            zip(*(each.split(chunk) for each in (top_left, bottom_right, owners)))
            if len(boxes)
            else []
        )
        return boxes, owners, [self._cut(*part, size) for part in parts]

    def _cut(
        self, top_left: Tensor, bottom_right: Tensor, owners: Tensor, size: int
    ) -> Tensor:
        (left, top), (width, height) = top_left.T, (bottom_right - top_left).T
        (upper, lower), (west, east) = _bins(height, size), _bins(width, size)
        starts = self._starts[owners] + top * self._widths[owners] + left
        rows = (
            starts[:, None] + torch.cat([lower, upper], 1) * self._widths[owners, None]
        )
        places = rows[:, :, None] + torch.cat([east, west], 1)[:, None, :]
        sums = _from_words(
            _as_words(self._sums).index_select(0, places.view(-1)), self._sums
        )
        sums = sums.view(-1, 2 * size, 2 * size, 4)
        sums = sums[:, :size] - sums[:, size:]
        return _means(sums[:, :, :size] - sums[:, :, size:], lower - upper, east - west)


class ResizePlan(NamedTuple):
    """Where the bins of a shrunk image are in the sums: rows, then places in the rows' differences; and the bins' sizes."""

    top: Tensor
    bottom: Tensor
    left: Tensor
    right: Tensor
    heights: Tensor
    widths: Tensor


@lru_cache(maxsize=32)  # all scales of one video's frames
def _plan_resize(
    count: int, height: int, width: int, scale: float, device: torch.device
) -> ResizePlan:
    (top, bottom), (left, right) = (
        _bins(torch.tensor(side, device=device), int(side * scale + 1))
        for side in (height, width)
    )
    starts = torch.arange(count * len(top), device=device)[:, None] * (width + 1)
    return ResizePlan(
        top,
        bottom,
        (starts + left).view(-1),
        (starts + right).view(-1),
        bottom - top,
        right - left,
    )


class MaxPool(nn.Module):
    """Max pooling with stride 2 that counts windows past the edge (`ceil_mode`). PyTorch's own takes five times as long
    on a CPU, because it also notes where each maximum was."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, h, w)."""
        for dim in (2, 3):
            count = -(-(images.shape[dim] - self.size) // 2) + 1
            first, *others = (
                _stride_2(images, dim, start, count) for start in range(self.size)
            )
            result = torch.empty_like(first)
            for part in others:
                whole = part.shape[
                    dim
                ]  # count, or one less where the last window reaches past the edge
                torch.maximum(
                    first.narrow(dim, 0, whole), part, out=result.narrow(dim, 0, whole)
                )
                if whole < count and first is not result:
                    result.narrow(dim, whole, 1).copy_(first.narrow(dim, whole, 1))
                first = result
            images = result
        return images


class PReLU(nn.Module):
    """PReLU of channels-last features, along whole rows of pixels: PyTorch's own goes through few channels at a time."""

    def __init__(self, slopes: Tensor):
        super().__init__()
        self.slopes = slopes

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W), the same."""
        count, channels, height, width = features.shape
        rows = features.permute(0, 2, 3, 1).reshape(count * height, width * channels)
        return (
            F.prelu(rows, self.slopes.repeat(width))
            .view(count, height, width, channels)
            .permute(0, 3, 1, 2)
        )


def _stride_2(images: Tensor, dim: int, start: int, count: int) -> Tensor:
    """At most `count` of every second row (dim 2) or column (dim 3)."""
    return (
        images[:, :, start::2][:, :, :count]
        if dim == 2
        else images[:, :, :, start::2][:, :, :, :count]
    )


def _scales(height: int, width: int, smallest: int) -> list[float]:
    """The pyramid's scales, largest first, until a face would have to fill the image."""
    scales, scale, side = (
        [],
        WINDOW / smallest,
        min(height, width) * (WINDOW / smallest),
    )
    while side >= WINDOW:
        scales.append(scale)
        scale, side = scale * FACTOR, side * FACTOR
    return scales


def _integrate(image: np.ndarray, sums: Tensor) -> None:
    """Write the sums (H + 1, W + 1, 4) int32 of an image (H, W, 3) uint8."""
    if sums.device.type == "cpu":
        cv2.integral(
            cv2.cvtColor(image, cv2.COLOR_RGB2RGBA), sums.numpy(), sdepth=cv2.CV_32S
        )
    else:
        padded = F.pad(torch.from_numpy(image).to(sums.device), (0, 1, 1, 0, 1, 0))
        torch.cumsum(
            padded.cumsum(0, dtype=torch.int32), 1, dtype=torch.int32, out=sums
        )


def _bins(length: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Where each of `count` bins of an axis begins and ends; they overlap where the length is no multiple (as in PyTorch)."""
    steps = torch.arange(count, device=length.device)
    length = length[..., None]
    return steps * length // count, -(-(steps + 1) * length // count)


def _as_words(sums: Tensor) -> Tensor:
    """Sums (…, 4) seen as one number of 8 or 16 bytes a place, the fastest thing to gather."""
    return sums.view(
        torch.float64 if sums.dtype == torch.int16 else torch.complex128
    ).squeeze(-1)


def _from_words(places: Tensor, sums: Tensor) -> Tensor:
    """The other way round, (…, 4) of the type of `sums`."""
    return places.unsqueeze(-1).view(sums.dtype)


def _means(sums: Tensor, heights: Tensor, widths: Tensor) -> Tensor:
    """Sums (N, h, w, 4) over bins of these heights and widths to (N, 3, h, w) float32 in -1..1, channels last."""
    count, height, width, _ = sums.shape
    means = sums.float().view(count, height, width * 4)
    # (mean - 127.5) / 128, with the 128, which rounds nothing, in the divisor
    means.div_(heights.float().view(-1, height, 1))
    means.div_(
        (widths * 128).float().repeat_interleave(4, -1).view(-1, 1, width * 4)
    ).sub_(127.5 / 128)
    return means.view(count, height, width, 4)[..., :3].permute(0, 3, 1, 2)


def _nms(boxes: Tensor, owners: Tensor, threshold: float) -> Tensor:
    return batched_nms(boxes[:, :4], boxes[:, 4], owners, threshold)


def _nms_min_area(boxes: Tensor, owners: Tensor, threshold: float) -> Tensor:
    """With the overlap as a share of the smaller box."""
    return batched_nms_numpy(boxes[:, :4], boxes[:, 4], owners, threshold, "Min")


def _nms_in_batch(
    nms: Callable, boxes: Tensor, owners: Tensor, threshold: float
) -> Tensor:
    return nms(boxes, owners, threshold)


def _nms_per_image(
    nms: Callable, boxes: Tensor, owners: Tensor, threshold: float
) -> Tensor:
    places = [torch.nonzero(owners == owner)[:, 0] for owner in torch.unique(owners)]
    kept = [
        at[nms(boxes[at], torch.zeros_like(owners[at]), threshold)] for at in places
    ]
    return torch.cat(kept) if kept else owners
