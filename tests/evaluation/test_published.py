"""Published numbers: what a node must say, verdicts by hand, and the line that a card has."""

import copy
from dataclasses import replace

import pytest

from lmlab.evaluation.protocol import Protocol
from lmlab.evaluation.published import Figure, read

NODE = {
    "source": "a paper",
    "metric": "ppl",
    "tolerance": 0.5,
    "splits": {
        "val": {"value": 92.0, "tokens": 100, "under": "carried-10"},
        "test": {"value": 87, "tokens": 120, "evaluation": {"lanes": 1}, "under": "carried-1"},
    },
    "protocol": "ten lanes on val, one on test",
    "steps": 400,
    "cost": "a day",
}
WHOLE = {"stopped_because": "budget", "steps": 400}
TEN_LANES = Protocol(1, "carried", 10, None, None, "32", None)


def test_a_node_is_read_and_told_again():
    target = read(NODE)
    assert target.splits["test"] == Figure(87, 120, {"lanes": 1}, "carried-1")
    assert not target.ours
    assert read(target.as_dict()) == target
    assert read(None) is None


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("metric", "accuracy", "published.metric=accuracy must be one of nll, ppl, bpb"),
        ("tolerance", "small", "published.tolerance=small must be a number"),
        ("steps", 1.5, "published.steps=1.5 must be a whole number"),
        ("steps", True, "published.steps=True must be a whole number"),
        ("splits", {}, "published.splits={} must hold val or test"),
        ("splits", {"train": {"value": 1.0, "tokens": 1}}, "must hold val or test"),
        ("splits", {"val": {"value": 1.0}}, "published.splits.val.tokens=... is needed"),
        ("splits", {"val": {"value": 1.0, "tokens": 1, "lanes": 1}}, "no key published.splits.val.lanes"),
        ("splits", {"val": 3.0}, "published.splits.val=3.0 must be a mapping"),
        ("sorce", "a paper", "no key published.sorce"),
    ],
)
def test_a_node_that_says_it_wrongly_is_refused(key, value, told):
    with pytest.raises(ValueError) as raised:
        read(copy.deepcopy(NODE) | {key: value})
    assert told in str(raised.value)
    with pytest.raises(ValueError, match=r"published.cost=... is needed"):
        read({k: v for k, v in NODE.items() if k != "cost"})
    with pytest.raises(ValueError, match="published=yes must be null"):
        read("yes")


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        (92.0, "within tolerance"),
        (92.5, "within tolerance"),
        (92.504, "within tolerance"),  # shown as 92.50
        (92.51, "missed"),
        (91.5, "within tolerance"),
        (91.49, "better"),
    ],
)
def test_the_verdict_is_of_the_shown_digits(value, verdict):
    assert read(NODE).verdict("val", value) == verdict


def test_a_distance_says_what_it_is_to_and_what_is_amiss():
    target = read(NODE)
    whole = target.distances({"val": {"tokens": 100, "ppl": 93.0}}, TEN_LANES, WHOLE)
    assert whole == ["published val ppl 92.00 (a paper): 93.00, +1.00: missed"]
    (line,) = target.distances({"val": {"tokens": 100, "ppl": 593.0}}, TEN_LANES, WHOLE | {"steps": 40})
    assert line.endswith("593.00, +501.00: not whole, 40 of 400 steps")
    (line,) = target.distances({"val": {"tokens": 99, "ppl": 9.0}}, TEN_LANES, WHOLE)
    assert line.endswith("no distance, it is over 100 tokens, here are 99"), "a better number of other text is none"
    (line,) = target.distances({"test": {"tokens": 120, "ppl": 87.2}}, TEN_LANES, WHOLE)
    assert "under another protocol" in line
    own = read(NODE | {"ours": True}).distances({"val": {"tokens": 100, "ppl": 92.0}}, TEN_LANES, WHOLE)
    assert own[0].startswith("own val ppl")


def test_a_part_is_told_by_what_ended_it_its_budgets_or_else_its_steps():
    target = read(NODE)
    fewer, time = {"trainer.max_steps": [400, 40]}, {"trainer.max_time": [None, "00:01:00:00"]}
    assert target.why_partial(WHOLE | {"steps": 396}) is None, "lengths are random: another seed takes a few steps less"
    assert target.why_partial(WHOLE | {"steps": 395}) == "395 of 400 steps"
    assert target.why_partial(WHOLE | {"steps": 40}, time) is None, "the recipe's budget, of another text"
    assert target.why_partial(WHOLE | {"steps": 40}, fewer) == "trainer.max_steps=40 (the recipe: 400)"
    for why in ("interrupted", "max_time"):
        stopped = {"stopped_because": why, "steps": 399}
        assert target.why_partial(stopped) == target.why_partial(stopped, time) == f"stopped by {why}"


def test_what_early_stopping_ended_is_whole():
    target, early = read(NODE), {"stopped_because": "early stopping", "steps": 40}
    assert target.why_partial(early) is target.why_partial(early, {}) is None
    (line,) = target.distances({"val": {"tokens": 100, "ppl": 92.1}}, TEN_LANES, early)
    assert line.endswith("within tolerance")


@pytest.mark.parametrize(
    "other", [{"lanes": 1}, {"policy": "sliding"}, {"precision": "bf16-mixed"}, {"limit_tokens": 9}]
)
def test_a_distance_under_any_other_protocol_says_so(other):
    sums = {"val": {"tokens": 100, "ppl": 93.0}}
    (line,) = read(NODE).distances(sums, replace(TEN_LANES, **other), WHOLE)
    assert line.endswith("missed; under another protocol, lmlab reproduce takes its own")


def test_a_number_that_does_not_state_its_protocol_is_known_to_have_none():
    # As nodes of stored runs do, and records.
    stored = read(NODE | {"splits": {"val": {"value": 92.0, "tokens": 100}}})
    (line,) = stored.distances({"val": {"tokens": 100, "ppl": 92.0}}, TEN_LANES, WHOLE)
    assert line.endswith("within tolerance; under carried-10, and the number's own protocol is not stated")
