"""Aggregation: from the probabilities of a video's faces to one label for the video.

`RULES` holds the available rules. Each takes the probabilities of FAKE of a video's
faces, (K,) with K at least 1; those of `TRACKED` also the track of each face, (K,).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

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


def vote(probabilities: np.ndarray, tracks: np.ndarray | None = None) -> float:
    """The rule of the fourth-placed team, with one label for each person.

    A person's is the mean of the scores above 0.85 if they are more than 70 %, else of
    those below 0.15 if they are, else of all. The video's is the highest label if that
    is above 0.9 or all are above 0.6, the lowest if all are below 0.4, else their mean.

    Args:
        tracks: number of the person of each face; one person if not given.
    """
    if tracks is None:
        tracks = np.zeros(len(probabilities))
    people = np.array(
        [_vote_of_one(probabilities[tracks == track]) for track in np.unique(tracks)]
    )
    if people.max() > 0.9 or people.min() > 0.6:
        return float(people.max())
    return float(people.min() if people.max() < 0.4 else people.mean())


def _vote_of_one(probabilities: np.ndarray) -> float:
    for chosen in (probabilities > 0.85, probabilities < 0.15):
        if chosen.mean() > 0.7:
            return float(probabilities[chosen].mean())
    return float(probabilities.mean())


RULES: dict[str, Callable[..., float]] = {
    "winner": winner,
    "winner-exact": winner_exact,
    "mean": lambda probabilities: float(np.mean(probabilities)),
    "median": lambda probabilities: float(np.median(probabilities)),
    "confidence": confidence,
    "vote": vote,
}
# Rules applied once to the faces of all networks together, as NtechLab did.
POOLED = {"confidence"}
# Rules that want to know which faces are the same person's.
TRACKED = {"vote"}


class Aggregation(NamedTuple):
    """How the scores of an ensemble's networks become a video's label.

    rule: one of `RULES`.
    weights: of the networks' labels by name; empty: all alike.
    shrink: factor of the label's distance from 0.5.
    """

    rule: str = "winner"
    weights: Mapping[str, float] = {}
    shrink: float = 1.0


WINNER = Aggregation()


def ensemble_label(
    by_model: Mapping[str, np.ndarray],
    aggregation: Aggregation = WINNER,
    tracks: Mapping[str, np.ndarray] | None = None,
) -> float:
    """A video's label: the mean over networks of the rule's label for each.

    Networks without a score, as a clip network where no clip could be cut, are left out;
    0.5 where there is no score at all.

    Args:
        by_model: by the network's name the probabilities of the faces, (K,).
        tracks: likewise the person of each face, for a rule of `TRACKED`.
    """
    by_model = {name: each for name, each in by_model.items() if len(each)}
    weights = [aggregation.weights.get(name, 1.0) for name in by_model]
    if not sum(weights):
        return NO_ANSWER
    rule = RULES[aggregation.rule]
    if aggregation.rule in POOLED:
        return _shrink(rule(np.concatenate([*by_model.values()])), aggregation)
    if aggregation.rule in TRACKED and tracks is not None:
        labels = [rule(each, tracks[name]) for name, each in by_model.items()]
    else:
        labels = [rule(each) for each in by_model.values()]
    # the plain mean where it serves: a weighted one rounds differently
    same = len({*weights}) == 1
    label = np.mean(labels) if same else np.average(labels, weights=weights)
    return _shrink(float(label), aggregation)


def _shrink(label: float, aggregation: Aggregation) -> float:
    if aggregation.shrink == 1:
        return label
    return 0.5 + (label - 0.5) * aggregation.shrink


def top_faces(
    probabilities: Mapping[str, Sequence[float]], count: int = TOP_FACES
) -> list[int]:
    """Indices of the top-k faces by their mean over networks, highest first.

    NaN where a network does not see a face; a face that none sees comes last.
    """
    scores = np.array([*probabilities.values()])
    seen = ~np.isnan(scores)
    counts = seen.sum(0)
    sums = np.where(seen, scores, 0).sum(0)
    means = np.where(counts, sums / np.maximum(counts, 1), -1)
    return np.argsort(-means, kind="stable")[:count].tolist()
