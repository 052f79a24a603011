"""What is proposed, with which gain; tests/evaluation/made_runs.py has the curves of real runs of each kind."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from omegaconf import OmegaConf
from tests.evaluation import made_runs
from tests.evaluation.curves import GOOD, SMALL, STEPS, UNIGRAM, V, learning, points

from lmlab.config import compose, plain
from lmlab.decisions import total_steps
from lmlab.evaluation.curve import Curve, settings
from lmlab.evaluation.diagnosis import KINDS, diagnose
from lmlab.evaluation.extrapolation import more_training
from lmlab.evaluation.remedies import PLACEHOLDER, SHOWN, Remedy, ranked

RECORDED = made_runs.recorded()
# Learnt by heart: the held-out loss rises after step 160, and train's goes on falling.
TRAIN, HELD_OUT = learning(c=0.3, b=0.6), np.where(STEPS <= 160, learning(c=1.2, b=0.5), 3.0)
LSTM = {"model.dropout_words": 0.1, "model.dropout_in": 0.4, "model.dropout_between": 0.1, "model.dropout_out": 0.25}


def having(facts=GOOD, without=(), **changes):
    """The facts with other settings; double underscores are dots."""
    changed = {key.replace("__", "."): value for key, value in changes.items()}
    return replace(facts, settings={k: v for k, v in facts.settings.items() if k not in without} | changed)


def tried(found):
    return {remedy.changes: remedy.overrides for remedy in found.candidates}


def test_no_gain_is_shown_as_nothing_and_those_not_known_come_last():
    for _, rows, facts in RECORDED:
        # Trials of a sweep have no floors.
        for known in (facts, replace(facts, unigram=None, ngram=None)):
            found = diagnose(rows, known)
            told = [remedy.low is not None for remedy in found.candidates]
            assert told == sorted(told, reverse=True)
            for remedy in found.candidates:
                assert "0.000" not in remedy.expected()
                assert remedy.low is None or (remedy.low if remedy.high is None else remedy.high) >= SHOWN
                assert remedy.low is not None or remedy.expected().startswith("gain not known (")


def test_a_run_below_the_floors_at_a_rate_too_high_has_a_gain_that_is_not_known():
    found = diagnose(points(learning(), update=0.06), GOOD)
    assert found.verdict == "rate too high"
    assert learning()[-1] < UNIGRAM
    assert found.card()[1] == "  try optimizer.lr=0.0003: gain not known (its curve does not tell)"


def test_a_run_above_frequencies_should_gain_the_distance_to_them():
    loss = np.where(STEPS <= 20, 3.5, UNIGRAM + 0.02)
    remedy = diagnose(points(loss, update=0.02), GOOD).remedies[0]
    assert (remedy.low, remedy.high) == (pytest.approx(0.02), None)
    assert remedy.expected() == "at least 0.020 nats a token less (frequencies alone are that much better)"


def test_a_rate_too_low_should_gain_what_the_fitted_law_says_of_ten_times_the_area_under_it():
    loss = math.log(V) - (math.log(V) - UNIGRAM) * STEPS / 300
    rows = points(np.maximum(loss, UNIGRAM - 0.1))
    found = diagnose(rows, GOOD)
    assert found.verdict == "rate too low"
    assert found.remedies[0].overrides == "optimizer.lr=0.03"
    ahead = more_training(Curve.of(rows), 10.0)
    assert (found.remedies[0].low, found.remedies[0].high) == (max(0.0, ahead.low), ahead.high)
    assert "a law fitted to its curve" in found.remedies[0].basis


def test_known_gains_are_ranked_by_their_middle():
    given = [
        Remedy("a", "", ""),
        Remedy("b", "", "", 0.0, 0.3),
        Remedy("c", "", "", 0.2),
        Remedy("d", "", "", 0.1, 0.4),
    ]
    assert [remedy.changes for remedy in ranked(given)] == ["d", "c", "b", "a"]


@pytest.mark.parametrize(
    ("budgets", "overrides"),
    [
        ({"trainer__max_steps": 400}, "trainer.max_steps=800"),
        # 400 steps are 0.4 epochs, and an epoch has a million tokens.
        ({"trainer__max_steps": None, "trainer__max_epochs": 0.4}, "trainer.max_epochs=0.8"),
        ({"trainer__max_steps": None, "max_tokens": "400k"}, "max_tokens=800000"),
        ({"trainer__max_steps": 5000, "trainer__max_epochs": 0.4, "max_tokens": None}, "trainer.max_epochs=0.8"),
        ({"trainer__max_epochs": 0.5, "max_tokens": "10M"}, "trainer.max_steps=800 trainer.max_epochs=1"),
        ({"trainer__max_time": "00:13:30:40"}, "trainer.max_steps=800 trainer.max_time=01:03:01:20"),
    ],
)
def test_twice_the_training_raises_each_budget_that_would_end_it_sooner(budgets, overrides):
    facts = having(**budgets)
    assert tried(diagnose(points(learning()), facts))["steps"] == overrides
    before, after = (with_overrides(facts.settings, told) for told in ("", overrides))
    # As long as the fixture's run: 1,000 steps an epoch.
    batching = SimpleNamespace(steps_per_epoch=1000, tokens_per_step=1000, epoch_start=lambda epoch: 1000 * epoch)
    assert total_steps(before, batching) == 400
    assert total_steps(after, batching) == 800


def with_overrides(budgets, overrides):
    config = OmegaConf.create({"trainer": {}})
    for key, value in {**budgets, **dict(word.split("=") for word in overrides.split())}.items():
        if key.startswith(("trainer.", "max_tokens")):
            OmegaConf.update(config, key, OmegaConf.create(f"v: {value}").v if value is not None else None)
    return config


def test_a_run_that_is_not_half_done_needs_no_larger_budget():
    assert "steps" not in tried(diagnose(points(learning()), having(trainer__max_steps=1000)))


def test_dropout_is_raised_where_it_acts_each_rate_from_its_own():
    rows = points(TRAIN, HELD_OUT, TRAIN)
    assert tried(diagnose(rows, SMALL))["dropout"] == "model.dropout=0.2"
    # The attention's follows it.
    wide = having(SMALL, model__dropout=0.1, model__dropout_attention=0.4)
    assert tried(diagnose(rows, wide))["dropout"] == "model.dropout=0.3"
    lstm = replace(SMALL, settings={**having(SMALL, ["model.dropout"]).settings, **LSTM, "model.n_layers": 2})
    assert tried(diagnose(rows, lstm))["dropout"] == "model.dropout_between=0.3 model.dropout_out=0.45"
    # A single layer has nothing between.
    single = replace(lstm, settings={**lstm.settings, "model.n_layers": 1})
    assert tried(diagnose(rows, single))["dropout"] == "model.dropout_out=0.45"
    assert "dropout" not in tried(diagnose(rows, having(SMALL, model__dropout=0.4)))


def test_the_gap_is_the_most_that_dropout_text_and_size_should_gain():
    found = diagnose(points(TRAIN, HELD_OUT, TRAIN), SMALL)
    gap = found.curve.excess_gap
    assert [(r.changes, r.low, r.high) for r in found.remedies] == [(c, 0.0, gap) for c in ("dropout", "text", "size")]
    assert f"up to {gap:.3f} nats a token less (a bound: the gap" in found.remedies[0].expected()


def test_weights_from_elsewhere_fix_dropout_and_size():
    found = diagnose(points(TRAIN, HELD_OUT, TRAIN), having(SMALL, init_from="outputs/runs/first"))
    assert not tried(found).keys() & {"dropout", "size"}
    assert not tried(diagnose(points(learning(c=2.2, b=1.8)), having(init_from="outputs/runs/first")))


def test_a_small_text_in_many_parameters_does_not_ask_for_a_larger_model():
    rows = points(learning(c=2.2, b=1.8))
    assert tried(diagnose(rows, GOOD)) == {"size": "n_params=200000"}
    found = diagnose(rows, SMALL)
    assert {f.kind for f in found.findings} == {"starved", "converged"}
    assert found.card()[2] == f"  try corpus.train={PLACEHOLDER}: gain not known (its curve does not tell)"
    assert len(found.candidates) == 1


def test_more_text_is_the_rest_of_the_runs_own_or_a_place_for_a_path():
    rows = points(TRAIN, HELD_OUT, TRAIN)
    texts = [
        ({}, f"corpus.train={PLACEHOLDER}"),
        ({"corpus__path": "a.txt"}, f"corpus.path={PLACEHOLDER}"),
        ({"corpus___target_": "lmlab.data.corpora.Sotu"}, f"corpus=files corpus.train={PLACEHOLDER}"),
        ({"train_share": 0.5}, "train_share=1.0"),
    ]
    for changes, overrides in texts:
        assert tried(diagnose(rows, having(SMALL, **changes)))["text"] == overrides


def test_more_text_that_was_measured_to_bring_nothing_is_not_proposed():
    found = diagnose(points(TRAIN, HELD_OUT, TRAIN), SMALL)
    assert "text" not in tried(found.with_more_text([100, 200], [2.0, 2.0]))
    assert found.with_more_text([100, 200], [4.0, 2.0]).remedies[0].changes == "text"


@pytest.mark.parametrize(
    ("clip", "warmup", "spikes", "overrides"),
    [
        (None, 0, False, "training.clip_norm=1.0 schedule.warmup=0.05"),
        (1.0, 0, False, "schedule.warmup=0.05"),
        (5.0, 20, False, "training.clip_norm=1.0"),
        (0.25, 0.1, False, "callbacks/spikes=skip"),
        (0.25, 0.1, True, None),
    ],
)
def test_what_a_run_has_is_not_proposed_against_spikes(clip, warmup, spikes, overrides):
    loss = learning(late=20)
    loss[25] += 1.0
    watched = {"callbacks__spikes___target_": "lmlab.training.spikes.Skip"} if spikes else {}
    facts = having(training__clip_norm=clip, schedule__warmup=warmup, **watched)
    found = diagnose(points(loss, learning(late=20)), facts)
    assert "unstable" in {f.kind for f in found.findings}
    assert tried(found).get("steadiness") == overrides


def range_test(suggested, verdict, *losses):
    return {"used": 3e-3, "suggested": suggested, "verdict": verdict, "losses": list(losses)}


def test_the_rate_of_a_range_test_comes_first_where_the_rate_is_wrong_and_else_among_the_others():
    high = diagnose(points(learning(), update=0.06), having(optimizer__adam_lr=6e-3))
    assert tried(high)["rate"] == "optimizer.lr=0.0003 optimizer.adam_lr=0.0006"
    first = high.with_range_test(range_test(1e-3, "in the range where the loss falls")).remedies[0]
    assert first.overrides == "optimizer.lr=0.001 optimizer.adam_lr=0.002"
    assert first.expected() == "gain not known (a range test's suggestion)"
    # The curve of the whole run tells more than a few steps.
    assert high.with_range_test(range_test(1e-2, "in the range where the loss falls")).candidates == high.candidates
    good = diagnose(points(learning()), GOOD)
    changes = [
        [r.changes for r in good.with_range_test(range_test(1e-2, said)).remedies]
        for said in ("in the range", "too low")
    ]
    assert changes == [["steps", "rate"], ["rate", "steps"]]
    assert good.with_range_test(range_test(3e-3, "in the range where the loss falls")).candidates == good.candidates


def test_a_range_test_that_got_lower_than_the_run_says_by_how_much():
    loss = np.where(STEPS <= 20, 3.5, UNIGRAM + 0.02)
    found = diagnose(points(loss, update=0.02), GOOD).with_range_test(range_test(1e-3, "too high", 4.0, 2.5, 2.9))
    # 3.02, its lowest training loss, to 2.5.
    assert (found.remedies[0].low, found.remedies[0].high) == (pytest.approx(0.52), None)
    assert "reached 2.500 in 3 steps" in found.remedies[0].basis


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_proposed_composes_on_the_config_of_a_run_of_each_kind_and_changes_it(kind):
    number = next(n for n, (_, rows, facts) in enumerate(RECORDED) if diagnose(rows, facts).verdict == kind)
    _, rows, facts = RECORDED[number]
    before = plain(compose(made_runs.recipe("check", number)))
    assert settings(before) == facts.settings
    found = diagnose(rows, facts)
    assert found.remedies
    for remedy in found.remedies:
        after = plain(compose([*made_runs.recipe("check", number), *remedy.overrides.split()]))
        for word in remedy.overrides.split():
            key = word.partition("=")[0].replace("/", ".")
            assert at(after, key) != at(before, key), word
        if remedy.changes == "steps":
            assert total_steps(OmegaConf.create(after), None) == 2 * total_steps(OmegaConf.create(before), None)
        if remedy.changes == "size":
            is_a_size(after, facts)


def at(config, key):
    for part in key.split("."):
        config = config.get(part, {})
    return config


def is_a_size(config, facts):
    """A width can be found for it."""
    from lmlab.experiment import build_model
    from lmlab.sizes import solve_width

    solved = solve_width(config["model"], config["n_params"], lambda one: build_model(one, facts.vocab_size, None))
    assert solved["d_model"] != config["model"]["d_model"]
