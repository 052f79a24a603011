"""Scaling laws: known ones are found again, and intervals hold what they promise."""

import numpy as np
import pandas as pd
import pytest

from lmlab.runs import scaling, scaling_law
from lmlab.runs.scaling import fit, frontier

SIZES = np.array([1e5, 3e5, 1e6, 3e6, 1e7, 3e7])


def runs(
    floor: float, scale: float, exponent: float, noise: float = 0.0, seed: int = 0, sizes: np.ndarray = SIZES
) -> pd.DataFrame:
    value = floor + scale * sizes**-exponent + np.random.default_rng(seed).normal(0, noise, len(sizes))
    told = {"parameters": sizes, "val/bpb": value, "treatment": [str(i) for i in range(len(sizes))], "seed": 0}
    return pd.DataFrame(told)


@pytest.mark.parametrize(
    ("floor", "scale", "exponent"),
    # The second is equation 10 of Hoffmann et al. 2022, its term of parameters; the third has no floor.
    [(1.5, 200, 0.5), (1.69, 406.4, 0.34), (0.0, 10.0, 0.1), (2.0, 1e6, 1.2)],
)
def test_a_known_law_is_found_again(floor, scale, exponent):
    law = scaling_law(runs(floor, scale, exponent))
    assert (law.floor, law.scale, law.exponent) == pytest.approx((floor, scale, exponent), rel=1e-3, abs=1e-4)
    assert law.interval("exponent") == pytest.approx((exponent, exponent), rel=1e-3)
    assert law.predict(np.array([1e9])) == pytest.approx(floor + scale * 1e9**-exponent, rel=1e-3)


def test_a_fit_worked_by_hand():
    """1 + 1 / N at N = 1, 2, 4: 2, 1.5, 1.25."""
    assert fit(np.array([1.0, 2.0, 4.0]), np.array([2.0, 1.5, 1.25])) == pytest.approx((1, 1, 1), rel=1e-4)


def test_the_fit_is_the_smallest_sum_of_squares():
    """No point nearby is better, by numbers alone: the fit's own formulas are not used."""
    frame = runs(1.5, 200, 0.5, noise=0.02, seed=3)
    x, y = frame["parameters"].to_numpy(), frame["val/bpb"].to_numpy()
    found = np.array(fit(x, y))

    def error(law: np.ndarray) -> float:
        return float(((y - law[0] - law[1] * x ** -law[2]) ** 2).sum())

    for factor in np.random.default_rng(0).normal(1, 0.003, (300, 3)):
        assert error(found * factor) >= error(found) * (1 - 1e-6)


@pytest.mark.parametrize("n", [4, 6])
def test_intervals_hold_the_truth_about_as_often_as_they_say(n, monkeypatch):
    """Also of four sizes, the fewest that are taken: one degree of freedom is left."""
    # For the sake of time; quantiles of fewer draws are no wider.
    monkeypatch.setattr(scaling, "DRAWS", 100)
    sizes, inside = np.geomspace(1e5, 3e7, n), 0
    for seed in range(60):
        low, high = scaling_law(runs(1.5, 200, 0.5, 0.005, seed, sizes), seed=seed).interval("exponent")
        inside += low <= 0.5 <= high
    assert inside >= 0.88 * 60, "at 95 %"


def test_of_each_size_the_best_treatment_counts_with_its_replicates():
    frame = pd.DataFrame(
        {
            "parameters": [1.0, 1.0, 1.0, 2.0, 2.0],
            "treatment": ["a", "a", "b", "c", "c"],
            "seed": [0, 1, 0, 0, 1],
            "val/bpb": [3.0, 5.0, 4.5, 2.0, float("nan")],
        }
    )
    x, y = frontier(frame, "parameters", "val/bpb")
    assert (x.tolist(), y.tolist()) == ([1.0, 1.0, 2.0], [3.0, 5.0, 2.0])


def test_a_run_trained_twice_is_one_point_of_the_law_and_narrows_no_interval():
    once = runs(1.5, 200, 0.5, 0.005)
    again = once.assign(**{"val/bpb": once["val/bpb"] + 0.002})
    x, y = frontier(pd.concat([once, again]), "parameters", "val/bpb")
    assert x.tolist() == SIZES.tolist()
    assert y == pytest.approx(once["val/bpb"].to_numpy() + 0.001)
    assert scaling_law(pd.concat([once, once])).interval("exponent") == scaling_law(once).interval("exponent")
    replicated = scaling_law(pd.concat([once, again.assign(seed=1)])).interval("exponent")
    assert np.ptp(replicated) < np.ptp(scaling_law(once).interval("exponent")), "another seed is another run"


def test_three_sizes_are_too_few():
    with pytest.raises(ValueError, match="needs runs of four sizes or more; parameters has 3"):
        scaling_law(runs(1, 1, 1)[:3])
    with pytest.raises(ValueError, match="n_params is no column"):
        scaling_law(runs(1, 1, 1), size="n_params")
