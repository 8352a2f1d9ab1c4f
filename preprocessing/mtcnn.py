"""Batched MTCNN: facenet-pytorch's networks and results, computed in another order.

facenet-pytorch crops and resizes every candidate separately, in thousands of small
calls. Here area resizing reads all its sums from one integral image per image, the
candidates of all images go through the second and third network together, and the heads
of the first network run only at positions where a face is possible.
`tests/test_mtcnn.py` compares the two box by box.

Method: Zhang et al., "Joint Face Detection and Alignment using Multi-task Cascaded
       Convolutional Networks" (2016); integral images: Viola and Jones (2001).
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from itertools import groupby
from typing import NamedTuple, TypeVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from facenet_pytorch.models.mtcnn import ONet, PNet, RNet
from facenet_pytorch.models.utils.detect_face import batched_nms_numpy, bbreg, rerec
from torch import Tensor, nn
from torchvision import ops

# PNet's receptive field and stride, in pixels of the scaled image
CELL_SIZE = 12
STRIDE = 2
RNET_SIZE, ONET_SIZE = 24, 48  # input sizes in pixels
SCALE_FACTOR = 0.709  # from one pyramid level to the next, facenet-pytorch's default
# The first pass over PNet's features may round differently from the second pass, which
# decides.
LOGIT_TOLERANCE = 1e-3
# Candidates per forward pass. On two CPU cores, 64 to 256 take the same time.
CHUNK_SIZES = {"cpu": 128, "cuda": 8192}

Net = TypeVar("Net", bound=nn.Module)
Item = TypeVar("Item")
Result = TypeVar("Result")
# boxes with scores (M, 5), image indices (M,), overlap threshold -> indices to keep
Nms = Callable[[Tensor, Tensor, float], Tensor]
ApplyNms = Callable[[Nms, Tensor, Tensor, float], Tensor]


class Cascade:
    """MTCNN's three networks (PNet, RNet, ONet) on one device."""

    def __init__(self, device: str):
        self.device = torch.device(device)
        self._pnet = self._prepare(PNet())
        self._rnet = self._prepare(RNet())
        self._onet = self._prepare(ONet())
        score_head, offset_head = self._pnet.conv4_1, self._pnet.conv4_2
        # PNet's heads are 1x1 convolutions, applied here as linear layers
        self._score_head = score_head.weight.flatten(1), score_head.bias
        self._offset_head = offset_head.weight.flatten(1), offset_head.bias
        weight, bias = self._score_head
        self._face_logit_head = weight[1] - weight[0], bias[1] - bias[0]
        self._chunk_size = CHUNK_SIZES[self.device.type]
        # Each forward pass runs in one thread: a convolution's sums differ in the last
        # digit with the number of threads that share it, and boxes must not.
        threads = torch.get_num_threads() if self.device.type == "cpu" else 1
        self._pool = None
        if threads > 1:
            set_one_thread = partial(torch.set_num_threads, 1)
            self._pool = ThreadPoolExecutor(threads, initializer=set_one_thread)

    def _prepare(self, net: Net) -> Net:
        for name, layer in list(net.named_children()):
            if isinstance(layer, nn.MaxPool2d):
                assert isinstance(layer.kernel_size, int)
                setattr(net, name, MaxPool(layer.kernel_size))
            elif isinstance(layer, nn.PReLU) and hasattr(
                net, name.replace("prelu", "conv")
            ):
                setattr(net, name, PReLU(layer.weight.detach().to(self.device)))
        net = net.eval().requires_grad_(False).to(self.device)
        return net.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(
        self,
        images: Sequence[np.ndarray],
        thresholds: Sequence[float],
        min_face_size: int,
        batched_nms: bool,
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Detect faces in images (H, W, 3) uint8 RGB, which may differ in size.

        Args:
            thresholds: minimum face probability after each of the three networks.
            min_face_size: side of the smallest face to detect, in pixels.
            batched_nms: run non-maximum suppression on all images at once, as
                facenet-pytorch does in a batch. Large float32 offsets then separate the
                images, which shifts borderline boxes. Otherwise run it per image.

        Returns:
            boxes with probabilities (K, 5) and landmarks (K, 5, 2) of each image,
            float32, in no order.
        """
        apply_nms = _apply_batched if batched_nms else _apply_per_image
        integral_images = IntegralImages(images, self.device)
        boxes, image_indices = self._propose(
            integral_images, thresholds[0], min_face_size, apply_nms
        )
        boxes, image_indices = self._refine(
            integral_images, boxes, image_indices, thresholds[1], apply_nms
        )
        boxes, image_indices, landmarks = self._detect(
            integral_images, boxes, image_indices, thresholds[2], apply_nms
        )
        all_boxes, all_landmarks = boxes.cpu().numpy(), landmarks.cpu().numpy()
        indices = image_indices.cpu().numpy()
        return [
            (all_boxes[indices == index], all_landmarks[indices == index])
            for index in range(len(images))
        ]

    def _propose(
        self,
        integral_images: "IntegralImages",
        threshold: float,
        min_face_size: int,
        apply_nms: ApplyNms,
    ) -> tuple[Tensor, Tensor]:
        """Run PNet at all scales: square boxes (M, 4) and their image indices (M,)."""

        def propose(level: tuple[list[int], float]) -> tuple[Tensor, Tensor]:
            group, scale = level
            images = integral_images.downscale(group, scale)
            boxes, image_indices = self._propose_at_scale(images, scale, threshold)
            return boxes, image_indices + group[0]

        levels = [
            (group, scale)
            for group in integral_images.groups
            for scale in _pyramid_scales(
                *integral_images.shapes[group[0]], min_face_size
            )
        ]
        by_scale = defaultdict(list)
        for (_, scale), candidates in zip(levels, self._map(propose, levels)):
            by_scale[scale].append(candidates)
        kept = []
        for of_all_images in by_scale.values():
            boxes, image_indices = _concatenate(of_all_images)
            keep = apply_nms(_nms, boxes, image_indices, 0.5)
            kept.append((boxes[keep], image_indices[keep]))
        boxes, image_indices = _concatenate(kept)
        keep = apply_nms(_nms, boxes, image_indices, 0.7)
        boxes, image_indices = boxes[keep], image_indices[keep]
        sides = (boxes[:, 2:4] - boxes[:, :2]).repeat(1, 2)
        return rerec(boxes[:, :4] + boxes[:, 5:] * sides), image_indices

    def proposal_features(self, images: Tensor) -> Tensor:
        """PNet without its heads.

        Images (N, 3, h, w) to features (N, 32, h / 2 - 5, w / 2 - 5), channels last.
        """
        net = self._pnet
        features = net.pool1(net.prelu1(net.conv1(images)))
        return net.prelu3(net.conv3(net.prelu2(net.conv2(features))))

    def _propose_at_scale(
        self, images: Tensor, scale: float, threshold: float
    ) -> tuple[Tensor, Tensor]:
        """Run PNet on images (N, 3, h, w) of one scale.

        Returns:
            rows x1, y1, x2, y2, probability, four box offsets (M, 9), and image
            indices (M,).
        """
        features = self.proposal_features(images)
        _, channels, height, width = features.shape
        features = features.permute(0, 2, 3, 1).reshape(-1, channels)
        weight, bias = self._face_logit_head
        logit_threshold = math.log(threshold / (1 - threshold)) - LOGIT_TOLERANCE
        positions = torch.nonzero(features @ weight + bias >= logit_threshold)[:, 0]
        features = features[positions]
        probabilities = F.linear(features, *self._score_head).softmax(1)[:, 1:]
        offsets = F.linear(features, *self._offset_head)
        x, y = positions % width, positions // width % height
        corner = torch.stack([x, y], 1).float() * STRIDE + 1
        top_left = (corner / scale).floor()
        bottom_right = ((corner + CELL_SIZE - 1) / scale).floor()
        keep = probabilities[:, 0] >= threshold
        rows = torch.cat([top_left, bottom_right, probabilities, offsets], 1)
        return rows[keep], (positions // (width * height))[keep]

    def _refine(
        self,
        integral_images: "IntegralImages",
        boxes: Tensor,
        image_indices: Tensor,
        threshold: float,
        apply_nms: ApplyNms,
    ) -> tuple[Tensor, Tensor]:
        """Run RNet on boxes (M, 4): the square boxes it keeps, and image indices."""
        boxes, image_indices, crops = integral_images.crop_and_resize(
            boxes, image_indices, RNET_SIZE, self._chunk_size
        )
        if not len(boxes):
            return boxes, image_indices
        offsets, scores = self._run(self._rnet, crops)
        keep = scores[:, 1] > threshold
        boxes = torch.cat([boxes, scores[:, 1:]], 1)[keep]
        image_indices, offsets = image_indices[keep], offsets[keep]
        keep = apply_nms(_nms, boxes, image_indices, 0.7)
        boxes = rerec(bbreg(boxes[keep], offsets[keep]))
        return boxes[:, :4], image_indices[keep]

    def _detect(
        self,
        integral_images: "IntegralImages",
        boxes: Tensor,
        image_indices: Tensor,
        threshold: float,
        apply_nms: ApplyNms,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run ONet on boxes (M, 4).

        Returns:
            boxes with probabilities (K, 5), image indices (K,), landmarks (K, 5, 2).
        """
        boxes, image_indices, crops = integral_images.crop_and_resize(
            boxes, image_indices, ONET_SIZE, self._chunk_size
        )
        if not len(boxes):
            return boxes.new_zeros(0, 5), image_indices, boxes.new_zeros(0, 5, 2)
        offsets, landmarks, scores = self._run(self._onet, crops)
        keep = scores[:, 1] > threshold
        boxes = torch.cat([boxes, scores[:, 1:]], 1)[keep]
        image_indices, offsets = image_indices[keep], offsets[keep]
        landmarks = landmarks.view(-1, 2, 5)[keep].mT
        # landmarks are relative to the box before regression; bbreg works in place
        sizes = boxes[:, None, 2:4] - boxes[:, None, :2] + 1
        landmarks = sizes * landmarks + boxes[:, None, :2] - 1
        boxes = bbreg(boxes, offsets)
        keep = apply_nms(_nms_min_area, boxes, image_indices, 0.7)
        return boxes[keep], image_indices[keep], landmarks[keep]

    def _run(self, net: nn.Module, chunks: Sequence[Tensor]) -> list[Tensor]:
        return _concatenate(self._map(net, chunks))

    def _map(
        self, function: Callable[[Item], Result], items: Sequence[Item]
    ) -> Iterable[Result]:
        """Apply a function to each item, each in one thread."""
        if self._pool is None:
            return map(function, items)
        return self._pool.map(torch.inference_mode()(function), items)


class IntegralImages:
    """Integral images, for area resizing of images and of crops.

    The results are bit-identical to those of `interpolate(mode="area")`.

    An integral image holds at (y, x) the sum of all pixels above and to the left, so
    the sum over a rectangle takes four reads. Each position holds four int32, the last
    one unused, which are gathered as one number of 16 bytes. The sums may overflow;
    their differences are still correct.
    """

    def __init__(self, images: Sequence[np.ndarray], device: torch.device):
        self.shapes = [(image.shape[0], image.shape[1]) for image in images]
        lengths = [(height + 1) * (width + 1) for height, width in self.shapes]
        self._starts = torch.tensor([0, *np.cumsum(lengths)[:-1]], device=device)
        self._heights_widths = torch.tensor(self.shapes, device=device)
        self._row_lengths = self._heights_widths[:, 1] + 1
        self._sums = torch.empty(sum(lengths), 4, dtype=torch.int32, device=device)
        for image, sums in zip(images, self._sums.split(lengths)):
            height, width, _ = image.shape
            _write_integral_image(image, sums.view(height + 1, width + 1, 4))
        self._int16_sums = self._sums.to(torch.int16)
        self._device = device
        # indices of consecutive images of one size, to be downscaled together
        if device.type == "cpu":  # one image at a time stays in the cache
            self.groups = [[index] for index in range(len(images))]
        else:
            self.groups = [
                list(group)
                for _, group in groupby(range(len(images)), key=self.shapes.__getitem__)
            ]

    def downscale(self, indices: Sequence[int], scale: float) -> Tensor:
        """Resize consecutive images of one size.

        Returns:
            (N, 3, h, w) float32 in -1..1, channels last.
        """
        height, width = self.shapes[indices[0]]
        count, length = len(indices), (height + 1) * (width + 1)
        start = self._starts[indices[0]]
        # sums of up to 32767 are also correct modulo 2^16, in half the memory
        fits_int16 = (1 / scale + 2) ** 2 * 255 < 2**15
        all_sums = self._int16_sums if fits_int16 else self._sums
        sums = all_sums[start : start + count * length]
        plan = _plan_resize(count, height, width, scale, self._device)
        sums = sums.view(count, height + 1, width + 1, 4)
        sums = _gather_difference(sums, 1, plan.bottom, plan.top).view(-1, 4)
        sums = _gather_difference(sums, 0, plan.right, plan.left)
        sums = sums.view(count, len(plan.top), -1, 4)
        return _normalized_means(sums, plan.heights, plan.widths)

    def crop_and_resize(
        self, boxes: Tensor, image_indices: Tensor, size: int, chunk_size: int
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Crop boxes (M, 4), and drop those that lie outside of their image.

        Returns:
            remaining boxes, their image indices, and the crops as chunks
            (m, 3, size, size) float32 in -1..1 with m <= `chunk_size`.
        """
        corners = boxes.trunc().long()
        top_left = corners[:, :2].clamp(min=1) - 1
        bottom_right = torch.minimum(
            corners[:, 2:], self._heights_widths[image_indices].flip(1)
        )
        inside = (bottom_right > top_left).all(1)
        boxes, image_indices = boxes[inside], image_indices[inside]
        if not len(boxes):
            return boxes, image_indices, []
        chunks = zip(
            top_left[inside].split(chunk_size),
            bottom_right[inside].split(chunk_size),
            image_indices.split(chunk_size),
        )
        crops = [self._crop_chunk(*chunk, size) for chunk in chunks]
        return boxes, image_indices, crops

    def _crop_chunk(
        self, top_left: Tensor, bottom_right: Tensor, image_indices: Tensor, size: int
    ) -> Tensor:
        (left, top), (width, height) = top_left.T, (bottom_right - top_left).T
        y_starts, y_ends = _bin_edges(height, size)
        x_starts, x_ends = _bin_edges(width, size)
        row_lengths = self._row_lengths[image_indices]
        origins = self._starts[image_indices] + top * row_lengths + left
        rows = (
            origins[:, None] + torch.cat([y_ends, y_starts], 1) * row_lengths[:, None]
        )
        positions = rows[:, :, None] + torch.cat([x_ends, x_starts], 1)[:, None, :]
        sums = _pack_channels(self._sums).index_select(0, positions.view(-1))
        sums = _unpack_channels(sums, self._sums.dtype)
        sums = sums.view(-1, 2 * size, 2 * size, 4)
        sums = sums[:, :size] - sums[:, size:]
        sums = sums[:, :, :size] - sums[:, :, size:]
        return _normalized_means(sums, y_ends - y_starts, x_ends - x_starts)


class ResizePlan(NamedTuple):
    """Bins of a downscaled image.

    `top` and `bottom` are rows of the integral image, `left` and `right` are positions
    in the flattened row differences, `heights` and `widths` are bin sizes in pixels.
    """

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
        _bin_edges(torch.tensor(side, device=device), int(side * scale + 1))
        for side in (height, width)
    )
    starts = torch.arange(count * len(top), device=device)[:, None] * (width + 1)
    return ResizePlan(
        top=top,
        bottom=bottom,
        left=(starts + left).view(-1),
        right=(starts + right).view(-1),
        heights=bottom - top,
        widths=right - left,
    )


class MaxPool(nn.Module):
    """Max pooling with stride 2 and `ceil_mode`.

    PyTorch's own takes five times as long on a CPU, because it also records the argmax.
    """

    def __init__(self, kernel_size: int):
        super().__init__()
        self.kernel_size = kernel_size

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, h, w)."""
        for dim in (2, 3):
            count = -(-(images.shape[dim] - self.kernel_size) // 2) + 1
            first, *others = (
                _stride_2(images, dim, start, count)
                for start in range(self.kernel_size)
            )
            result = torch.empty_like(first)
            for other in others:
                # count, or one less where the last window extends past the edge
                length = other.shape[dim]
                torch.maximum(
                    first.narrow(dim, 0, length),
                    other,
                    out=result.narrow(dim, 0, length),
                )
                if length < count and first is not result:
                    result.narrow(dim, length, 1).copy_(first.narrow(dim, length, 1))
                first = result
            images = result
        return images


class PReLU(nn.Module):
    """PReLU of channels-last features, applied to whole rows of pixels.

    PyTorch's own processes only a few channels at a time.
    """

    def __init__(self, slopes: Tensor):
        super().__init__()
        self.slopes = slopes

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        count, channels, height, width = features.shape
        rows = features.permute(0, 2, 3, 1).reshape(count * height, width * channels)
        activated = F.prelu(rows, self.slopes.repeat(width))
        return activated.view(count, height, width, channels).permute(0, 3, 1, 2)


def _stride_2(images: Tensor, dim: int, start: int, count: int) -> Tensor:
    """Every second row (dim 2) or column (dim 3), at most `count`."""
    if dim == 2:
        return images[:, :, start::2][:, :, :count]
    return images[:, :, :, start::2][:, :, :, :count]


def _pyramid_scales(height: int, width: int, min_face_size: int) -> list[float]:
    """Scales of the image pyramid in descending order.

    At the last one, the smallest detectable face still fits the image.
    """
    scales = []
    scale = CELL_SIZE / min_face_size
    side = min(height, width) * scale
    while side >= CELL_SIZE:
        scales.append(scale)
        scale, side = scale * SCALE_FACTOR, side * SCALE_FACTOR
    return scales


def _write_integral_image(image: np.ndarray, sums: Tensor) -> None:
    """Write the sums (H + 1, W + 1, 4) int32 of an image (H, W, 3) uint8."""
    if sums.device.type == "cpu":
        rgba = cv2.cvtColor(image, cv2.COLOR_RGB2RGBA)
        cv2.integral(rgba, sums.numpy(), sdepth=cv2.CV_32S)
    else:
        padded = F.pad(torch.from_numpy(image).to(sums.device), (0, 1, 1, 0, 1, 0))
        column_sums = padded.cumsum(0, dtype=torch.int32)
        torch.cumsum(column_sums, 1, dtype=torch.int32, out=sums)


def _bin_edges(length: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Starts and ends of `count` bins along an axis, as in PyTorch's area resizing.

    Bins overlap where the length is not a multiple of `count`.
    """
    steps = torch.arange(count, device=length.device)
    length = length[..., None]
    return steps * length // count, -(-(steps + 1) * length // count)


def _pack_channels(sums: Tensor) -> Tensor:
    """View sums (..., 4) as one number of 8 or 16 bytes each, the fastest to gather."""
    dtype = torch.float64 if sums.dtype == torch.int16 else torch.complex128
    return sums.view(dtype).squeeze(-1)


def _unpack_channels(packed: Tensor, dtype: torch.dtype) -> Tensor:
    """The inverse of `_pack_channels`: sums (..., 4) of type `dtype`."""
    return packed.unsqueeze(-1).view(dtype)


def _gather_difference(sums: Tensor, dim: int, ends: Tensor, starts: Tensor) -> Tensor:
    """Sums (..., 4) at positions `ends` of a dimension minus those at `starts`."""
    packed = _pack_channels(sums)
    return _unpack_channels(packed.index_select(dim, ends), sums.dtype) - (
        _unpack_channels(packed.index_select(dim, starts), sums.dtype)
    )


def _normalized_means(sums: Tensor, heights: Tensor, widths: Tensor) -> Tensor:
    """Bin sums (N, h, w, 4) to means (N, 3, h, w) float32 in -1..1, channels last."""
    count, height, width, _ = sums.shape
    means = sums.float().view(count, height, width * 4)
    # (mean - 127.5) / 128: 128, a power of two, adds no rounding to the divisor
    means.div_(heights.float().view(-1, height, 1))
    divisors = (widths * 128).float().repeat_interleave(4, -1)
    means.div_(divisors.view(-1, 1, width * 4)).sub_(127.5 / 128)
    return means.view(count, height, width, 4)[..., :3].permute(0, 3, 1, 2)


def _concatenate(parts: Iterable[Sequence[Tensor]]) -> list[Tensor]:
    """Concatenate the first tensors of all parts, the second ones, and so on."""
    return [torch.cat(tensors) for tensors in zip(*parts)]


def _nms(boxes: Tensor, image_indices: Tensor, threshold: float) -> Tensor:
    """Non-maximum suppression with IoU as the overlap."""
    return ops.batched_nms(boxes[:, :4], boxes[:, 4], image_indices, threshold)


def _nms_min_area(boxes: Tensor, image_indices: Tensor, threshold: float) -> Tensor:
    """The same with the intersection over the smaller box's area as the overlap."""
    return batched_nms_numpy(boxes[:, :4], boxes[:, 4], image_indices, threshold, "Min")


def _apply_batched(
    nms: Nms, boxes: Tensor, image_indices: Tensor, threshold: float
) -> Tensor:
    """Apply NMS to all images in one call."""
    return nms(boxes, image_indices, threshold)


def _apply_per_image(
    nms: Nms, boxes: Tensor, image_indices: Tensor, threshold: float
) -> Tensor:
    """Apply NMS to one image at a time."""
    kept = []
    for index in torch.unique(image_indices):
        rows = torch.nonzero(image_indices == index)[:, 0]
        kept.append(rows[nms(boxes[rows], torch.zeros_like(rows), threshold)])
    return torch.cat(kept) if kept else image_indices
