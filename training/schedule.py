"""The learning rate as a plain function of the iteration: nothing to keep, nothing to save."""


def poly_learning_rate(
    iteration: int, base: float, power: float, max_iterations: int
) -> float:
    """The learning rate of the optimizer's step `iteration`, counted from 0 over the whole training.

    Method: "poly", base * (1 - n / max_iterations) ** power. The winner's progress bar moved the schedule by one before
    its first step, so that n is 1 at iterations 0 and 1; that is what his networks were trained with, and it is kept.
    """
    return base * (1 - max(iteration, 1) / max_iterations) ** power
