"""From the probabilities of a video's faces to one for the video."""

import numpy as np

NO_ANSWER = 0.5  # of a video without a face or that cannot be read, as in the winner's submission

CONFIDENT_FAKE, CONFIDENT_REAL = 0.8, 0.2
LEAST_FAKES = 11  # the winner's setting, whatever the number of faces


def confident_mean(probabilities: np.ndarray) -> float:
    """The winner's confidence rule for one network.

    Args:
        probabilities: (K,) of FAKE, one for each face of the video, K at least 1.

    Returns:
        The mean of the faces above 0.8 if they are more than 1 / 2.5 of all (rounded down) and more than 11; else the
        mean of those below 0.2 if they are more than nine tenths; else the mean of all.

    Two accidents of his code are not kept: faces after the 127th were dropped, and a video with a single face raised an
    error and scored 0.5.
    """
    probabilities = np.asarray(probabilities)
    fakes = probabilities[probabilities > CONFIDENT_FAKE]
    reals = probabilities[probabilities < CONFIDENT_REAL]
    if len(fakes) > len(probabilities) // 2.5 and len(fakes) > LEAST_FAKES:
        return float(fakes.mean())
    if len(reals) > 0.9 * len(probabilities):
        return float(reals.mean())
    return float(probabilities.mean())


def ensemble_label(by_model: list[np.ndarray]) -> float:
    """The submission's label: the mean over networks of `confident_mean`; 0.5 where there is no face."""
    if not by_model or not len(by_model[0]):
        return NO_ANSWER
    return float(np.mean([confident_mean(probabilities) for probabilities in by_model]))
