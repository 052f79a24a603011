"""Loss spikes, injected: left out or taken back, said, counted, and the same whether the run was killed or not."""

import logging
import math
from unittest.mock import Mock

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf
from tests.training.test_resume import AVERAGING, LSTM, TRANSFORMER, Killed, assert_same_run, kill, same

from lmlab.config import asked, compose, identity
from lmlab.errors import TrainingFailed
from lmlab.run_directory import RunDirectory
from lmlab.training.checkpoints import read, weights
from lmlab.training.module import LMModule
from lmlab.training.plan import Plan
from lmlab.training.spikes import Rollback, Skip

SKIP = ["callbacks/spikes=skip", "callbacks.spikes.window=8"]
ROLLBACK = ["callbacks/spikes=rollback", "callbacks.spikes.window=8"]
NAN, INF = float("nan"), float("inf")


@pytest.fixture
def inject(monkeypatch):
    """inject({step: factor}): the model's loss is multiplied at these steps, counted from 1; gradients follow."""

    def at(factors):
        nll = LMModule._nll

        def spiking(self, *args):
            found, *rest = nll(self, *args)
            return found * factors.get(self.step + 1, 1.0), *rest

        monkeypatch.setattr(LMModule, "_nll", spiking)

    return at


def last(tmp_path, name):
    return read(tmp_path / name / "checkpoints/last.ckpt")


@pytest.mark.parametrize("factor", [NAN, INF, 1000.0], ids=["nan", "inf", "a thousand times"])
@pytest.mark.parametrize("kind", [LSTM, [*TRANSFORMER, "precision=bf16"]], ids=["lstm", "bf16 weights"])
def test_a_skipped_step_leaves_nothing_but_its_record(factor, kind, train, tmp_path, inject, caplog):
    inject({11: factor, 12: factor})
    with caplog.at_level(logging.WARNING, "lmlab"):
        told = train("run", *kind, *SKIP, "trainer.max_steps=20")["training"]
    assert [spike["step"] for spike in told["spikes"]] == [11, 12]
    assert all(spike["done"] == "its update is left out" for spike in told["spikes"])
    why = "is not finite" if not math.isfinite(factor) else "of the last 8 steps"
    assert all(why in spike["why"] for spike in told["spikes"])
    assert [r.getMessage().split(":")[0] for r in caplog.records if "left out" in r.message] == ["step 11", "step 12"]
    assert told["steps"] == 20
    found = last(tmp_path, "run")
    assert all(torch.isfinite(w).all() for w in weights(found).values())
    # Adam counted the steps that were taken.
    assert {int(s["step"]) for s in found["optimizer_states"][0]["state"].values() if "step" in s} == {18}
    # What was logged is of the other steps alone: no loss above that of a uniform guess, and none missing.
    points = RunDirectory(tmp_path / "run").points()
    logged = [float(point["train/loss"]) for point in points if point["train/loss"]]
    assert logged
    assert all(loss < 1.2 * math.log(257) for loss in logged)


def test_a_skipped_step_is_as_a_step_that_does_nothing(train, tmp_path, inject, monkeypatch):
    """The weights after a skip are those before it, the schedule goes on, and the next batch is the next one."""
    seen, batches = {}, []
    step = LMModule.training_step

    def watched(self, batch, index):
        batches.append(batch.targets.clone())
        before = {k: v.clone() for k, v in self.model.state_dict().items()}
        step(self, batch, index)
        seen[self.step] = same(before, dict(self.model.state_dict()))

    monkeypatch.setattr(LMModule, "training_step", watched)
    train("without", *LSTM, "trainer.max_steps=15")
    plain = batches[:]
    batches.clear()
    inject({5: NAN, 9: 1e4})
    train("with", *LSTM, *SKIP, "trainer.max_steps=15")
    assert [step for step, unchanged in seen.items() if unchanged] == [5, 9]
    assert same(batches, plain)


