"""Replicates over a whole curve, at an equal budget, and pair by pair: worked by hand."""

import pandas as pd
import pytest

from lmlab.runs import against_best, mean_curves, within

# Two learning rates, two seeds each; the run of lr=2, seed 1 has not come as far as its replicate.
FRAME = pd.DataFrame(
    {
        "run": ["a0", "a1", "b0", "b1"],
        "treatment": ["a", "a", "b", "b"],
        "seed": [0, 1, 0, 1],
        "val/bpb": [1.0, 3.0, 1.5, 3.7],
        "optimizer.lr": [0.1, 0.1, 0.2, 0.2],
    }
)
CURVES = pd.DataFrame(
    [
        ("a0", 1, 10, 1.0, 4.0),
        ("a0", 2, 20, 2.0, 1.0),
        ("a1", 1, 10, 1.2, 6.0),
        ("a1", 2, 20, 2.4, 3.0),
        ("b0", 1, 10, 3.0, 5.0),
        ("b0", 2, 20, 6.0, 1.5),
        ("b1", 1, 10, 3.0, 5.0),
        # A point of training, which has no validation.
        ("b1", 2, 20, 5.0, None),
    ],
    columns=["run", "step", "tokens", "seconds", "val/bpb"],
)


def test_a_mean_curve_holds_the_steps_that_all_replicates_have_reached():
    found = mean_curves(FRAME, CURVES)
    assert found[["treatment", "step", "n", "mean"]].values.tolist() == [
        ["a", 1, 2, 5.0],
        ["a", 2, 2, 2.0],
        ["b", 1, 2, 5.0],
    ]
    assert found["seconds"].tolist() == pytest.approx([1.1, 2.2, 3.0])
    # t(0.95, 1) = 12.706; the standard error of 4 and 6 is 1.
    assert (found["low"][0], found["high"][0]) == pytest.approx((5 - 12.7062, 5 + 12.7062), abs=1e-3)
    assert found["optimizer.lr"].tolist() == [0.1, 0.1, 0.2]


def test_an_interrupted_run_cuts_no_mean_curve_short():
    frame = FRAME.assign(state=["budget", "budget", "budget", "interrupted"])
    found = mean_curves(frame, CURVES)
    assert found[["treatment", "step", "n"]].values.tolist() == [["a", 1, 2], ["a", 2, 2], ["b", 1, 1], ["b", 2, 1]]
    # Where none came to its end, there is what there is.
    frame = FRAME.assign(state=["budget", "budget", "pruned", "interrupted"])
    assert mean_curves(frame, CURVES)[["treatment", "n"]].values.tolist()[-1] == ["b", 2]


def test_a_mean_curve_counts_the_seed_that_was_trained_twice_once():
    twice = pd.concat([CURVES, CURVES[CURVES["run"] == "a0"].assign(run="c0")])
    frame = pd.concat([FRAME, FRAME[:1].assign(run="c0")])
    columns = ["treatment", "step", "n", "mean", "low", "high"]
    pd.testing.assert_frame_equal(mean_curves(frame, twice)[columns], mean_curves(FRAME, CURVES)[columns])


def test_within_a_budget_a_run_is_worth_its_last_validation_before_it():
    assert within(FRAME, CURVES, seconds=2.0)["val/bpb"].tolist()[:2] == [1.0, 6.0]
    assert within(FRAME, CURVES, seconds=2.0)["val/bpb"].isna().tolist() == [False, False, True, True]
    assert within(FRAME, CURVES, tokens=10)["val/bpb"].tolist() == [4.0, 6.0, 5.0, 5.0]
    assert within(FRAME, CURVES, steps=1)["steps"].tolist() == [1, 1, 1, 1]
    assert FRAME["val/bpb"].tolist() == [1.0, 3.0, 1.5, 3.7], "the given table stays as it was"


def test_a_run_that_was_interrupted_after_the_budget_counts_within_it():
    frame = FRAME.assign(state=["budget", "interrupted", "budget", "pruned"])
    assert within(frame, CURVES, seconds=2.0)["state"].tolist() == ["budget"] * 4
    # a1 ended at 2.4 seconds and b1 at 5: of what they would have reached then nothing is known.
    assert within(frame, CURVES, seconds=5.5)["state"].tolist() == ["budget", "interrupted", "budget", "pruned"]


def test_runs_that_did_not_come_to_their_end_are_no_replicates():
    frame = FRAME.assign(state=["budget", "interrupted", "budget", "early stopping"])
    found = against_best(frame)
    assert found[["treatment", "n"]].values.tolist() == [["a", 1], ["b", 1]]
    assert found["mean"].tolist() == pytest.approx([0.0, 0.5])


def test_differences_are_taken_seed_by_seed():
    found = against_best(FRAME)
    assert found["treatment"].tolist() == ["a", "b"]
    assert found["mean"].tolist() == pytest.approx([0.0, 0.6])
    # Differences 0.5 and 0.7: standard error 0.1, where each mean's own is 1.
    assert found["high"][1] - found["mean"][1] == pytest.approx(1.27062, abs=1e-4)
    assert found["n"].tolist() == [2, 2]


def test_runs_without_a_common_seed_have_no_difference():
    found = against_best(FRAME.assign(seed=[0, 1, 2, 3]))
    assert found["n"].tolist() == [2, 0]
    assert pd.isna(found["mean"][1])


def test_what_is_no_budget_or_no_metric_is_refused():
    with pytest.raises(ValueError, match="give one of steps, tokens, seconds"):
        within(FRAME, CURVES, hours=1)
    with pytest.raises(ValueError, match="metric=val/wer is no column of the curves"):
        mean_curves(FRAME, CURVES, "val/wer")
