"""The learning-rate schedules: pure functions of the iteration, without state."""

import math


def poly_learning_rate(
    iteration: int, base: float, power: float, max_iterations: int
) -> float:
    """The learning rate of step `iteration`, counted from 0 over the whole training.

    Method: "poly", base * (1 - n / max_iterations) ** power. The winner's progress bar
    advanced the schedule by one before its first step, so that n is 1 at iterations 0
    and 1. His networks were trained that way, so it is kept.
    """
    return base * (1 - max(iteration, 1) / max_iterations) ** power


def exponential_learning_rate(epoch: int, base: float, decay: float) -> float:
    """The learning rate of epoch `epoch`, counted from 0: `decay` times less in each."""
    return base * decay**epoch


def cosine_learning_rate(
    iteration: int, base: float, warmup: float, max_iterations: int
) -> float:
    """The learning rate of step `iteration`: a linear rise, then half a cosine to 0.

    Method: Loshchilov and Hutter (2017), with the warm-up of Goyal et al. (2017).

    Args:
        warmup: fraction of `max_iterations` over which it rises.
    """
    rising = warmup * max_iterations
    if iteration < rising:
        return base * (iteration + 1) / (rising + 1)
    position = (iteration - rising) / (max_iterations - rising)
    return base * (1 + math.cos(math.pi * position)) / 2
