"""Rungs, brackets and promotions, worked out by hand."""

import json
from dataclasses import replace
from unittest.mock import Mock

import pytest
from tests.sweeps.conftest import TINY

from lmlab.config import compose
from lmlab.sweeps.asked import Asked
from lmlab.sweeps.ledger import Ledger
from lmlab.sweeps.pruning import behind, bracket, check, goal, promote, shares

ASHA = {"rule": "asha", "factor": 3, "first": 1 / 9, "least": 2}
ASKED = Asked(
    name="a", strategy="random", strategy_seed=0, trials=9, space={"x": "interval(0,1)"}, when={}, points=[],
    overrides=[], objective=[{"metric": "val/bpb", "direction": "minimize"}], replicates=1, seeds=[0], pruning=ASHA,
    retries=0, out_of_memory="fail", keep="all", test=False, config_dir=None, base={}, fingerprint="",
)  # fmt: skip


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite", create=True) as opened:
        yield opened


def stop(ledger: Ledger, trial: int, step: int, value: float, rung: int | None = 0) -> None:
    ledger.set(trial, total_steps=90, status="pruned", rung=rung)
    ledger.report(trial, step, value)


def test_rungs_are_shares_of_a_trials_own_steps():
    assert shares(ASHA, 0) == pytest.approx([1 / 9, 1 / 3])
    assert [goal(ASHA, 0, rung, 90) for rung in (0, 1, 2, None)] == [10, 30, 90, 90]
    # Steps are whole: a rung is reached when its share is.
    assert goal(ASHA, 0, 0, 100) == 12
    assert shares({**ASHA, "rule": "none"}, 0) == []


def test_hyperband_deals_points_to_brackets_in_its_proportions():
    rule = {**ASHA, "rule": "hyperband"}
    # Algorithm 1 of the paper for s_max = 2, eta = 3: 9, 5 and 3 points begin in brackets 2, 1 and 0.
    dealt = [bracket(rule, point) for point in range(17)]
    assert [dealt.count(b) for b in (0, 1, 2)] == [9, 5, 3]
    assert [len(shares(rule, dealt.index(b))) for b in (0, 1, 2)] == [2, 1, 0]
    assert bracket(rule, 17) == 0


def test_the_best_third_of_a_rung_goes_on_and_no_more(ledger):
    for _ in range(9):
        ledger.add_point({}, [], {}, [0])
    for trial, value in enumerate([5.0, 3.0, 8.0, 1.0, 9.0, 2.0, 7.0, 6.0, 4.0], 1):
        stop(ledger, trial, 10, value)
    ledger.set(9, status="running")
    promoted = []
    while promote(ASKED, ledger):
        promoted += [row["id"] for row in ledger.trials("waiting") if row["id"] not in promoted]
    # 9 // 3 of the values, lowest first: 1.0, 2.0, 3.0.
    assert promoted == [4, 6, 2]
    assert {row["rung"] for row in ledger.trials("waiting")} == {1}
    # At the next rung two of them: one // 3 is none, while another is at work.
    stop(ledger, 4, 30, 1.0, 1)
    stop(ledger, 6, 30, 0.5, 1)
    assert not promote(ASKED, ledger)
    # With nothing else to do, the best goes to its end.
    for trial in (2, 9):
        ledger.set(trial, status="failed")
    assert promote(ASKED, ledger)
    (row,) = ledger.trials("waiting")
    assert (row["id"], row["rung"]) == (6, None)


def test_a_trial_that_began_past_a_rung_counts_there_by_its_first_measurement(ledger):
    for _ in range(3):
        ledger.add_point({}, [], {}, [0])
    for trial, value in enumerate([3.0, 2.0, 4.0], 1):
        stop(ledger, trial, 10, value)
    # The rung is at step 10: the second trial was resumed there, and measured one step later, and before.
    ledger.connection.execute("DELETE FROM reports WHERE trial = 2")
    for step, value in ((9, 5.0), (11, 1.9), (20, 9.0)):
        ledger.report(2, step, value)
    assert promote(ASKED, ledger)
    assert [row["id"] for row in ledger.trials("waiting")] == [2]


def test_a_maximised_objective_promotes_the_largest(ledger):
    for trial, value in enumerate([1.0, 3.0, 2.0], 1):
        ledger.add_point({}, [], {}, [0])
        stop(ledger, trial, 10, value)
    assert promote(replace(ASKED, objective=[{"metric": "val/bpb", "direction": "maximize"}]), ledger)
    assert [row["id"] for row in ledger.trials("waiting")] == [2]


def test_replicates_are_promoted_together_by_their_mean(ledger):
    for _ in range(3):
        ledger.add_point({}, [], {}, [0, 1])
    for trial, value in enumerate([1.0, 9.0, 4.0, 4.0, 6.0, 6.0], 1):
        stop(ledger, trial, 10, value)
    assert promote(ASKED, ledger)
    assert [row["id"] for row in ledger.trials("waiting")] == [3, 4]


