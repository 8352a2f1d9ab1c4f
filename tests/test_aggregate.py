"""Each rule against a slow version written from its description, on random vectors of 1 to 127 faces, and by hand."""

import statistics

import numpy as np
import pytest

from inference.aggregate import RULES, ensemble_label, winner
from inference.extraction import frame_numbers


def slow_winner(scores):
    """The winner's rule, one face after the other."""
    fakes = [s for s in scores if s > 0.8]
    reals = [s for s in scores if s < 0.2]
    enough = int(len(scores) / 2.5)
    if len(fakes) > enough and len(fakes) > 11:
        return sum(fakes) / len(fakes)
    if len(reals) > len(scores) * 0.9:
        return sum(reals) / len(reals)
    return sum(scores) / len(scores)


def slow_confidence(scores):
    """The third team's rule, one face after the other."""
    total = weights = 0
    for score in scores:
        away = abs(score - 0.5)
        pushed = min(max(0.5 + away**0.65 * (1 if score > 0.5 else -1), 0.01), 0.99)
        total += pushed * (away + 0.0001)
        weights += away + 0.0001
    return total / weights


SLOW = {
    "winner": slow_winner,
    "winner-exact": lambda scores: slow_winner(scores) if len(scores) > 1 else 0.5,
    "mean": lambda scores: sum(scores) / len(scores),
    "median": statistics.median,
    "confidence": slow_confidence,
}


def random_scores():
    """For every length from 1 to 127: faces that agree that they are real or fake, that doubt, that contradict."""
    rng = np.random.default_rng(0)
    for count in range(1, 128):
        for _ in range(25):
            yield rng.beta(*rng.choice([0.05, 0.3, 1.0, 3.0], 2), count).astype(
                np.float32
            )


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_equals_its_slow_version(rule):
    for scores in random_scores():
        assert RULES[rule](scores) == pytest.approx(
            SLOW[rule]([float(s) for s in scores]), abs=1e-6
        )


def test_the_random_vectors_take_every_branch_of_the_winners_rule():
    branches = {"fakes": 0, "reals": 0, "all": 0, "too few fakes": 0}
    for scores in random_scores():
        fakes, answer = scores[scores > 0.8], winner(scores)
        kind = (
            "all"
            if answer == float(scores.mean())
            else "fakes"
            if answer > scores.mean()
            else "reals"
        )
        branches[kind] += 1
        branches["too few fakes"] += (
            kind != "fakes" and len(fakes) > len(scores) // 2.5 and len(fakes) <= 11
        )
    assert min(branches.values()) > 50, branches


@pytest.mark.parametrize("rule", RULES)
def test_what_holds_for_every_rule(rule):
    """The answer lies between the faces' scores (NtechLab's may leave them toward 0.01 and 0.99); order does not matter."""
    rng = np.random.default_rng(1)
    for scores in random_scores():
        answer = RULES[rule](scores)
        low, high = (
            (0.01, 0.99) if rule == "confidence" else (scores.min(), scores.max())
        )
        if len(scores) > 1 or rule != "winner-exact":
            assert low - 1e-6 <= answer <= high + 1e-6
        assert RULES[rule](rng.permutation(scores)) == pytest.approx(answer, abs=1e-6)


@pytest.mark.parametrize(
    "scores, expected",
    [
        ([0.9], 0.9),
        ([0.1], 0.1),  # one face: the rule as it stands
        ([0.9] * 11 + [0.5], 10.4 / 12),  # eleven fakes are not enough
        ([0.9] * 12 + [0.5], 0.9),
        (
            [0.9] * 12 + [0.5] * 18,
            (10.8 + 9) / 30,
        ),  # 12 of 30 is not more than 30 // 2.5
        ([0.1] * 19 + [0.7], 0.1),
        ([0.1] * 9 + [0.7], 0.16),  # nine tenths must be exceeded
    ],
)
def test_the_winners_rule_by_hand(scores, expected):
    assert winner(np.array(scores)) == pytest.approx(expected)


def test_the_two_accidents_are_kept_under_their_own_name():
    one, many = np.array([0.9]), np.array([0.1] * 127 + [0.9] * 73)
    assert [RULES[rule](one) for rule in ("winner", "winner-exact")] == pytest.approx(
        [0.9, 0.5]
    )
    # 73 of 200 are no majority; without those after the 127th all are real
    assert RULES["winner"](many) == pytest.approx((12.7 + 65.7) / 200)
    assert RULES["winner-exact"](many) == pytest.approx(0.1)


def test_confidence_by_hand():
    """d = 0.25 and -0.5: 0.5 + 0.25^0.65 = 0.9061 weighs 0.2501, and -0.1373 is clipped to 0.01 and weighs 0.5001."""
    expected = (0.2501 * (0.5 + 0.25**0.65) + 0.5001 * 0.01) / 0.7502
    assert RULES["confidence"](np.array([0.75, 0.0])) == pytest.approx(expected)
    assert RULES["confidence"](np.array([0.5])) == 0.5


def test_the_ensemble_is_the_mean_over_networks_and_no_face_is_a_half():
    assert ensemble_label(
        [np.array([0.1]), np.array([0.9]), np.array([0.2])]
    ) == pytest.approx(0.4)
    assert ensemble_label([np.zeros(0), np.zeros(0)]) == 0.5
    # NtechLab took the faces of all networks together
    both = ensemble_label([np.array([0.75]), np.array([0.0])], "confidence")
    assert both == pytest.approx(RULES["confidence"](np.array([0.75, 0.0])))


def test_frame_numbers():
    assert (
        frame_numbers(300, 32)[:5] == [0, 9, 19, 28, 38]
        and frame_numbers(300, 32)[-1] == 299
    )
    assert frame_numbers(751, 4) == [0, 250, 500, 750]
    assert frame_numbers(3, 32) == [0, 1, 2] and frame_numbers(1, 32) == [0]
