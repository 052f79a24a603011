"""Several processes train what one trains, and leave one run."""

import json
import os
import subprocess
import sys

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from lmlab.config import compose
from lmlab.experiment import plan
from lmlab.training import ranks
from lmlab.training.checkpoints import read, weights
from lmlab.training.fit import build_trainer

from .conftest import QUIET

TRANSFORMER = ["model=transformer", "model.d_model=16", "model.n_layers=1", "model.n_heads=2", "model.max_context=16"]
TRANSFORMER += ["batching=windows", "batching.batch_size=4", "batching.seq_len=16"]
TRANSFORMER += ["optimizer=adam", "optimizer.eps=1e-3"]
LSTM = ["model=lstm", "model.d_model=12", "model.n_layers=1", "batching=lanes", "batching.batch_size=4"]
LSTM += ["batching.seq_len=16", "optimizer=adam", "optimizer.eps=1e-3", "evaluation.lanes=2"]
LSTM += [f"model.dropout_{where}=0.0" for where in ("in", "between", "out")]
DDP = ["trainer=ddp", "trainer.accelerator=cpu", "devices=2"]


def test_a_batch_that_processes_cannot_share_is_refused(train, tmp_path):
    with pytest.raises(ValueError, match=r"batching.batch_size=5 must be a multiple of devices=2"):
        train("run", *TRANSFORMER, *DDP, "batching.batch_size=5")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("devices", "device", "told"),
    [(0, "cpu", "at least 1"), ("two", "cpu", "must be a number"), (2, "mps", "trains with devices=1")],
)
def test_devices_that_mean_nothing_are_refused(devices, device, told):
    with pytest.raises(ValueError, match=told):
        ranks.count(devices, device)
    assert ranks.count("2", "cpu") == 2
    assert ranks.count("auto", "cpu") == 1


@pytest.mark.parametrize(("asked", "each"), [(3, 3), (None, 4)])
def test_all_processes_of_a_run_have_equally_many_threads(asked, each, text, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(ranks.os, "cpu_count", lambda: 8)
    others = []

    def start(rank, config):
        others.append(int(os.environ["OMP_NUM_THREADS"]))
        return subprocess.Popen(["true"], stdin=subprocess.PIPE)

    monkeypatch.setattr(ranks, "_start", start)
    words = [*QUIET, *LSTM, *DDP, f"corpus.path={text}", f"threads={asked or 'null'}"]
    before = torch.get_num_threads()
    with ranks.launched(plan(compose(words)), tmp_path):
        # By which the peak of all is measured, too.
        assert (torch.get_num_threads(), others) == (each, [each])
    assert torch.get_num_threads() == before


BROKEN = """
import os

import torch
from lmlab.models.lstm import LSTMLM


class Large(LSTMLM):
    def forward(self, *args, **kwargs):
        if os.environ["LOCAL_RANK"] == "1" and self.training:
            raise torch.OutOfMemoryError("tried to allocate 2 GiB")
        return super().forward(*args, **kwargs)


class Refusing(LSTMLM):
    def forward(self, *args, **kwargs):
        if self.training:
            raise ValueError("this model refuses that text")
        return super().forward(*args, **kwargs)
"""


def broken(command_line, tmp_path, name: str) -> subprocess.CompletedProcess:
    """What becomes of two processes that train a model of this class."""
    (tmp_path / "large.py").write_text(BROKEN)
    words = command_line(*LSTM, *DDP, f"model._target_=large.{name}", f"run_dir={tmp_path / 'run'}")
    code = "import sys; sys.path.append('.'); from lmlab.cli import run; run()"
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_memory_that_runs_out_in_one_process_is_said(command_line, tmp_path):
    made = broken(command_line, tmp_path, "Large")
    assert made.returncode == 3, made.stderr
    assert "rank 1: out of memory at step 0: halve training.micro_batch_size" in made.stderr
    assert "process 1 of 2 ended early; its message is above" in made.stderr
    assert "fault of lmlab" not in made.stderr


@pytest.mark.slow
def test_what_all_processes_meet_alike_is_told_as_it_is(command_line, tmp_path):
    made = broken(command_line, tmp_path, "Refusing")
    assert made.stderr.splitlines()[-1].endswith("this model refuses that text"), made.stderr


@pytest.mark.slow
def test_two_processes_train_what_one_trains(train, command_line, tmp_path):
    """From the command line, with an automatic directory: made once, by rank 0."""
    steps = ["trainer.max_steps=10", "trainer.val_check_interval=4"]
    train("one", *TRANSFORMER, *steps)
    words = command_line(*TRANSFORMER, *DDP, *steps, f"runs_root={tmp_path / 'runs'}")
    made = subprocess.run(
        [sys.executable, "-c", "from lmlab.cli import run; run()", *words], capture_output=True, text=True, timeout=300
    )
    assert made.returncode == 0, made.stderr
    (run,) = (tmp_path / "runs").iterdir()
    ours, theirs = (read(path / "checkpoints/last.ckpt") for path in (run, tmp_path / "one"))
    for name, value in weights(theirs).items():
        torch.testing.assert_close(weights(ours)[name], value, atol=1e-5, rtol=0, msg=name)
    a, b = (json.loads((path / "results.json").read_text()) for path in (run, tmp_path / "one"))
    assert a["training"]["tokens"] == b["training"]["tokens"]
    assert a["splits"]["val"]["tokens"] == b["splits"]["val"]["tokens"]
    assert a["splits"]["test"]["nll"] == pytest.approx(b["splits"]["test"]["nll"], abs=1e-4)
    assert len((run / "train.log").read_text().split("10 steps on cpu")) == 2, "one process logs"


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("trainer", ["cpu", "ddp"])
def test_a_notebook_may_build_the_trainer_of_any_number_of_processes(trainer, devices, text, tmp_path, monkeypatch):
    monkeypatch.setattr("lightning.pytorch.trainer.connectors.accelerator_connector._IS_INTERACTIVE", True)
    words = [*QUIET, *LSTM, f"corpus.path={text}", f"trainer={trainer}", "trainer.accelerator=cpu", "threads=1"]
    built = build_trainer(plan(compose([*words, f"devices={devices}"])), tmp_path, [], 0)
    assert (built.strategy.launcher, built.num_devices) == (None, devices), "Lightning starts none"
    assert isinstance(built.strategy, DDPStrategy) == (devices == 2)


@pytest.mark.slow
def test_carried_state_of_all_processes_is_saved_and_can_be_continued_by_one(train, tmp_path, monkeypatch):
    """From a notebook."""
    monkeypatch.setattr("lightning.pytorch.trainer.connectors.accelerator_connector._IS_INTERACTIVE", True)
    train("one", *LSTM, "trainer.max_steps=9", "trainer.val_check_interval=3", "schedule=constant")
    train("two", *LSTM, *DDP, "trainer.max_steps=6", "trainer.val_check_interval=3", "schedule=constant")
    state = read(tmp_path / "two/checkpoints/last.ckpt")["lmlab"]["state"]
    assert [len(part) for part in state] == [4, 4]
    train("two", *LSTM, "trainer.max_steps=9", "trainer.val_check_interval=3", "schedule=constant")
    ours, theirs = (weights(read(tmp_path / name / "checkpoints/last.ckpt")) for name in ("two", "one"))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=1e-5, rtol=0, msg=name)