def test_rollback_goes_back_to_the_last_validation_and_on_with_the_next_batch(
    train, tmp_path, inject, monkeypatch, caplog
):
    after = {}
    step = LMModule.training_step

    def watched(self, batch, index):
        step(self, batch, index)
        after[self.step] = {k: v.clone() for k, v in self.model.state_dict().items()}

    monkeypatch.setattr(LMModule, "training_step", watched)
    inject({3: NAN, 12: 1e4})
    with caplog.at_level(logging.WARNING, "lmlab"):
        told = train("run", *LSTM, *ROLLBACK, "trainer.max_steps=20")["training"]
    # Validations are after every seventh step; before the first one, back to the start.
    assert [(s["step"], s["done"].rpartition(" ")[2]) for s in told["spikes"]] == [(3, "0"), (12, "7")]
    assert "step 12: the loss is" in caplog.text
    assert same(after[12], after[7])
    assert not same(after[13], after[12])
    assert told["steps"] == 20
    # Ten steps since the start or the validation to which it went back: 4 to 7, and 13 to 20.
    states = last(tmp_path, "run")["optimizer_states"][0]["state"].values()
    assert {int(s["step"]) for s in states} == {4 + 8}


KINDS = {
    "skip": [*LSTM, *SKIP],
    "rollback": [*LSTM, *ROLLBACK],
    "rollback, averaging": [*TRANSFORMER, *AVERAGING, *ROLLBACK],
    "rollback, bf16 weights, muon": [*TRANSFORMER, *ROLLBACK, "precision=bf16", "optimizer=muon"],
    # Saved between validations, too: what is gone back to is not what was saved last.
    "rollback, saved often": [*LSTM, *ROLLBACK, "callbacks.checkpoints.every_n_steps=2"],
}
SLOW = ("rollback, averaging", "rollback, bf16 weights, muon")


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[pytest.mark.slow] * (k in SLOW)) for k in KINDS])
def test_killed_runs_with_spikes_end_as_runs_that_were_never_killed(kind, train, tmp_path, monkeypatch, inject):
    inject({3: NAN, 12: 1e4, 18: INF, 19: INF, 27: NAN})
    whole = train("whole", *KINDS[kind])
    assert [s["step"] for s in whole["training"]["spikes"]] == [3, 12, 18, 19, 27]
    for hook, step in (("training_step", 11), ("training_step", 13), ("validation_step", 21), ("on_train_end", 30)):
        with monkeypatch.context() as patch:
            kill(patch, hook, step)
            with pytest.raises(Killed):
                train("killed", *KINDS[kind])
    train("killed", *KINDS[kind])
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


def test_interrupted_between_validations_a_rollback_goes_where_it_would_have_gone(train, tmp_path, monkeypatch, inject):
    """Ctrl-C after step 10 saves there; the spike at step 12 goes back to the validation after step 7 all the same."""
    inject({12: NAN})
    train("whole", *LSTM, *ROLLBACK)
    with monkeypatch.context() as patch:
        step = LMModule.training_step

        def interrupted(self, *args):
            step(self, *args)
            self.trainer.should_stop |= self.step == 10

        patch.setattr(LMModule, "training_step", interrupted)
        train("interrupted", *LSTM, *ROLLBACK)
    assert last(tmp_path, "interrupted")["lmlab"]["step"] == 10
    (tmp_path / "interrupted/results.json").unlink()
    train("interrupted", *LSTM, *ROLLBACK)
    # What is best may have been found by the validation that the interruption made.
    ours, theirs = (last(tmp_path, name) for name in ("interrupted", "whole"))
    assert same(ours["state_dict"], theirs["state_dict"])
    assert same(ours["optimizer_states"], theirs["optimizer_states"])


def test_spikes_are_asked_after_all_whose_state_they_keep(monkeypatch, tmp_path):
    """However a person's own option orders its keys: averages are part of what is gone back to."""
    from lmlab.training import fit

    built: list[str] = []
    monkeypatch.setattr(fit, "instantiate", lambda node: built.append(node["name"]) or Callback())
    names = ("checkpoints", "spikes", "averaging", "samples")
    config = OmegaConf.create(
        {
            "callbacks": {name: {"name": name} for name in names},
            "profile": False,
            "training": {"histograms": False},
            "trainer": {},
        }
    )
    plan = Mock(spec=Plan, config=config, store=Mock(tokenizer=None), watchers=())
    fit.build_callbacks(plan, RunDirectory(tmp_path))
    assert built == ["averaging", "samples", "spikes", "checkpoints"]


