"""CutMix: a box of one picture, or of one clip in space and time, pasted into another.

Method: Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with
       Localizable Features" (2019); for clips as the fifth-placed team did, the box cut
       in time too.
"""

import numpy as np
import torch
from torch import Tensor


def cutmix(
    images: Tensor, labels: Tensor, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Paste a box of another one of the batch into each image or clip.

    The box is the same for the whole batch. Its share of the volume is drawn evenly from
    0 to 1, its centre evenly from all places; what lies outside is cut off.

    Args:
        images: (N, H, W, 3), or clips (N, T, H, W, 3).
        labels: (N,) float.

    Returns:
        copies; a label is the mean weighted by what is seen of both.
    """
    sides = images.shape[1:-1]
    share = 1 - rng.beta(1, 1)
    box = []
    for side in sides:
        half = side * share ** (1 / len(sides)) / 2
        centre = rng.uniform(0, side)
        start, stop = round(max(centre - half, 0)), round(min(centre + half, side))
        box.append(slice(start, stop))
    others = torch.from_numpy(rng.permutation(len(images)))
    mixed = images.clone()
    inside = (slice(None), *box)
    mixed[inside] = images[others][inside]
    pasted = np.prod(
        [(each.stop - each.start) / side for each, side in zip(box, sides)]
    )
    return mixed, labels + float(pasted) * (labels[others] - labels)