def test_a_replicate_that_ended_by_itself_keeps_no_other_from_its_promotion(ledger):
    """Of the best point, one seed has stopped early: before the rung, or past it."""
    for _ in range(3):
        ledger.add_point({}, [], {}, [0, 1])
    for trial, value in enumerate([5.0, 6.0, 1.0, 2.0, 7.0, 8.0], 1):
        stop(ledger, trial, 10, value)
    ledger.connection.execute("DELETE FROM reports WHERE trial = 4")
    ledger.report(4, 7, 3.0)
    ledger.set(4, status="done")
    assert promote(ASKED, ledger)
    assert [(row["id"], row["rung"]) for row in ledger.trials("waiting")] == [(3, 1)]
    stop(ledger, 3, 30, 1.0, 1)
    assert promote(ASKED, ledger)
    assert [(row["id"], row["rung"]) for row in ledger.trials("waiting")] == [(3, None)]


def test_what_was_pruned_goes_on_once_nothing_is_to_be_pruned(ledger):
    ledger.add_point({}, [], {}, [0])
    stop(ledger, 1, 10, 1.0)
    assert not promote(replace(ASKED, pruning={**ASHA, "rule": "median"}), ledger)
    assert promote(replace(ASKED, pruning={**ASHA, "rule": "none"}), ledger)
    assert ledger.trials("waiting")[0]["rung"] is None


def test_median_stops_what_is_worse_than_the_middle_of_the_others(ledger):
    rule = replace(ASKED, pruning={**ASHA, "rule": "median"})
    for _ in range(3):
        ledger.add_point(json.loads("{}"), [], {}, [0])
    ledger.report(1, 10, 2.0)
    ledger.report(3, 10, 3.5)
    # One other is too few.
    assert not behind(replace(rule, pruning={**rule.pruning, "least": 2}), ledger, 3, 10)
    ledger.report(2, 10, 4.0)
    # The median of 2 and 4 is 3.
    assert behind(rule, ledger, 3, 10)
    # Its best so far counts, not the latest.
    ledger.report(3, 5, 2.5)
    assert not behind(rule, ledger, 3, 10)
    assert not behind(ASKED, ledger, 3, 10)


def test_a_points_own_replicates_do_not_stop_it(ledger):
    rule = replace(ASKED, pruning={**ASHA, "rule": "median", "least": 2})
    for _ in range(2):
        ledger.add_point({}, [], {}, [0, 1])
    # Trials 1 and 2 are one point's, 3 and 4 another's.
    for trial, value in enumerate([2.0, 2.4, 3.0, 2.2], 1):
        ledger.report(trial, 10, value)
    # 2.4 is below the other point's median, 2.6, though worse than that of all three others, 2.2.
    assert not behind(rule, ledger, 2, 10)
    # 3.0 is above 2.2, the other point's; and a replicate makes no third trial to compare with.
    assert behind(rule, ledger, 3, 10)
    assert not behind(replace(rule, pruning={**rule.pruning, "least": 3}), ledger, 3, 10)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"factor": 1}, "pruning.factor=1"), ({"first": 0}, "pruning.first=0"), ({"least": 0}, "pruning.least=0")],
)
def test_numbers_that_make_no_rungs_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        check(ASHA | wrong)


def test_no_process_of_several_stops_alone():
    """Past its rung, at step 3; what is wanted is asked of all at once, every second step."""
    from lightning import LightningModule, Trainer

    from lmlab.sweeps.reporter import Reporter
    from lmlab.training.callbacks import GracefulStop

    callbacks = [GracefulStop(), Reporter("val/bpb", lambda total_steps: 3, lambda step, value: False)]
    asked = Mock(reduce_boolean_decision=lambda wanted, all: wanted)
    trainer = Mock(spec=Trainer, world_size=2, should_stop=False, callbacks=callbacks, strategy=asked)
    module = Mock(spec=LightningModule, step=0, total_steps=9, log_every=2, history=[])
    callbacks[1].on_train_start(trainer, module)
    stopped = []
    for module.step in (2, 3, 4):
        for callback in callbacks:
            callback.on_train_batch_end(trainer, module)
        stopped.append(trainer.should_stop)
    assert stopped == [False, False, True]


@pytest.mark.slow
def test_a_trial_of_two_processes_stops_at_its_rung_in_both(here):
    """The rung is at step 3; both are asked every second step, and what was known by then counts: step 4."""
    from lmlab.experiment import train
    from lmlab.sweeps.reporter import Reporter

    both = ["trainer=ddp", "trainer.accelerator=cpu", "devices=2", "evaluation.lanes=2", "training.log_every=2"]
    config = compose([*(word for word in TINY if word != "trainer=cpu"), *both, "floors=false", "run_dir=run"])

    def run():
        told: dict[int, float] = {}

        def report(step: int, value: float) -> bool:
            told[step] = value
            return False

        results = train(config, watchers=[lambda: Reporter("val/bpb", lambda total_steps: 3, report)])["training"]
        return results["stopped_because"], results["steps"], list(told)

    assert run() == ("pruned", 4, [3, 4])
    # Killed before anybody knew: it has been there, and goes no further than where both are asked next.
    (here / "run/results.json").unlink()
    assert run() == ("pruned", 6, [3, 6])
