"""The scaling law: found again where the truth is known, its intervals as wide as they claim."""

import numpy as np
import pandas as pd
import pytest

from lmlab import runs
from lmlab.runs.surface import fit

N, D = (x.ravel() for x in np.meshgrid(np.geomspace(1e5, 1.6e6, 5), np.geomspace(2.5e5, 2e6, 4)))
TRUTH = {"floor": 1.2, "alpha": 0.34, "beta": 0.45}
LOSSES = 1.2 + 40 / N**0.34 + 300 / D**0.45


@pytest.fixture(scope="module")
def noisy():
    """Twelve laws of runs that scatter by 0.003, as replicates do."""
    return [fit(N, D, LOSSES + 0.003 * np.random.default_rng(seed).normal(size=len(N))) for seed in range(12)]


def test_the_truth_is_found_again_without_noise():
    law = fit(N, D, LOSSES)
    assert law.floor == pytest.approx(1.2, rel=2e-3)
    assert law.alpha == pytest.approx(0.34, rel=5e-3)
    assert law.beta == pytest.approx(0.45, rel=5e-3)
    # Equation 4: 0.45 / (0.34 + 0.45).
    assert law.optimal == pytest.approx(0.5696, rel=5e-3)
    assert law.rms < 1e-4
    assert law(4e5, 1e7) == pytest.approx(1.2 + 40 / 4e5**0.34 + 300 / 1e7**0.45, rel=1e-3)


@pytest.mark.parametrize("name", TRUTH)
def test_intervals_hold_the_truth_most_of_the_time(noisy, name: str):
    inside = [low <= TRUTH[name] <= high for low, high in (law.interval(name) for law in noisy)]
    # Of 12 at 95 % fewer than ten come in 2 cases of 100.
    assert sum(inside) >= 10
    assert all(law.interval(name)[0] < getattr(law, name) < law.interval(name)[1] for law in noisy)


def test_more_noise_makes_wider_intervals_and_the_band_widens_beyond_the_data(noisy):
    wild = fit(N, D, LOSSES + 0.02 * np.random.default_rng(0).normal(size=len(N)))
    assert np.ptp(wild.interval("beta")) > np.ptp(noisy[0].interval("beta"))
    low, high = noisy[0].band(4e5, np.array([7e5, 7e7]))
    assert 0 < (high - low)[0] < (high - low)[1]
    assert (low <= noisy[0](4e5, np.array([7e5, 7e7]))).all()


def frame(**more) -> pd.DataFrame:
    told = {"treatment": [str(i) for i in range(len(N))], "seed": 0, "state": "budget", "parameters": N, "tokens": D}
    return pd.DataFrame(told | {"val/bpb": LOSSES, "n_params": N, "max_tokens": D} | more)


# Of other treatments, half a bit worse.
OTHER = {"treatment": [f"other {i}" for i in range(len(N))], "val/bpb": LOSSES + 0.5}


def test_each_family_has_its_own_law():
    both = pd.concat([frame(model="LSTMLM"), frame(model="TransformerLM", **OTHER)])
    laws = runs.surfaces(both)
    assert [law.label for law in laws] == ["model=LSTMLM", "model=TransformerLM"]
    assert laws[1].floor == pytest.approx(laws[0].floor + 0.5, rel=1e-2)


def test_each_text_and_each_protocol_has_its_own_law():
    """Of another text the treatment may be the same: where it lies is no part of it."""
    here = frame(protocol="carried-16", val_bytes=1000)
    there, slid = (
        here.assign(val_bytes=2000, **{"val/bpb": LOSSES + 0.5}),
        here.assign(protocol="sliding-32/16", **OTHER),
    )
    laws = runs.surfaces(pd.concat([here, there]))
    assert [law.label for law in laws] == [f"protocol=carried-16 over {n} bytes of val" for n in ("1,000", "2,000")]
    assert laws[1].floor == pytest.approx(laws[0].floor + 0.5, rel=1e-2)
    assert [law.label for law in runs.surfaces(pd.concat([here, slid]))] == [
        "protocol=carried-16",
        "protocol=sliding-32/16",
    ]


def test_a_run_trained_twice_is_one_point_of_the_law():
    once = frame(**{"val/bpb": LOSSES + 0.003 * np.random.default_rng(0).normal(size=len(N))})
    (law,), (again,) = runs.surfaces(once), runs.surfaces(pd.concat([once, once]))
    assert len(again.losses) == len(N)
    assert again.interval("beta") == law.interval("beta")
    assert runs.surfaces(pd.concat([once[:4], once[:4]])) == []


def test_there_is_no_law_of_fewer_than_three_sizes():
    whole = frame()
    two = whole[whole["parameters"] < 3e5]
    assert len(two) == 8
    assert runs.surfaces(two) == []
    assert runs.surfaces(whole.assign(tokens=1e6)) == []
    with pytest.raises(ValueError, match="metric=val/nll is no column"):
        runs.surfaces(whole, "val/nll")
