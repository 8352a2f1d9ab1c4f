"""Losses and the learning-rate schedule, by hand."""

from math import log

import numpy as np
import pytest
import torch

from training.losses import balanced_loss, video_losses
from training.schedule import poly_learning_rate


def test_balanced_loss_by_hand():
    """Two fakes at 0.8 and 0.5, one real at 0.1; labels 0.99 and 0.01 (smoothed)."""
    probabilities = torch.tensor([0.8, 0.1, 0.5])
    labels = torch.tensor([0.99, 0.01, 0.99])
    loss, fake, real = balanced_loss(torch.logit(probabilities), labels)
    first = -(0.99 * log(0.8) + 0.01 * log(0.2))
    second = -(0.01 * log(0.1) + 0.99 * log(0.9))
    assert fake.item() == pytest.approx((first + log(2)) / 2, abs=1e-6)
    assert real.item() == pytest.approx(second, abs=1e-6)
    assert loss.item() == pytest.approx(((first + log(2)) / 2 + second) / 2, abs=1e-6)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_a_batch_of_one_kind_counts_half_and_has_a_gradient(label):
    logits = torch.zeros(3, requires_grad=True)
    loss, fake, real = balanced_loss(logits, torch.full((3,), label))
    assert loss.item() == pytest.approx(log(2) / 2)
    assert min(fake.item(), real.item()) == 0
    loss.backward()
    assert torch.isfinite(logits.grad).all() and logits.grad.abs().sum() > 0


def test_validation_is_per_video_by_hand():
    """The fake f scores mean(0.9, 0.5) = 0.7, the reals 0.2 and mean(0.1, 0.3, 0.5)."""
    scores = [
        ("f", 0.9, 1),
        ("r", 0.2, 0),
        ("s", 0.1, 0),
        ("f", 0.5, 1),
        ("s", 0.3, 0),
        ("s", 0.5, 0),
    ]
    fake, real = video_losses(scores)
    assert fake == pytest.approx(-log(0.7))
    assert real == pytest.approx(-(log(0.8) + log(0.7)) / 2)
    assert np.isnan(video_losses(scores[:1])[1])


def test_learning_rate_by_hand():
    rate = [poly_learning_rate(n, 0.01, 0.9, 100) for n in (0, 1, 2, 50, 99)]
    assert rate == pytest.approx(
        [0.01 * left**0.9 for left in (0.99, 0.99, 0.98, 0.5, 0.01)], rel=1e-12
    )
    assert poly_learning_rate(10, 0.3, 1.0, 40) == pytest.approx(0.3 * 0.75)
