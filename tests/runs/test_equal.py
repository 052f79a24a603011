"""Families compared with something held equal; by hand, from runs whose numbers are written here."""

import math

import pandas as pd
import pytest

from lmlab.runs import equal
from lmlab.runs.equal import reached, welch, welch_p


def run(model: str, parameters: float, tokens: float, seconds: float, bpb: float, seed: int = 0, **asked) -> dict:
    name = f"{model}{round(parameters, -2)}{round(tokens, -2)}"
    told = {"treatment": name, "state": "budget", "seed": seed, "model": model, "parameters": parameters}
    told |= {"n_params": round(parameters, -2), "max_tokens": round(tokens, -2)} | asked
    return told | {"tokens": tokens, "seconds": seconds, "val/bpb": bpb}


# Small: a is better. Large: b is, but takes four times as long.
RUNS = [
    run("a", 1000, 1000, 10, 3.0),
    run("a", 1000, 4000, 40, 2.6),
    run("a", 4008, 1000, 20, 2.9),
    run("a", 4008, 4000, 80, 2.5),
    run("b", 1002, 1001, 20, 3.1),
    run("b", 1002, 4001, 80, 2.8),
    run("b", 4000, 1001, 80, 2.7),
    run("b", 4000, 4001, 320, 2.2),
]


@pytest.fixture
def told():
    return equal(pd.DataFrame(RUNS))


def held(told: list[dict], what: str) -> list[dict]:
    return [row for row in told if row["held"] == what]


def test_at_equal_parameters_each_family_has_its_best_budget(told):
    small, large = held(told, "parameters")
    assert (small["winner"], round(small["by"], 6)) == ("a", 0.2)
    assert small["families"]["a"]["mean"] == 2.6
    assert (large["winner"], round(large["by"], 6)) == ("b", 0.3)
    assert large["families"]["b"]["tokens"] == 4001
    assert small["half"] is None
    assert not small["sure"]


def test_at_equal_tokens_each_family_has_its_best_size(told):
    few, many = held(told, "tokens")
    assert (few["winner"], few["families"]["b"]["parameters"]) == ("b", 4000)
    assert (many["winner"], round(many["by"], 6)) == ("b", 0.3)


def test_at_equal_seconds_each_family_has_what_it_reaches_by_then(told):
    """From b's first end at 20 s to a's last at 80 s: 20 * 4^(1/4), 40, 20 * 4^(3/4) and 80 seconds."""
    rows = held(told, "seconds")
    assert [row["at"] for row in rows] == pytest.approx([28.284, 40, 56.569, 80], rel=1e-4)
    at40 = rows[1]["families"]
    # a: its small model has ended at 40 s with 2.6; its large one is half-way between 2.9 at 20 s and 2.5 at 80 s.
    assert at40["a"]["mean"] == pytest.approx(2.6)
    # b: only its small one has a run that short: half-way between 3.1 at 20 s and 2.8 at 80 s.
    assert at40["b"]["mean"] == pytest.approx(2.95)
    assert rows[1]["winner"] == "a"
    assert rows[3]["families"]["b"]["mean"] == pytest.approx(2.7)


def test_what_a_sweep_measures_beside_does_not_make_every_run_a_kind_of_its_own(told):
    measured = [one | {"perf/memory_gb": 1 + n / 10, "own/score": float(n)} for n, one in enumerate(RUNS)]
    assert equal(pd.DataFrame(measured)) == told


def test_what_a_run_reaches_lies_between_the_shorter_and_the_longer_one():
    line = [(10.0, 3.0), (40.0, 2.6)]
    assert reached(line, 5) is None
    assert reached(line, 20) == pytest.approx(2.8)
    assert reached(line, 100) == 2.6


def test_replicates_that_overlap_decide_nothing():
    close = [*RUNS, *({**one, "seed": 1, "val/bpb": one["val/bpb"] + 0.4} for one in RUNS)]
    rows = equal(pd.DataFrame(close))
    assert {row["winner"] for row in rows} == {None}
    assert all(row["half"] > row["by"] for row in rows)
    sure = [*RUNS, *({**one, "seed": 1, "val/bpb": one["val/bpb"] + 0.001} for one in RUNS)]
    rows = equal(pd.DataFrame(sure))
    assert {row["winner"] for row in held(rows, "tokens")} == {"b"}
    assert all(row["sure"] for row in held(rows, "tokens"))


def test_runs_trained_twice_make_no_verdict_surer(told):
    again = equal(pd.DataFrame([*RUNS, *RUNS]))
    assert again == told
    assert not any(row["sure"] for row in again)


def test_the_interval_of_a_difference_is_welch_s():
    """Variances 2 and 8 of two values each: errors 1 and 4, df 25 / 17 rounded down to 1, t = 12.706."""
    assert welch([0.0, 2.0], [0.0, 4.0]) == pytest.approx(12.7062 * math.sqrt(5), rel=1e-4)
    assert welch([1.0], [2.0, 3.0]) is None
    # Student's t of one degree of freedom is Cauchy's: they differ by 1, t = 1 / sqrt(5).
    assert welch_p([0.0, 2.0], [0.0, 4.0]) == pytest.approx(1 - 2 / math.pi * math.atan(1 / math.sqrt(5)))
    assert welch_p([1.0], [2.0, 3.0]) is None
    assert (welch_p([1.0, 1.0], [2.0, 2.0]), welch_p([1.0, 1.0], [1.0, 1.0])) == (0.0, 1.0)


def test_many_comparisons_need_more_proof_than_one():
    """Eight of them: what one alone would show at p = 0.02 is no finding among others that show nothing."""

    def pair(k: int, by: float) -> list[dict]:
        sizes = (1000.0 * 2**k, 1000.0, 10.0)
        a = [run("a", *sizes, 2.0 + x, seed) for seed, x in enumerate((-0.01, 0.0, 0.01))]
        b = [run("b", *sizes, 2.0 + by + x, seed) for seed, x in enumerate((-0.01, 0.0, 0.01))]
        return a + b

    # Standard error sqrt(2 * 0.0001 / 3) = 0.0082, four degrees of freedom: 0.031 is t = 3.8, p = 0.019.
    alone = held(equal(pd.DataFrame(pair(0, 0.031))), "parameters")
    assert alone[0]["by"] > alone[0]["half"]
    many = held(
        equal(pd.DataFrame([row for k in range(8) for row in pair(k, 0.031 if k == 0 else 0.001)])), "parameters"
    )
    assert len(many) == 8
    assert many[0]["by"] > many[0]["half"]
    assert (many[0]["winner"], many[0]["sure"]) == (None, False)
    # With those at equal tokens nine are compared, and of those at equal tokens each family has its best of eight.
    assert many[0]["p_holm"] == pytest.approx(9 * 0.019, rel=0.05)


def test_from_how_many_each_family_was_chosen_is_told(told):
    assert {name: one["chosen_from"] for name, one in held(told, "parameters")[0]["families"].items()} == {
        "a": 2,
        "b": 2,
    }
    # At 20 * 4^(1/4) seconds no large model of b has ended, a of both sizes has.
    assert {name: one["chosen_from"] for name, one in held(told, "seconds")[0]["families"].items()} == {"a": 2, "b": 1}


def test_one_family_is_compared_with_nothing():
    assert equal(pd.DataFrame(RUNS[:4])) == []
    assert equal(pd.DataFrame()) == []


def test_more_is_better_where_it_is_said():
    rows = equal(pd.DataFrame(RUNS), higher=True)
    assert held(rows, "parameters")[1]["winner"] == "a"
