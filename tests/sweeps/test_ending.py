"""The end of a sweep: which points win, and what a sweep under several protocols says of it."""

from types import SimpleNamespace

import pytest

from lmlab.sweeps.ending import Tidy, best, finished, winners
from lmlab.sweeps.ledger import Ledger
from lmlab.sweeps.live import leaders

BPB, SECONDS = ({"metric": name, "direction": "minimize"} for name in ("val/bpb", "seconds"))
# (val/bpb, protocol) of points of two replicates each.
TOLD = [((2.0, 2.2), "carried-16"), ((1.9, 2.1), "carried-16"), ((1.5, 1.7), "sliding-32/16"), ((1.6, 1.8), None)]


def asked(*objective: dict, strategy: str = "grid", rule: str = "none") -> SimpleNamespace:
    told = {"objective": list(objective), "strategy": strategy, "pruning": {"rule": rule}}
    return SimpleNamespace(**told, keep="best", test=False)


@pytest.fixture
def ledger(tmp_path):
    """Three points under two protocols, and one of a ledger that was begun before it had them."""
    with Ledger(tmp_path / "ledger.sqlite", create=True) as ledger:
        for number, (values, protocol) in enumerate(TOLD):
            ledger.add_point({}, [f"x={number}"], {}, [0, 1])
            for trial, value in zip(ledger.by_point()[number], values, strict=True):
                results = {"val/bpb": value, "seconds": 10.0 - number}
                ledger.finish(trial["id"], results | ({"protocol": protocol} if protocol else {}), steps=9)
                ledger.set(trial["id"], run_dir=f"trials/{number}-{trial['seed']}")
        yield ledger


def test_points_compete_with_those_of_their_protocol_alone(ledger):
    found = finished(asked(BPB), ledger)
    assert {name: list(values) for name, values in found.items()} == {
        "carried-16": [0, 1],
        "sliding-32/16": [2],
        "recorded before protocols had names": [3],
    }
    assert best(asked(BPB), found["carried-16"]) == [1]
    assert winners(asked(BPB), ledger) == {1, 2, 3}
    assert winners(asked(SECONDS), ledger) == {3}, "seconds are the same under each"
    assert winners(asked(BPB, SECONDS), ledger) == {1, 2, 3}


def test_a_sweep_under_several_protocols_names_no_winner_and_says_what_makes_them_one(ledger):
    (what, why), *lines = leaders(asked(BPB), ledger)
    assert what == "no winner"
    assert why.startswith("3 protocols, whose numbers are not comparable: carried-16, sliding-32/16, recorded")
    assert "evaluation=sliding evaluation.max_context=N puts all under one" in why
    assert lines[:2] == [
        ("best under carried-16", "val/bpb 2.0000  x=1"),
        ("best under sliding-32/16", "val/bpb 1.6000  x=2"),
    ]
    assert leaders(asked(SECONDS), ledger) == [("best", "seconds 7.0000  x=3")]


def test_what_compared_protocols_while_the_sweep_ran_is_said(ledger):
    (_, why), *_ = leaders(asked(BPB, strategy="tpe", rule="asha"), ledger)
    assert why.endswith("(strategy=tpe and pruning.rule=asha compared them all the same)")
    (_, why), *_ = leaders(asked(BPB, strategy="random"), ledger)
    assert "all the same" not in why


def test_the_best_of_each_protocol_keeps_its_checkpoint(ledger, tmp_path):
    for row in ledger.trials():
        folder = tmp_path / row["run_dir"] / "checkpoints"
        folder.mkdir(parents=True)
        for name in ("best.ckpt", "last.ckpt"):
            (folder / name).touch()
    Tidy(asked(BPB), ledger, tmp_path).update(last=True)
    kept = sorted(path.relative_to(tmp_path / "trials").parts for path in tmp_path.rglob("*.ckpt"))
    assert kept == [(f"{point}-{seed}", "checkpoints", "best.ckpt") for point in (1, 2, 3) for seed in (0, 1)]
