"""Spaces in Hydra's syntax, their grids, and conditions."""

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from lmlab.sweeps.space import grid, overrides, parameter, parse, samples


@pytest.mark.parametrize(
    ("text", "distribution"),
    [
        ("1,2", CategoricalDistribution((1, 2))),
        ("choice(lstm,transformer)", CategoricalDistribution(("lstm", "transformer"))),
        ("true,null,0.5", CategoricalDistribution((True, None, 0.5))),
        ("range(1,9,2)", IntDistribution(1, 7, step=2)),
        ("range(0,1,0.25)", FloatDistribution(0.0, 0.75, step=0.25)),
        ("interval(1,8)", FloatDistribution(1.0, 8.0)),
        ("int(interval(1,8))", IntDistribution(1, 8)),
        ("tag(log,interval(1e-4,1e-1))", FloatDistribution(1e-4, 1e-1, log=True)),
        ("tag(log, int(interval(2,64)))", IntDistribution(2, 64, log=True)),
    ],
)
def test_hydras_syntax_becomes_optunas_distribution(text: str, distribution):
    assert parameter("key", text).distribution() == distribution


def test_an_override_is_written_as_it_was_typed():
    one = parameter("optimizer.lr", "1e-3,0.01")
    assert overrides([one], {"optimizer.lr": one.values[0]}) == ["optimizer.lr=0.001"]
    lists = parameter("key", "[1,2],[3]")
    assert overrides([lists], {"key": lists.values[1]}) == ["key=[3]"]
    truth = parameter("key", "true,1")
    assert overrides([truth], {"key": True}) == ["key=True"]
    assert overrides([truth], {"key": 1}) == ["key=1"]
    assert overrides([parameter("key", "null,0.1")], {"key": None}) == ["key=null"]


def test_drawn_numbers_have_few_digits_and_stay_within_the_bounds():
    one = parameter("key", "interval(0.1234543,0.2)")
    assert one.rounded(0.15555555) == 0.15556
    # 0.12345 would be below.
    assert one.rounded(0.1234543) == 0.1234543


def test_a_grid_has_every_combination_once_and_leaves_out_what_a_condition_excludes():
    space = {"model": "lstm,transformer", "model.cell": "lstm,gru", "seq": "1,2"}
    points = list(grid(parse(space, {"model.cell": "model=lstm"}, {})))
    # By hand: lstm has 2 cells x 2, the transformer has no cell, 2 in all.
    assert len(points) == 6
    assert [p.get("model.cell") for p in points if p["model"] == "transformer"] == [None, None]
    assert len({tuple(sorted(p.items())) for p in points}) == 6


def test_conditions_may_chain_list_values_and_stand_before_what_they_read():
    space = {"c": "1,2", "b": "1,2,3", "a": "1,2"}
    points = list(grid(parse(space, {"b": "a=2", "c": ["b=1,2", "a=2"]}, {})))
    # a=1: alone. a=2, b=3: no c. a=2, b=1 or 2: two values of c each.
    assert len(points) == 1 + 1 + 4


def test_a_condition_on_what_is_fixed_is_settled_at_once():
    space = {"model.cell": "lstm,gru", "seq": "1,2"}
    assert [p.key for p in parse(space, {"model.cell": "model=lstm"}, {"model": "transformer"})] == ["seq"]
    (cell, _) = parse(space, {"model.cell": "model=lstm"}, {"model": "lstm"})
    assert cell.when == ()


def test_samples_vary_every_parameter():
    space = {"a": "1,2", "b": "interval(0,1)", "c": "x,y"}
    found = list(samples(parse(space, {"b": "a=1", "c": "a=2"}, {})))
    assert {key for point in found for key in point} == {"a", "b", "c"}
    assert len(found) == 2


@pytest.mark.parametrize(
    ("space", "when", "message"),
    [
        ({"a": "5"}, {}, "a=5 has one value"),
        ({"a": "range(3,3)"}, {}, "a=range.3,3. has no values"),
        ({"a": "interval(2,1)"}, {}, "lower end must be below"),
        ({"a": "tag(log,interval(0,1))"}, {}, "above 0"),
        # From 1 to 7 with a log scale there are 2, 4 and 6, too, which the range leaves out.
        ({"a": "tag(log,range(1,9,2))"}, {}, "a=tag.log,range.1,9,2..: tag.log,....* is of intervals"),
        ({"a": "tag(log,choice(1,10))"}, {}, "a=tag.log,choice.1,10..: tag.log,....* is of intervals"),
        ({"a": "choice(1,"}, {}, "is no space"),
        ({"a": "1,1"}, {}, "names a value twice"),
        ({"a": "1,2"}, {"b": "a=1"}, "b is not varied"),
        ({"a": "1,2"}, {"a": "b=1"}, "b is neither varied nor given"),
        ({"a": "1,2", "b": "1,2"}, {"a": "b=1", "b": "a=1"}, "wait for each other"),
        ({"a": "1,2", "b": "1,2"}, {"b": "a=3"}, "a never is 3"),
        ({"a": "1,2", "b": "1,2"}, {"b": "a"}, "must be written"),
    ],
)
def test_a_space_that_cannot_be_meant_is_refused(space, when, message):
    with pytest.raises(ValueError, match=message):
        parse(space, when, {})


def test_a_grid_of_an_interval_is_refused_by_name():
    with pytest.raises(ValueError, match=r"strategy=grid needs values for optimizer.lr"):
        list(grid(parse({"optimizer.lr": "interval(0,1)"}, {}, {})))
