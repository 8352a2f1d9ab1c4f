import numpy as np
import pytest

from inference.aggregate import confident_mean, ensemble_label
from inference.pipeline import frame_numbers


def slow_rule(scores):
    """The winner's rule, one face after the other."""
    fakes = [s for s in scores if s > 0.8]
    reals = [s for s in scores if s < 0.2]
    enough = int(len(scores) / 2.5)
    if len(fakes) > enough and len(fakes) > 11:
        return sum(fakes) / len(fakes)
    if len(reals) > len(scores) * 0.9:
        return sum(reals) / len(reals)
    return sum(scores) / len(scores)


def test_the_rule_equals_the_slow_version():
    rng = np.random.default_rng(0)
    branches = set()
    for _ in range(3000):
        count = rng.integers(1, 160)
        lean = rng.choice([0.05, 0.3, 1.0, 3.0], 2)
        scores = rng.beta(*lean, count).astype(np.float32)
        expected = slow_rule([float(s) for s in scores])
        assert confident_mean(scores) == pytest.approx(expected, abs=1e-6)
        mean = float(np.mean(scores))
        branches.add(0 if abs(expected - mean) < 1e-9 else 1 if expected > mean else -1)
    assert branches == {-1, 0, 1}


@pytest.mark.parametrize("scores, expected", [
    ([0.9], 0.9), ([0.1], 0.1),  # one face: the rule as it stands; the winner's code failed and gave 0.5
    ([0.9] * 11 + [0.5], 10.4 / 12),  # eleven fakes are not enough
    ([0.9] * 12 + [0.5], 0.9),
    ([0.9] * 12 + [0.5] * 18, (10.8 + 9) / 30),  # 12 of 30 is not more than 30 // 2.5
    ([0.1] * 19 + [0.7], 0.1), ([0.1] * 9 + [0.7], 0.16),  # nine tenths must be exceeded
])  # fmt: skip
def test_known_answers(scores, expected):
    assert confident_mean(np.array(scores)) == pytest.approx(expected)


def test_the_ensemble_is_the_mean_over_networks_and_no_face_is_a_half():
    assert ensemble_label([np.array([0.1]), np.array([0.9]), np.array([0.2])]) == pytest.approx(0.4)
    assert ensemble_label([np.zeros(0), np.zeros(0)]) == 0.5


def test_frame_numbers():
    assert frame_numbers(300, 32)[:5] == [0, 9, 19, 28, 38] and frame_numbers(300, 32)[-1] == 299
    assert frame_numbers(751, 4) == [0, 250, 500, 750]
    assert frame_numbers(3, 32) == [0, 1, 2] and frame_numbers(1, 32) == [0]
