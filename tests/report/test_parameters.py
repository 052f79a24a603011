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
    assert found == {"values": [["x", 1.0]], "note": "Not weighed, as some runs do not have them: y."}
    equal = importance([numbers], groups(*[(1.0, float(i)) for i in range(10)]), 1)
    assert equal == {"values": [], "note": "All configurations are equally good."}


def test_importance_worked_by_hand():
    """y = 3 a + b on a grid: the variances of 3 a and of b are as 9 to 1."""
    varied = [Parameter("a", [], True, False, []), Parameter("b", [], True, False, [])]
    rows = [(3.0 * a + b, float(a), float(b)) for a in range(7) for b in range(7)]
    assert dict(importance(varied, groups(*rows), 1)["values"]) == pytest.approx({"a": 0.9, "b": 0.1}, abs=0.03)


def test_a_logarithmic_parameter_is_weighed_on_its_scale():
    """y = log10 lr over four decades: by length, nine tenths of the range would be the last decade."""
    varied = [Parameter("lr", [], True, True, []), Parameter("b", [], True, False, [])]
    rows = [(float(lr) + b, 10.0**lr, float(b)) for lr in range(-4, 0) for b in (0, 1, 2, 3)]
    assert dict(importance(varied, groups(*rows), 1)["values"]) == pytest.approx({"lr": 0.5, "b": 0.5}, abs=0.05)


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "sklearn", None)
    found = importance([Parameter("x", [], True, False, [])], groups(*[(float(i), float(i)) for i in range(9)]), 1)
    assert "pip install 'lmlab[sweeps]'" in found["note"]
