"""Aggregation rules against slow reference versions on random scores, and by hand."""

import statistics

import numpy as np
import pytest

from inference.aggregate import RULES, Aggregation, ensemble_label, vote, winner
from inference.extraction import frame_numbers


def slow_winner(scores):
    """The winner's rule, written from its description."""
    fakes = [s for s in scores if s > 0.8]
    reals = [s for s in scores if s < 0.2]
    enough = int(len(scores) / 2.5)
    if len(fakes) > enough and len(fakes) > 11:
        return sum(fakes) / len(fakes)
    if len(reals) > len(scores) * 0.9:
        return sum(reals) / len(reals)
    return sum(scores) / len(scores)


def slow_confidence(scores):
    """The rule of the third team (NtechLab), written from its description."""
    total = weights = 0
    for score in scores:
        distance = abs(score - 0.5)
        sign = 1 if score > 0.5 else -1
        sharpened = min(max(0.5 + distance**0.65 * sign, 0.01), 0.99)
        total += sharpened * (distance + 0.0001)
        weights += distance + 0.0001
    return total / weights


def slow_vote(scores):
    """The rule of the fourth team for one person, written from its description."""
    high = [s for s in scores if s > 0.85]
    low = [s for s in scores if s < 0.15]
    if len(high) / len(scores) > 0.7:
        return sum(high) / len(high)
    if len(low) / len(scores) > 0.7:
        return sum(low) / len(low)
    return sum(scores) / len(scores)


SLOW = {
    "vote": slow_vote,
    "winner": slow_winner,
    "winner-exact": lambda scores: slow_winner(scores) if len(scores) > 1 else 0.5,
    "mean": lambda scores: sum(scores) / len(scores),
    "median": statistics.median,
    "confidence": slow_confidence,
}


def random_scores():
    """Scores of 1 to 127 faces, from unanimous to uncertain and contradictory."""
    rng = np.random.default_rng(0)
    for count in range(1, 128):
        for _ in range(25):
            parameters = rng.choice([0.05, 0.3, 1.0, 3.0], 2)
            yield rng.beta(*parameters, count).astype(np.float32)


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_equals_its_slow_version(rule):
    for scores in random_scores():
        expected = SLOW[rule]([float(s) for s in scores])
        assert RULES[rule](scores) == pytest.approx(expected, abs=1e-6)


def test_the_random_vectors_take_every_branch_of_the_winners_rule():
    branches = {"fakes": 0, "reals": 0, "all": 0, "too few fakes": 0}
    for scores in random_scores():
        fakes, answer = len(scores[scores > 0.8]), winner(scores)
        if answer == float(scores.mean()):
            branch = "all"
        else:
            branch = "fakes" if answer > scores.mean() else "reals"
        branches[branch] += 1
        branches["too few fakes"] += (
            branch != "fakes" and len(scores) // 2.5 < fakes <= 11
        )
    assert min(branches.values()) > 50, branches


@pytest.mark.parametrize("rule", RULES)
def test_what_holds_for_every_rule(rule):
    """The label lies within the range of the scores, and their order does not matter.

    NtechLab's rule may leave the range, within 0.01 and 0.99.
    """
    rng = np.random.default_rng(1)
    for scores in random_scores():
        answer = RULES[rule](scores)
        low, high = scores.min(), scores.max()
        if rule == "confidence":
            low, high = 0.01, 0.99
        if len(scores) > 1 or rule != "winner-exact":
            assert low - 1e-6 <= answer <= high + 1e-6
        assert RULES[rule](rng.permutation(scores)) == pytest.approx(answer, abs=1e-6)


@pytest.mark.parametrize(
    "scores, expected",
    [
        ([0.9], 0.9),
        ([0.1], 0.1),
        ([0.9] * 11 + [0.5], 10.4 / 12),  # eleven fakes are not enough
        ([0.9] * 12 + [0.5], 0.9),
        # 12 of 30 is not more than 30 // 2.5
        ([0.9] * 12 + [0.5] * 18, (10.8 + 9) / 30),
        ([0.1] * 19 + [0.7], 0.1),
        ([0.1] * 9 + [0.7], 0.16),  # nine tenths must be exceeded
    ],
)
def test_the_winners_rule_by_hand(scores, expected):
    assert winner(np.array(scores)) == pytest.approx(expected)


def test_the_two_accidents_are_kept_under_their_own_name():
    one, many = np.array([0.9]), np.array([0.1] * 127 + [0.9] * 73)
    answers = [RULES[rule](one) for rule in ("winner", "winner-exact")]
    assert answers == pytest.approx([0.9, 0.5])
    # 73 fakes of 200 are too few; the exact rule uses the first 127 faces, all real
    assert RULES["winner"](many) == pytest.approx((12.7 + 65.7) / 200)
    assert RULES["winner-exact"](many) == pytest.approx(0.1)


def test_confidence_by_hand():
    """Distances d = 0.25 and -0.5 from 0.5.

    0.5 + 0.25^0.65 = 0.9061 has the weight 0.2501; 0.5 - 0.5^0.65 = -0.1373 is clipped
    to 0.01 and has the weight 0.5001.
    """
    expected = (0.2501 * (0.5 + 0.25**0.65) + 0.5001 * 0.01) / 0.7502
    assert RULES["confidence"](np.array([0.75, 0.0])) == pytest.approx(expected)
    assert RULES["confidence"](np.array([0.5])) == 0.5


def test_the_ensemble_is_the_mean_over_networks_and_no_face_is_a_half():
    scores = {"a": np.array([0.1]), "b": np.array([0.9]), "c": np.array([0.2])}
    assert ensemble_label(scores) == pytest.approx(0.4)
    assert ensemble_label({"a": np.zeros(0), "b": np.zeros(0)}) == 0.5
    # NtechLab pooled the faces of all networks
    scores = {"a": np.array([0.75]), "b": np.array([0.0])}
    both = ensemble_label(scores, Aggregation("confidence"))
    assert both == pytest.approx(RULES["confidence"](np.array([0.75, 0.0])))


@pytest.mark.parametrize(
    ("people", "expected"),
    [
        ([[0.95, 0.95], [0.1]], 0.95),  # the highest is above 0.9
        ([[0.7], [0.8]], 0.8),  # all above 0.6: the highest
        ([[0.3], [0.1]], 0.1),  # all below 0.4: the lowest
        ([[0.3], [0.7]], 0.5),  # else the mean
        ([[0.88, 0.88, 0.88, 0.1], [0.5]], 0.69),  # 75 % of one are above 0.85
    ],
)
def test_the_fourth_teams_vote_over_persons_by_hand(people, expected):
    scores = np.concatenate([np.array(each) for each in people])
    tracks = np.concatenate([np.full(len(each), n) for n, each in enumerate(people)])
    assert vote(scores, tracks) == pytest.approx(expected)


def test_frame_numbers():
    numbers = frame_numbers(300, 32)
    assert numbers[:5] == [0, 9, 19, 28, 38] and numbers[-1] == 299
    assert frame_numbers(751, 4) == [0, 250, 500, 750]
    assert frame_numbers(3, 32) == [0, 1, 2] and frame_numbers(1, 32) == [0]