@pytest.mark.parametrize("spikes", [SKIP, ROLLBACK], ids=["skip", "rollback"])
def test_too_many_spikes_end_training_and_say_so(spikes, train, tmp_path, inject):
    inject(dict.fromkeys(range(9, 13), NAN))
    with pytest.raises(
        TrainingFailed, match=r"at step 12, one spike more than callbacks.spikes.most=3: .*last.ckpt is"
    ):
        train("run", *LSTM, *spikes, "callbacks.spikes.most=3")
    assert last(tmp_path, "run")["lmlab"]["step"] == 7


def test_skipped_steps_are_counted_in_a_row_and_rollbacks_in_all(train, inject):
    inject(dict.fromkeys((9, 10, 12, 13, 15), NAN))
    told = train("skip", *LSTM, *SKIP, "callbacks.spikes.most=2")
    assert len(told["training"]["spikes"]) == 5
    with pytest.raises(TrainingFailed, match="at step 12"):
        train("rollback", *LSTM, *ROLLBACK, "callbacks.spikes.most=2")


def test_a_quiet_run_is_the_same_with_spikes_watched(train, tmp_path):
    told = [train(name, *LSTM, *more)["training"] for name, more in (("a", []), ("b", SKIP), ("c", ROLLBACK))]
    assert not any("spikes" in training for training in told)
    states = [last(tmp_path, name)["state_dict"] for name in "abc"]
    assert same(states[0], states[1])
    assert same(states[0], states[2])


def test_a_spike_is_six_deviations_above_the_mean_of_the_window():
    """By hand: of 1, 2, 3, 4 the mean is 2.5, the deviation sqrt(5/3) = 1.29; the bound is 2.5 + 6 * 1.29 = 10.246."""
    judge = Skip(window=4, deviations=6.0, most=1)
    judge.window.extend([(1.0, 1.0), (2.0, 1.0), (3.0, 1.0), (4.0, 1.0)])
    usual = list(judge.window)
    for loss, norm, why in (
        (10.24, 1.0, None),
        (10.25, 1.0, "the loss is 10.25, of the last 4 steps 2.5 with a deviation of 1.3"),
        (1.0, 1.1, "the gradient's norm is 1.1, of the last 4 steps 1 with a deviation of 0"),
        (0.0, 0.5, None),
    ):
        judge.window.extend(usual)
        assert judge.judge(loss, norm) == why


def test_a_spike_enters_the_window_as_the_bound_that_it_passed():
    judge = Skip(window=4, deviations=6.0, most=1)
    judge.window.extend([(1.0, 1.0), (2.0, 1.0), (3.0, 1.0), (4.0, 1.0)])
    assert judge.judge(1e9, 1.0)
    assert judge.window[-1] == pytest.approx((10.246, 1.0), abs=1e-3)
    assert judge.judge(1e9, 1.0), "one spike does not hide the next"
    assert [bool(judge.judge(30.0, 1.0)) for _ in range(4)][-1] is False, "a new level becomes the usual one"


def test_before_half_a_window_only_what_is_not_finite_is_a_spike():
    judge = Skip(window=8, deviations=6.0, most=1)
    judge.window.extend([(1.0, 1.0)] * 3)
    assert judge.judge(100.0, 1.0) is None
    assert judge.judge(NAN, 1.0) == "the loss is not finite"
    judge.window.clear()
    judge.window.extend([(1.0, 1.0)] * 4)
    assert judge.judge(100.0, 1.0) is not None


def test_runs_from_before_spikes_were_watched_are_still_the_same_runs():
    config = compose(["corpus.path=x", "corpus=files"])
    assert "spikes" not in asked(config)["callbacks"]
    assert identity(asked(config)) != identity(asked(compose(["corpus.path=x", "corpus=files", *SKIP])))


@pytest.mark.parametrize(("key", "value"), [("window", 1), ("most", 0), ("deviations", -1.0)])
def test_values_that_make_no_sense_are_named(key, value):
    for kind in (Skip, Rollback):
        with pytest.raises(ValueError, match=rf"callbacks.spikes.{key}={value} must be at least"):
            kind(**{"window": 8, "deviations": 6.0, "most": 1, key: value})
