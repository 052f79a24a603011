"""Which keys are shown as parameters, and as what."""

import pandas as pd
import pytest

from lmlab.report.importance import importance
from lmlab.report.parameters import Parameter, logarithmic, parameters


def frame(**columns) -> pd.DataFrame:
    n = len(next(iter(columns.values())))
    return pd.DataFrame({"run": [str(i) for i in range(n)], "treatment": [str(i) for i in range(n)], **columns})


def test_a_key_that_follows_from_a_choice_is_named_by_it():
    found = parameters(frame(**{"optimizer": ["a", "b", "a", "b"], "optimizer.beta": [1, 2, 1, 2], "lr": [1, 2, 2, 1]}))
    assert [(p.name, p.also) for p in found] == [("optimizer", ["optimizer.beta"]), ("lr", [])]


def test_random_numbers_do_not_say_each_other():
    found = parameters(frame(lr=[0.1, 0.2, 0.3, 0.4], dropout=[0.5, 0.1, 0.2, 0.4]))
    assert [p.name for p in found] == ["lr", "dropout"]


def test_sizes_in_words_are_numbers_and_missing_values_are_none():
    (found,) = parameters(frame(n_params=["2M", "500k", None, "1M"]))
    assert found.number
    assert found.values == [2_000_000, 500_000, None, 1_000_000]
    (found,) = parameters(frame(tie=[True, False, True, True]))
    assert not found.number
    assert found.values[:2] == ["true", "false"]


@pytest.mark.parametrize(
    ("numbers", "log"),
    [([1e-4, 1e-3, 1e-2, 1e-1], True), ([64, 128, 256], False), ([0, 1, 100], False), ([0.01, 0.1, 0.2, 0.3], False)],
)
def test_numbers_that_reach_far_and_crowd_below_are_logarithmic(numbers, log):
    assert logarithmic(numbers) is log


def groups(*rows: tuple) -> list[dict]:
    return [{"values": list(values), "mean": mean} for mean, *values in sorted(rows, key=lambda row: row[0])]


def test_importance_says_what_it_left_out_and_why():
    numbers = Parameter("x", [], True, False, [])
    few = importance([numbers], groups((1.0, 1.0), (2.0, 2.0)), 1)
    assert few["values"] == []
    assert "from 8 different configurations on; here are 2" in few["note"]
    rows = [(float(i), float(i), None if i % 2 else 1.0) for i in range(10)]
    found = importance([numbers, Parameter("y", [], True, False, [])], groups(*rows), 1)
    assert found == {"values": [["x", 1.0]], "together": 0.0, "note": "Not weighed, as some runs do not have them: y."}
    equal = importance([numbers], groups(*[(1.0, float(i)) for i in range(10)]), 1)
    assert equal == {"values": [], "note": "All configurations are equally good."}


def test_importance_worked_by_hand():
    """y = 3 a + b on a grid: the variances of 3 a and of b are as 9 to 1."""
    varied = [Parameter("a", [], True, False, []), Parameter("b", [], True, False, [])]
    rows = [(3.0 * a + b, float(a), float(b)) for a in range(7) for b in range(7)]
    assert dict(importance(varied, groups(*rows), 1)["values"]) == pytest.approx({"a": 0.9, "b": 0.1}, abs=0.03)


def test_what_only_two_explain_together_is_neither_s():
    """y = a b on a grid about 0: the mean over b is 0 for every a, so that neither explains anything by itself."""
    varied = [Parameter("a", [], True, False, []), Parameter("b", [], True, False, [])]
    places = [i / 4 - 1 for i in range(9)]
    found = importance(varied, groups(*[(a * b, a, b) for a in places for b in places]), 1)
    # The truth is 0, 0 and 1; that they add up to 1 is what makes the third.
    assert dict(found["values"]) == pytest.approx({"a": 0, "b": 0}, abs=0.03)
    assert found["together"] == pytest.approx(1, abs=0.05)
    assert sum(share for _, share in found["values"]) + found["together"] == pytest.approx(1)


def test_importance_leaves_out_what_has_one_value_among_those_that_came_to_a_result():
    """Of lr = 0.1 and 10 all of 10 diverged; clipping is null in one: nothing is left that could be weighed."""
    clip, lr = Parameter("clip", [], True, False, []), Parameter("lr", [], True, False, [])
    rows = [(float(i), None if i == 0 else float(i), 0.1) for i in range(9)]
    told = "Not weighed, as some runs do not have them: clip. "
    told += "Not weighed, as all that came to a result have one value of them: lr."
    assert importance([clip, lr], groups(*rows), 1) == {"values": [], "note": told}
    found = importance([Parameter("x", [], True, False, []), lr], groups(*[(m, m, v) for m, _, v in rows]), 1)
    assert found["values"] == [["x", 1.0]]
    assert importance([], groups(*[(m,) for m, _, _ in rows]), 1) == {"values": [], "note": "Nothing varies."}


def test_a_logarithmic_parameter_is_weighed_on_its_scale():
    """y = log10 lr + b, both over 3.5: by length, nine tenths of lr's range would be the last decade."""
    varied = [Parameter("lr", [], True, True, []), Parameter("b", [], True, False, [])]
    rows = [(lr / 2 + b / 2, 10 ** (lr / 2), b / 2) for lr in range(-8, 0) for b in range(8)]
    assert dict(importance(varied, groups(*rows), 1)["values"]) == pytest.approx({"lr": 0.5, "b": 0.5}, abs=0.05)


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "sklearn", None)
    found = importance([Parameter("x", [], True, False, [])], groups(*[(float(i), float(i)) for i in range(9)]), 1)
    assert "pip install 'lmlab[sweeps]'" in found["note"]
