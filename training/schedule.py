"""The learning-rate schedule: a pure function of the iteration, without state."""


def poly_learning_rate(
    iteration: int, base: float, power: float, max_iterations: int
) -> float:
    """The learning rate of step `iteration`, counted from 0 over the whole training.

    Method: "poly", base * (1 - n / max_iterations) ** power. The winner's progress bar
    advanced the schedule by one before its first step, so that n is 1 at iterations 0
    and 1. His networks were trained that way, so it is kept.
    """
    return base * (1 - max(iteration, 1) / max_iterations) ** power
