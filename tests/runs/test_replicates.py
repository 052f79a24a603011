"""Replicates: means and intervals, held against tables and worked by hand."""

import math

import pandas as pd
import pytest

from lmlab.config import asked, compose, treatment
from lmlab.runs import replicates
from lmlab.runs.replicates import interval, student, varied


@pytest.mark.parametrize(
    ("level", "df", "expected"),
    # Printed tables of Student's t, two-sided.
    [
        *((0.95, 1, 12.706), (0.95, 2, 4.303), (0.95, 3, 3.182), (0.95, 4, 2.776), (0.95, 9, 2.262)),
        *((0.95, 30, 2.042), (0.99, 4, 4.604), (0.9, 10, 1.812), (0.95, 1000, 1.962)),
    ],
)
def test_quantiles_are_those_of_printed_tables(level, df, expected):
    assert student(level, df) == pytest.approx(expected, abs=5e-4)


def test_an_interval_worked_by_hand():
    # Mean 2, deviation 1, t of 2 degrees of freedom 4.303: 2 ± 4.303 / sqrt(3).
    mean, low, high = interval([1.0, 2.0, 3.0])
    assert mean == 2
    assert (low, high) == pytest.approx((2 - 4.30265 / math.sqrt(3), 2 + 4.30265 / math.sqrt(3)), rel=1e-5)
    assert interval([5.0]) == (5.0, None, None)


def test_runs_that_differ_in_the_seed_alone_are_one_row():
    frame = pd.DataFrame(
        {
            "run": list("abcde"),
            "treatment": ["x", "x", "y", "z", "y"],
            "seed": [0, 1, 0, 0, 1],
            "val/bpb": [2.0, 4.0, 1.0, float("nan"), 2.0],
            "optimizer.lr": [0.1, 0.1, 0.2, 0.3, 0.2],
        }
    )
    found = replicates(frame)
    assert found["mean"].tolist() == [1.5, 3.0]
    assert found["n"].tolist() == [2, 2]
    assert found["optimizer.lr"].tolist() == [0.2, 0.1]
    with pytest.raises(ValueError, match="metric=val/ppl is no column"):
        replicates(frame, "val/ppl")


def test_the_same_seed_trained_twice_is_one_replicate():
    """Seeds 0 (2.0, twice) and 1 (2.1): mean 2.05, deviation 0.1 / sqrt(2), t of one degree of freedom 12.706."""
    told = {"run": list("abcde"), "treatment": list("xxxyy"), "seed": [0, 0, 1, 0, 0]}
    x, y = replicates(pd.DataFrame(told | {"val/bpb": [2.0, 2.0, 2.1, 3.0, 3.0]})).to_dict("records")
    assert (x["n"], x["mean"]) == (2, pytest.approx(2.05))
    assert x["high"] - x["mean"] == pytest.approx(12.7062 * 0.05, rel=1e-5)
    assert (y["n"], y["mean"]) == (1, 3.0)
    assert math.isnan(y["low"]), "one seed has no interval, however often it was trained"


def test_what_a_sweep_chooses_by_is_measured_and_no_key_in_which_runs_differ():
    measured = ["val/bpb", "test/ppl", "perf/memory_gb", "train/loss", "own/score.ema", "seconds"]
    keys = ["optimizer.lr", "callbacks.averaging", "n_params", "corpus.weights.news/2020"]
    assert varied(pd.DataFrame({column: [1.0, 2.0] for column in ["run", *measured, *keys]})) == keys


def test_a_treatment_is_all_but_the_seed():
    def of(*overrides: str) -> str:
        return treatment(asked(compose(list(overrides))))

    assert of("seed=1") == of("seed=2", "run_dir=elsewhere")
    assert of("trainer.max_steps=5") != of("trainer.max_steps=6"), "a budget is one, though it can be extended"
