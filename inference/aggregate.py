"""Aggregation: from the probabilities of a video's faces to one label for the video.

`RULES` holds the available rules. Each takes the probabilities of FAKE of a video's
faces, (K,) with K at least 1.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

TOP_FACES = 8  # shown in a report
# The label of a video without a face or that cannot be read, as in the winner's
# submission.
NO_ANSWER = 0.5

CONFIDENT_FAKE, CONFIDENT_REAL = 0.8, 0.2
MIN_FAKES = 11  # the winner's setting, whatever the number of faces
MAX_FACES = 127  # the winner allocated 4 x 32 faces and filled one fewer at most

SHARPNESS, CLIP, MIN_WEIGHT = 0.65, 0.01, 1e-4  # NtechLab's settings


def winner(probabilities: np.ndarray) -> float:
    """The winner's confidence rule for one network.

    The mean of the faces above 0.8 if they are more than 1 / 2.5 of all (rounded down)
    and more than 11; else the mean of those below 0.2 if they are more than nine
    tenths; else the mean of all.
    """
    fakes = probabilities[probabilities > CONFIDENT_FAKE]
    reals = probabilities[probabilities < CONFIDENT_REAL]
    if len(fakes) > len(probabilities) // 2.5 and len(fakes) > MIN_FAKES:
        return float(fakes.mean())
    if len(reals) > 0.9 * len(probabilities):
        return float(reals.mean())
    return float(probabilities.mean())


def winner_exact(probabilities: np.ndarray) -> float:
    """`winner` with two bugs of the winner's code.

    Faces after the 127th are dropped. A single face raised an error, which gave the
    label 0.5.
    """
    return NO_ANSWER if len(probabilities) == 1 else winner(probabilities[:MAX_FACES])


def confidence(probabilities: np.ndarray) -> float:
    """NtechLab's rule (third place): a mean weighted by confidence.

    With d = p - 0.5, the mean of 0.5 + sign(d) |d|^0.65, clipped to 0.01..0.99, with
    the weights |d| + 0.0001.
    """
    distance = np.asarray(probabilities, np.float64) - 0.5
    sharpened = 0.5 + np.sign(distance) * np.abs(distance) ** SHARPNESS
    weights = np.abs(distance) + MIN_WEIGHT
    return float(np.average(np.clip(sharpened, CLIP, 1 - CLIP), weights=weights))


RULES: dict[str, Callable[[np.ndarray], float]] = {
    "winner": winner,
    "winner-exact": winner_exact,
    "mean": lambda probabilities: float(np.mean(probabilities)),
    "median": lambda probabilities: float(np.median(probabilities)),
    "confidence": confidence,
}
# Rules applied once to the faces of all networks together, as NtechLab did.
POOLED = {"confidence"}


def ensemble_label(by_model: list[np.ndarray], rule: str = "winner") -> float:
    """The submission's label: the mean over networks of the rule's label for each.

    Networks without a score, as a clip network where no clip could be cut, are left out;
    0.5 where there is no score at all.
    """
    by_model = [each for each in by_model if len(each)]
    if not by_model:
        return NO_ANSWER
    if rule in POOLED:
        by_model = [np.concatenate(by_model)]
    return float(np.mean([RULES[rule](probabilities) for probabilities in by_model]))


def top_faces(
    probabilities: Mapping[str, Sequence[float]], count: int = TOP_FACES
) -> list[int]:
    """Indices of the top-k faces by their mean over networks, highest first."""
    means = np.mean(list(probabilities.values()), axis=0)
    return np.argsort(-means, kind="stable")[:count].tolist()
