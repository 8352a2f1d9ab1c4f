"""The training loss and the validation metric."""

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits


def balanced_loss(
    logits: Tensor, labels: Tensor, targets: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The mean of the mean loss over fakes and the mean loss over reals.

    Args:
        logits: (N,) float.
        labels: (N,) float in 0..1, smoothed or not; above 0.5 is FAKE.
        targets: (N,) float in 0..1, what the loss compares with; the labels if not
            given.

    Returns:
        loss, fake loss, real loss: scalars of binary cross-entropy in nats. The loss of
        a class without samples in the batch is 0, as in the winner's training, so such
        a batch counts half.
    """
    targets = labels if targets is None else targets
    losses = binary_cross_entropy_with_logits(logits, targets, reduction="none")
    fake, real = (
        losses[mask].mean() if mask.any() else losses.sum() * 0
        for mask in (labels > 0.5, labels <= 0.5)
    )
    return (fake + real) / 2, fake, real


def video_losses(scores: Iterable[tuple[str, float, float]]) -> tuple[float, float]:
    """Validation: log loss over the fake videos and over the real ones.

    Args:
        scores: (video, probability of FAKE, label 0 or 1) of each crop. A video's score
            is the mean over its crops.

    Returns:
        fake loss, real loss in nats; NaN for a class without videos.
    """
    # prediction, too, imports this module, but needs no scikit-learn
    from sklearn.metrics import log_loss

    by_video: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for video, probability, label in scores:
        by_video[video].append((probability, label))
    means = np.array(
        [np.mean(values, axis=0, dtype=np.float64) for values in by_video.values()]
    ).reshape(-1, 2)
    losses = []
    for label in (1, 0):
        rows = means[means[:, 1] == label]
        loss = log_loss(rows[:, 1], rows[:, 0], labels=[0, 1]) if len(rows) else np.nan
        losses.append(float(loss))
    return losses[0], losses[1]
