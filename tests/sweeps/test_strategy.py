"""What comes next is a function of the number, the seed and what has finished, and is written down first."""

import importlib.util
import json
from dataclasses import replace

import pytest
from tests.sweeps.test_pruning import ASHA, ASKED

from lmlab.sweeps import strategy
from lmlab.sweeps.ledger import Ledger
from lmlab.sweeps.space import parse

NUMBERS = {"optimizer.lr": "tag(log,interval(1e-4,1e-1))", "model.n_layers": "range(1,5)"}
SPACE = {**NUMBERS, "model.cell": "lstm,gru"}


def run(path, name: str, n: int, objectives: int = 1) -> list[dict]:
    """The points of a sweep whose value is smallest at lr=0.01 and four layers; a new ledger for each draw."""
    objective = [{"metric": metric, "direction": "minimize"} for metric in ("val/bpb", "parameters")[:objectives]]
    space = NUMBERS if name == "cmaes" else SPACE
    asked = replace(ASKED, strategy=name, trials=n, space=space, objective=objective)
    for _ in range(n):
        # As after being killed: nothing is known but what the ledger has.
        with Ledger(path, create=True) as ledger:
            number = strategy.propose(asked, ledger)
            params = json.loads(ledger.points()[number]["params"])
            value = abs(params["optimizer.lr"] - 0.01) + abs(params["model.n_layers"] - 4)
            told = {"val/bpb": value, "parameters": params["model.n_layers"]}
            ledger.set(number + 1, status="done", values_=json.dumps(told))
    with Ledger(path) as ledger:
        assert strategy.propose(asked, ledger) is None
        return [json.loads(row["params"]) for row in ledger.points()]


@pytest.mark.parametrize("name", ["random", "tpe", "gp", "cmaes"])
def test_points_are_the_same_whenever_they_are_drawn_again(name, tmp_path):
    needed = strategy.LIBRARIES.get(name)
    if needed and importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is in lmlab[sweeps]")
    first, again = (run(tmp_path / f"{i}.sqlite", name, 14) for i in range(2))
    assert first == again
    assert all(1e-4 <= point["optimizer.lr"] <= 1e-1 for point in first)
    assert {point["model.n_layers"] for point in first} <= {1, 2, 3, 4}
    assert len({point["optimizer.lr"] for point in first}) == 14


@pytest.mark.parametrize(
    ("space", "when", "message"),
    [
        ({"model.cell": "lstm,gru"}, {}, "model.cell has choices"),
        ({"optimizer.weight_decay": "choice(0.1,0.2)"}, {}, "optimizer.weight_decay has choices .of numbers, too."),
        (
            {"model.n_heads": "range(1,5)", "model": "transformer,lstm"},
            {"model.n_heads": "model=transformer"},
            "model has choices .of numbers, too.; model.n_heads depends on another key",
        ),
    ],
)
def test_cmaes_refuses_by_name_what_it_would_draw_at_random(space, when, message):
    strategy.check_space("cmaes", parse(NUMBERS | {"seq": "range(1,2)"}, {}, {}))
    with pytest.raises(ValueError, match=message):
        strategy.check_space("cmaes", parse(NUMBERS | space, when, {}))
    strategy.check_space("tpe", parse(NUMBERS | space, when, {}))


def test_gp_refuses_conditions_which_it_would_draw_at_random():
    space = {"model.n_heads": "range(1,5)", "model": "transformer,lstm"}
    with pytest.raises(ValueError, match=r"strategy=gp models what every point has: model.n_heads depends .* take tpe"):
        strategy.check_space("gp", parse(NUMBERS | space, {"model.n_heads": "model=transformer"}, {}))
    strategy.check_space("gp", parse(NUMBERS | space, {}, {}))


@pytest.mark.parametrize("name", ["tpe", *strategy.FINISHED_ONLY])
def test_what_learns_nothing_from_pruned_trials_is_refused_where_all_are_pruned_at_first(name, tmp_path):
    """Points drawn after 15 that were stopped at a rung: random's own, but for those of a sampler that reads rungs."""
    needed = strategy.LIBRARIES.get(name)
    if needed and importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is in lmlab[sweeps]")

    def drawn(by: str) -> list[str]:
        asked = replace(ASKED, strategy=by, trials=16, space=NUMBERS, pruning=ASHA)
        with Ledger(tmp_path / f"{by}.sqlite", create=True) as ledger:
            for number in range(16):
                assert strategy.propose(asked, ledger, 0) == number
                value = json.loads(ledger.points()[number]["params"])["optimizer.lr"]
                ledger.set(number + 1, status="pruned", total_steps=90)
                ledger.report(number + 1, 10, value)
            return [row["params"] for row in ledger.points()]

    learns = drawn(name) != drawn("random")
    assert learns == (name == "tpe")
    for rule in ("asha", "hyperband"):
        if learns:
            strategy.check(name, rule)
        else:
            with pytest.raises(ValueError, match=f"strategy={name} learns from finished .*={rule} .*strategy=tpe"):
                strategy.check(name, rule)
    # Stopped by it are the worse half alone.
    strategy.check(name, "median")


BPB, SECONDS = ({"metric": metric, "direction": "minimize"} for metric in ("val/bpb", "seconds"))


@pytest.mark.parametrize(
    ("name", "rule", "space", "points", "message"),
    [
        ("tpe", "none", ["optimizer.lr", "evaluation.lanes"], [], "strategy=tpe would .* val/bpb .* evaluation.lanes"),
        ("grid", "asha", ["evaluation"], [], "pruning.rule=asha would compare .* for evaluation is varied"),
        ("list", "median", [], [["evaluation.lanes=2"], []], "pruning.rule=median .* evaluation.lanes is varied"),
    ],
)
def test_protocols_that_the_space_varies_are_refused_by_whatever_compares_across_them(
    name, rule, space, points, message
):
    with pytest.raises(ValueError, match=message):
        strategy.check_protocols(name, rule, [BPB], space, points)
    # Seconds are the same under each; nothing else compares before the end, which keeps protocols apart.
    strategy.check_protocols(name, rule, [SECONDS], space, points)
    strategy.check_protocols("random" if name == "tpe" else name, "none", [BPB], space, points)
    strategy.check_protocols(name, rule, [BPB], ["optimizer.lr", "evaluations"], [["evaluation.lanes=2"]] * 2)


def test_several_objectives_are_drawn_for(tmp_path):
    assert len(run(tmp_path / "l.sqlite", "tpe", 12, objectives=2)) == 12


def test_means_over_replicates_are_what_a_sampler_sees(tmp_path):
    with Ledger(tmp_path / "l.sqlite", create=True) as ledger:
        ledger.add_point({"x": 0.5}, ["x=0.5"], {}, [0, 1])
        ledger.set(1, status="done", values_='{"val/bpb": 1.0}')
        (trial,) = strategy.history(ASKED, ledger)
        assert trial.state.name == "RUNNING"
        ledger.set(2, status="done", values_='{"val/bpb": 2.0}')
        (trial,) = strategy.history(ASKED, ledger)
        assert (trial.state.name, trial.values) == ("COMPLETE", [1.5])
        ledger.set(2, status="failed")
        assert strategy.history(ASKED, ledger)[0].state.name == "FAIL"


def test_a_library_that_is_missing_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"strategy=gp needs scipy.*lmlab\[sweeps\]"):
        strategy.check("gp", "none")
