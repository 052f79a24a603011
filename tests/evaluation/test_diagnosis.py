"""Verdicts on made curves; tests/evaluation/made_runs.py has real ones."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from tests.evaluation.curves import GOOD, SMALL, STEPS, UNIGRAM, V, learning, noise, points

from lmlab.evaluation.curve import Curve
from lmlab.evaluation.diagnosis import KINDS, diagnose, more_text
from lmlab.run_directory.train_log import not_finite


def test_still_improving_with_an_interval_and_more_steps_to_try():
    found = diagnose(points(learning() + noise(0, 0.003)), GOOD)
    assert [f.kind for f in found.findings] == ["improving"]
    assert found.remedies[0].overrides == "trainer.max_steps=800"
    truth = learning()[-1] - (1.6 + (math.log(V) - 1.6) * 80**-0.5)
    assert found.remedies[0].low <= truth + 0.02
    assert found.remedies[0].high >= truth - 0.02


def test_converged():
    found = diagnose(points(learning(c=2.2, b=1.8) + noise(1, 0.002)), GOOD)
    assert [f.kind for f in found.findings] == ["converged"]
    # More of the same is not proposed; a larger model is.
    assert not [r for r in found.remedies if "max_steps" in r.overrides]
    assert found.remedies[0].overrides == "n_params=200000"


def test_over_fitting_names_the_step():
    train = learning(c=0.3, b=0.6)
    val = np.where(STEPS <= 160, learning(c=1.2, b=0.5), 0)
    val[STEPS > 160] = val[STEPS == 160] + 0.002 * (STEPS[STEPS > 160] - 160)
    found = diagnose(points(train, val, train), SMALL)
    assert found.verdict == "over-fitting"
    assert found.findings[0].since == 160
    assert {f.kind for f in found.findings} >= {"over-fitting", "starved"}
    assert any(r.overrides == "model.dropout=0.2" for r in found.remedies)


def test_a_single_worse_validation_at_the_end_is_no_over_fitting():
    val = learning(c=2.2, b=1.8)
    val[-1] *= 1.02
    assert diagnose(points(learning(c=2.2, b=1.8), val), GOOD).verdict != "over-fitting"


def test_under_regularised_is_a_gap_that_grew():
    train = learning(c=0.9, b=0.4)
    val = learning(c=1.9, b=0.6)
    val += train[STEPS == 40] - val[STEPS == 40]
    found = diagnose(points(train, np.maximum.accumulate(val[::-1])[::-1], train), GOOD)
    assert found.verdict == "under-regularised"


def test_text_that_is_harder_from_the_start_is_no_gap():
    loss = learning()
    assert diagnose(points(loss, loss + 0.5, loss), GOOD).verdict == "improving"


def test_starved_by_bits_a_parameter_and_epochs():
    found = diagnose(points(learning(), learning() + 0.02, learning()), SMALL)
    assert found.verdict == "starved"
    # 5,000 tokens of 1.5 nats in 50,000 parameters: by hand 0.1 tokens and 5000 * 1.5 / ln 2 / 50000 = 0.216 bits.
    assert SMALL.tokens_per_parameter == 0.1
    assert SMALL.bits_per_parameter == pytest.approx(0.2164, abs=1e-4)
    assert diagnose(points(learning()), replace(SMALL, epochs=2.0)).verdict == "improving"


@pytest.mark.parametrize(
    "loss",
    [
        learning() + np.where(STEPS > 200, 3.0, 0),
        np.where(STEPS > 20, 4.6, 4.3),
        np.where(STEPS < 200, learning(), np.nan),
    ],
    ids=["climbed", "above the start", "no number"],
)  # fmt: skip
def test_diverged(loss):
    found = diagnose(points(loss), GOOD)
    assert [f.kind for f in found.findings] == ["diverged"]
    assert found.remedies[0].overrides == "optimizer.lr=0.0003"


def test_a_run_that_failed_before_its_first_validation_is_told_as_diverged():
    facts = replace(GOOD, failure="TrainingFailed: the loss or its gradient is no longer finite at step 31")
    assert diagnose(points(learning()[:3]), facts).verdict == "diverged"
    assert diagnose([], facts).verdict == "diverged"


def short(*loss):
    return [{"step": str(10 * i), "train/loss": str(x), "optim/lr": "0.003"} for i, x in enumerate(loss, 1)]


def validated(val, train="", step=35):
    return {"step": str(step), "val/loss": str(val), "val/gap": "" if train == "" else str(val - train)}


def test_a_short_run_whose_loss_falls_to_its_last_point_is_not_diverged():
    facts = replace(GOOD, vocab_size=390, unigram=4.5, first_loss=5.97)
    assert diagnose([*short(5.97, 5.41, 4.72), validated(4.8, 4.7)], facts).verdict == "improving"
    # One that comes down from an explosion and still knows nothing is.
    assert diagnose([*short(5.97, 90.0, 5.9), validated(5.9, 5.9)], facts).verdict == "diverged"
    assert diagnose([*short(4.5, 5.9, 6.1), validated(6.1, 6.1)], facts).verdict == "diverged"


def test_the_best_of_the_curve_is_not_called_the_best_where_the_checkpoint_is_of_another_step():
    rows = [*short(4.4, 4.2, 4.0), validated(4.1, 4.0, 20), validated(4.0, 3.9, 40)]
    told = {step: diagnose(rows, replace(GOOD, best_step=step)).findings[0].told for step in (None, 40, 30)}
    assert told[None] == told[40] == "fewer validations than a forecast needs; the last was the best"
    assert told[30] == told[40] + " of its curve (best.ckpt is of step 30)"


@pytest.mark.parametrize("n", [0, 1, 2])
@pytest.mark.parametrize("train", ["", 8.4e29])
def test_a_held_out_loss_beyond_guessing_is_diverged_however_few_training_losses_there_are(n, train):
    first = 4.4 if n else None
    found = diagnose([*short(*[4.4, 4.3][:n]), validated(8.4e29, train)], replace(GOOD, first_loss=first))
    assert [f.kind for f in found.findings] == ["diverged"]
    assert found.findings[0].told == "the held-out loss ends at 8.4e+29, and guessing costs 4.382"
    assert found.findings[0].since == 35


def test_a_held_out_loss_beyond_guessing_of_a_run_that_knows_its_train_text_is_over_fitting():
    rows = [validated(val, 0.2, step) for step, val in ((10, 3.0), (20, 3.5), (30, 6.0), (40, 9.0))]
    assert diagnose([*short(4.4, 1.0), *rows], GOOD).verdict != "diverged"
    # Nor is it one that has hardly begun.
    assert diagnose([*short(4.5), validated(4.6, 4.5)], replace(GOOD, first_loss=4.5)).verdict != "diverged"


@pytest.mark.parametrize(
    ("failure", "so"),
    [
        ("NotFinite: the loss is 9 at step 12, one spike more than callbacks.spikes.most=3", True),
        ("TrainingFailed: the weights are no longer finite after step 3", True),
        ("ValueError: the model's logits are NaN: its weights are damaged, load an earlier checkpoint", True),
        ("TrainingFailed: the disk is full (last.ckpt) after step 8", False),
        ("KeyboardInterrupt: ", False),
    ],
)
def test_of_what_ended_a_run_the_curve_is_to_blame_for_what_is_no_number(failure, so):
    assert not_finite(failure) is so


def test_over_fitting_is_not_divergence_however_far_the_held_out_loss_climbs():
    train = learning(c=0.2, b=0.7)
    val = np.where(STEPS <= 80, learning(), 2.2 + (STEPS - 80) / 40)
    assert diagnose(points(train, val, train), SMALL).verdict == "over-fitting"


def test_spikes_that_come_back_are_unstable_and_a_steep_start_is_not():
    loss = learning(late=20)
    assert "unstable" not in {f.kind for f in diagnose(points(loss), GOOD).findings}
    loss[25] += 1.0
    found = {f.kind: f for f in diagnose(points(loss, learning(late=20)), GOOD).findings}
    assert found["unstable"].since == STEPS[25]


def test_rate_too_high_is_stuck_at_frequencies():
    loss = np.where(STEPS <= 20, 3.5, UNIGRAM + 0.02) + noise(3, 0.01)
    found = diagnose(points(loss, update=0.02), GOOD)
    assert found.verdict == "rate too high"
    assert found.remedies[0].overrides == "optimizer.lr=0.0003"


def test_stuck_at_frequencies_with_short_steps_is_a_rate_too_low():
    val = np.linspace(UNIGRAM + 0.03, UNIGRAM + 0.01, len(STEPS))
    loss = np.where(STEPS <= 20, 3.5, UNIGRAM + 0.02) + noise(3, 0.01)
    assert diagnose(points(loss, val, update=0.005), GOOD).verdict == "rate too low"
    # Not known: runs of before it was logged.
    assert diagnose(points(loss, val, update=float("nan")), GOOD).verdict == "rate too high"


def test_rate_too_high_moves_a_matrix_too_far_unless_steps_are_as_long_as_the_gradient():
    rows = points(learning(), update=0.06)
    found = diagnose(rows, GOOD)
    assert found.verdict == "rate too high"
    assert "6.0% of its size" in found.findings[0].told
    assert diagnose(rows, replace(GOOD, normalised=False)).verdict == "improving"
    # Small weights grow at first: only the steps after it count, and those at a rate that is still high.
    growing = [{**row, "optim/update_ratio": "0.3"} if int(row["step"]) <= 50 else row for row in points(learning())]
    assert diagnose(growing, GOOD).verdict == "improving"


def test_rate_too_high_made_it_worse_before_anything_was_learnt():
    loss = learning(late=20)
    loss[1] = loss[0] * 1.2
    found = diagnose(points(loss, learning(late=20)), GOOD)
    assert found.verdict == "rate too high"
    assert "before it knew frequencies" in found.findings[0].told


def test_rate_too_high_shakes_the_held_out_loss_and_one_worse_validation_does_not():
    val = learning()
    val[STEPS == 160] += 0.2
    assert diagnose(points(learning(), val), GOOD).verdict == "improving"
    val[STEPS == 280] += 0.2
    found = diagnose(points(learning(), val), GOOD)
    assert found.verdict == "rate too high"
    assert "rose 2 times on its way down" in found.findings[0].told


def test_a_loss_that_exploded_and_came_back_to_nothing_is_diverged():
    loss = np.where(STEPS <= 20, 900.0, math.log(V) - 0.05)
    loss[0] = math.log(V)
    assert diagnose(points(loss, np.full(len(STEPS), math.log(V))), GOOD).verdict == "diverged"


def test_rate_too_low_takes_long_for_frequencies():
    loss = math.log(V) - (math.log(V) - UNIGRAM) * STEPS / 500
    found = diagnose(points(loss), GOOD)
    assert found.verdict == "rate too low"
    assert any(r.overrides == "optimizer.lr=0.03" for r in found.remedies)


def test_figures_have_the_distances_to_the_floors():
    lines = "\n".join(diagnose(points(learning()), GOOD).figures)
    best = learning()[-1]
    assert f"unigram 3.000 ({best - 3:+.3f})" in lines
    assert f"5-gram 1.500 ({best - 1.5:+.3f})" in lines


def test_there_are_three_remedies_at_most_best_first():
    train = learning(c=0.3, b=0.6)
    val = np.where(STEPS <= 160, learning(c=1.2, b=0.5), 3.0)
    found = diagnose(points(train, val, train), SMALL)
    assert len(found.remedies) == 3
    assert len(found.candidates) >= 3
    gains = [r.low + r.high for r in found.remedies]
    assert gains == sorted(gains, reverse=True)
    assert all(f.kind in KINDS for f in found.findings)
    assert found.card()[0].startswith("diagnosis: over-fitting")


def test_what_was_not_measured_is_left_out():
    """Without floors, without a slice of train, with two validations."""
    rows = [{"step": str(s), "val/loss": str(v)} for s, v in ((10, 3.0), (20, 2.5))]
    bare = replace(GOOD, unigram=None, ngram=None, first_loss=None)
    found = diagnose(rows, bare)
    assert found.verdict == "improving"
    assert "floors" not in "\n".join(found.figures)
    never = diagnose([], bare)
    assert never.findings[0].told == "it was never validated: too short to tell"
    assert never.card()[1] == "  try trainer.max_steps=800: gain not known (its curve does not tell)"


def test_areas_are_sums_of_the_learning_rate():
    """By hand: rates 1 2 3 at steps 1 2 3, then 1: the sum up to step 2 is 3, up to 4 it is 7."""
    rows = [{"step": s, "train/loss": 2, "optim/lr": lr} for s, lr in ((1, 1), (2, 2), (3, 3), (4, 1))]
    rows += [{"step": 2, "val/loss": 2}, {"step": 4, "val/loss": 2}]
    area, rate = Curve.of(rows).areas
    assert area.tolist() == [3, 7]
    assert rate.tolist() == [pytest.approx(2 / 3), pytest.approx(1 / 3)]


def test_a_table_s_rows_are_the_file_s_and_zero_is_a_number():
    """A warm-up begins at a rate of nothing; a gap may be none at all. A table has NaN where the file has nothing."""
    told = [{"step": "1", "train/loss": "4", "optim/lr": "0.0", "val/loss": "", "val/gap": ""},
            {"step": "2", "train/loss": "3", "optim/lr": "0.1", "val/loss": "", "val/gap": ""},
            {"step": "2", "train/loss": "", "optim/lr": "", "val/loss": "3.5", "val/gap": "0.0"}]  # fmt: skip
    table = pd.DataFrame(told).replace("", "nan").astype(float)
    for rows in (told, table.to_dict("records"), table.astype(object).where(table.notna(), None).to_dict("records")):
        curve = Curve.of(rows)
        assert (curve.steps.tolist(), curve.loss.tolist(), curve.lr.tolist()) == ([1, 2], [4, 3], [0, 0.1])
        assert (curve.val_steps.tolist(), curve.val.tolist(), curve.gap.tolist()) == ([2], [3.5], [0])
        assert np.isnan(curve.norm).all()
    # A loss that became no number is a word of the file's.
    assert np.isnan(Curve.of([*told, {"step": "3", "train/loss": "nan"}]).loss[-1])


def test_what_more_text_would_bring_is_by_hand():
    """Doublings brought 0.4 and 0.2: the next brings 0.2 times the ratio 0.5."""
    assert more_text([100, 400, 200], [3.0, 2.4, 2.6]) == (pytest.approx(0.1), pytest.approx(0.1), pytest.approx(0.2))
    with pytest.raises(ValueError, match="train_share"):
        more_text([100, 100], [3.0, 2.9])
    found = diagnose(points(learning()), SMALL).with_more_text([100, 200, 400], [3.0, 2.6, 2.4])
    told = next(r for r in found.remedies if r.changes == "text")
    assert (told.low, told.high) == (pytest.approx(0.1), pytest.approx(0.2))
    assert "twice the text would bring 0.100 nats" in found.figures[-1]


@pytest.mark.parametrize("charge", [0.0, 1.5])
def test_what_unk_are_charged_hides_no_rate_that_is_too_low(charge):
    """Held-out text and its floors have the charges, the training loss has not."""
    loss = math.log(V) - (math.log(V) - UNIGRAM) * STEPS / 500
    facts = replace(GOOD, unigram=UNIGRAM + charge, ngram=GOOD.ngram + charge, charge=charge)
    assert diagnose(points(loss, loss + charge, loss + charge), facts).verdict == "rate too low"
