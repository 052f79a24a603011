import numpy as np
import pytest

from lmlab.evaluation.mixture import best_weight, interpolate


def test_a_mixture_by_hand():
    # P 1/2 and 1/8, a quarter of the second: 3/4 * 1/2 + 1/4 * 1/8 = 13/32.
    found = interpolate(np.log([2.0]), np.log([8.0]), 0.25)
    assert found == pytest.approx(np.log(32 / 13))


def test_weights_of_nothing_and_all_are_the_parts():
    ours, theirs = np.array([1.0, 2.0]), np.array([3.0, np.inf])
    assert interpolate(ours, theirs, 0.0).tolist() == ours.tolist()
    assert interpolate(ours, theirs, 1.0).tolist() == theirs.tolist()


def test_the_best_weight_by_hand():
    # Each sure where the other is not: by symmetry a half. P(w) = 0.1 + 0.8 w and 0.9 - 0.8 w.
    ours, theirs = -np.log([0.9, 0.1]), -np.log([0.1, 0.9])
    assert best_weight(ours, theirs) == pytest.approx(0.5)
    # 3 of 4 tokens are the second's: log P = log(0.9 - 0.8 w) + 3 log(0.1 + 0.8 w), slope 0 at w = 0.8125.
    ours, theirs = -np.log([0.9, 0.1, 0.1, 0.1]), -np.log([0.1, 0.9, 0.9, 0.9])
    assert best_weight(ours, theirs) == pytest.approx(0.8125)


def test_the_best_weight_is_that_of_a_fine_grid():
    random = np.random.default_rng(0)
    ours, theirs = random.exponential(3, (2, 5_000))
    grid = np.linspace(0, 1, 2_001)
    costs = [interpolate(ours, theirs, w).sum() for w in grid]
    assert best_weight(ours, theirs) == pytest.approx(grid[int(np.argmin(costs))], abs=1e-3)


def test_no_weight_is_given_to_what_never_helps():
    ours = np.array([1.0, 2.0, 3.0])
    assert best_weight(ours, ours + 1) == 0.0
    assert best_weight(ours + 1, ours) == 1.0
    assert best_weight(ours, np.full(3, np.inf)) == 0.0
