"""Steps that are timed and thrown away are the run's own, and leave nothing."""

import copy

import pytest
import torch

from lmlab.config import compose
from lmlab.experiment import plan
from lmlab.training import trial
from lmlab.training.module import LMModule
from lmlab.training.trial import Trial, attempt

TINY = ["model=lstm", "model.d_model=8", "model.n_layers=1", "batching.batch_size=4", "batching.seq_len=16"]
TINY += ["evaluation.lanes=2", "trainer.max_steps=20", "tokenizer=byte", "trainer=cpu", "optimizer=sgd"]


@pytest.fixture
def planned(text):
    return plan(compose([*TINY, "corpus=files", f"corpus.path={text}"]))


def test_mean_and_median_by_hand():
    tried = Trial([1.0, 9.0, 2.0], starting=0.5, loss=1.0, fault=None)
    assert (tried.mean, tried.median) == (4.0, 2.0)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16"])
def test_so_many_steps_are_taken_and_the_plan_is_as_before(precision, planned, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before, config = copy.deepcopy(planned.model.state_dict()), copy.deepcopy(planned.config)
    tried = attempt(planned, steps=5, seconds=60.0, warm_up=2, precision=precision)
    assert len(tried.step_seconds) == 5
    assert all(s > 0 for s in [*tried.step_seconds, tried.starting])
    assert 4.0 < tried.loss < 6.0, "about ln 257"
    assert tried.fault is None
    assert all(torch.equal(value, before[name]) for name, value in planned.model.state_dict().items())
    assert planned.config == config
    assert planned.total_steps == 20
    assert list(tmp_path.iterdir()) == []


def test_it_ends_when_the_time_is_over_but_not_before_a_measured_step(planned):
    assert len(attempt(planned, steps=1000, seconds=0.0, warm_up=2).step_seconds) == 1


def test_a_loss_that_is_not_finite_is_a_fault(planned, monkeypatch):
    backward = LMModule._backward
    monkeypatch.setattr(LMModule, "_backward", lambda self, *args: backward(self, *args) * float("nan"))
    assert attempt(planned, steps=5, seconds=60.0, warm_up=1).fault == "the loss is not finite"


def test_memory_that_does_not_suffice_is_a_fault(planned, monkeypatch):
    def build(plan, path, callbacks, step):
        class Trainer:
            def fit(self, *args, **kwargs):
                raise torch.OutOfMemoryError("out of memory")

        return Trainer()

    monkeypatch.setattr(trial, "build_trainer", build)
    assert attempt(planned, steps=5, seconds=60.0, warm_up=1).fault == "out of memory"
