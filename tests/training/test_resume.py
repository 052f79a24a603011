"""A run that was killed and started again is the run that was never killed, bit for bit on the CPU."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lmlab.run_directory import RunDirectory
from lmlab.training.checkpoints import read
from lmlab.training.module import LMModule

LSTM = ["model=lstm", "model.d_model=12", "model.n_layers=2", "batching=lanes", "batching.batch_size=4"]
LSTM += ["batching.seq_len=16", "optimizer=adam", "optimizer.lr=0.01", "evaluation.lanes=2"]
TRANSFORMER = ["model=transformer", "model.d_model=16", "model.n_layers=1", "model.n_heads=2", "model.max_context=16"]
TRANSFORMER += ["model.dropout=0.2", "batching=windows", "batching.batch_size=6", "batching.seq_len=16"]
STOPPING = ["callbacks/early_stopping=patience", "callbacks.early_stopping.patience=2"]
AVERAGING = ["callbacks/averaging=ema", "callbacks.averaging.decay=0.9"]

KINDS = {
    "lstm on lanes": LSTM,
    "transformer on windows": TRANSFORMER,
    "plateau": [*LSTM, "schedule=plateau", "optimizer.lr=0.2", "trainer.val_check_interval=2"],
    "nt_asgd": [*LSTM, "optimizer=nt_asgd", "optimizer.lr=4.0", "optimizer.nonmono=1", "trainer.val_check_interval=2"],
    "averaging": [*TRANSFORMER, *AVERAGING],
    "early stopping": [*LSTM, *STOPPING, "optimizer.lr=0.3", "trainer.val_check_interval=2", "trainer.max_steps=60"],
    "micro-batches": [*LSTM, "training.micro_batch_size=3"],
    "random lengths": [*LSTM, "batching.random_lengths=true"],
    "bf16 weights": [*TRANSFORMER, "precision=bf16", "model.dropout_masks=pool", "training.micro_batch_size=4"],
    "text on the device": [*TRANSFORMER, "text_on_device=true"],
    "every few steps": [*LSTM, "callbacks.checkpoints.every_n_steps=2"],
    # So wide that the two have work each: torch divides nothing below 32,768 numbers.
    "two threads": [*TRANSFORMER, "model.d_model=128", "threads=2"],
}
SLOW = ("averaging", "micro-batches", "random lengths", "every few steps", "two threads")


class Killed(BaseException):
    """Ends training at once, as far as that can be done without ending the process."""


def kill(monkeypatch: pytest.MonkeyPatch, hook: str, step: int) -> None:
    """Die at the beginning of `hook` once `step` steps are done."""
    original = getattr(LMModule, hook)

    def dies(self: LMModule, *args: Any) -> Any:
        if self.step == step:
            raise Killed
        return original(self, *args)

    monkeypatch.setattr(LMModule, hook, dies)


def same(ours: Any, theirs: Any) -> bool:
    """Equal to the last bit, through dicts and lists."""
    if isinstance(ours, torch.Tensor):
        return ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return ours == theirs


def assert_same_run(ours: Path, theirs: Path) -> None:
    for name in ("best.ckpt", "last.ckpt"):
        a, b = (read(path / "checkpoints" / name) for path in (ours, theirs))
        for checkpoint in (a, b):
            for measured_by_the_clock in ("seconds", "since_logged"):
                checkpoint.get("lmlab", {}).pop(measured_by_the_clock, None)
            # What our own records replace: Lightning's, which count otherwise after a resume.
            checkpoint.pop("loops", None)
        assert a.keys() == b.keys()
        for key in a:
            assert same(a[key], b[key]), f"{key} of {name} differs"
    a, b = (RunDirectory(path).results() for path in (ours, theirs))
    for results in (a, b):
        for measured_by_the_clock in ("seconds", "tokens_per_s", "performance"):
            results["training"].pop(measured_by_the_clock)
        results["audit"].pop("seconds")
        results.pop("evaluation_seconds")
    assert a == b


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[pytest.mark.slow] * (k in SLOW)) for k in KINDS])
def test_killed_runs_end_as_runs_that_were_never_killed(kind, train, tmp_path, monkeypatch):
    train("whole", *KINDS[kind])
    for hook, step in (("training_step", 9), ("validation_step", 14), ("on_train_end", 30)):
        with monkeypatch.context() as patch:
            kill(patch, hook, step)
            try:
                train("killed", *KINDS[kind])
            except Killed:
                continue
            assert kind == "early stopping", f"{hook} at step {step} was never reached"
    train("killed", *KINDS[kind])
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    optimizer = read(tmp_path / "whole/checkpoints/last.ckpt")["optimizer_states"][0]
    assert (kind == "nt_asgd") == bool(optimizer["param_groups"][0].get("triggered")), "averaging has begun"
    if kind == "early stopping":
        results = json.loads((tmp_path / "whole/results.json").read_text())["training"]
        assert results["stopped_because"] == "early stopping"
        assert results["steps"] < 60


def test_the_first_point_after_a_resume_has_the_seconds_of_all_its_steps(train, tmp_path, slow, monkeypatch):
    slow(0.05)
    # Saved at step 6 and logged at 4 and 8: of the four steps to 8 two are trained by each process.
    steps = [*LSTM, "trainer.max_steps=8", "trainer.val_check_interval=6"]
    with monkeypatch.context() as patch:
        kill(patch, "training_step", 7)
        with pytest.raises(Killed):
            train("run", *steps)
    train("run", *steps)
    (point,) = (p for p in RunDirectory(tmp_path / "run").points() if p["step"] == "8" and p["train/loss"])
    # A row of 16 tokens in each of 4 lanes, of which the text's last one may be shorter.
    assert float(point["perf/tokens_per_s"]) <= 4 * 4 * 16 / (4 * 0.05)


# Dies by SIGKILL, as a process without memory does, then goes on as `lmlab train`.
DYING = """
import os, signal, sys
hook, step = sys.argv.pop(1), int(sys.argv.pop(1))
from lmlab.training.module import LMModule
original = getattr(LMModule, hook)
def dies(self, *args):
    if self.step == step:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, *args)
setattr(LMModule, hook, dies)
from lmlab.cli import run
run()
"""


@pytest.mark.slow
def test_sigkilled_and_moved_runs_end_as_runs_that_were_never_killed(warm, train, command_line, tmp_path):
    kinds = {"lstm": LSTM, "transformer": TRANSFORMER}
    deaths = [
        {"lstm": ("validation_step", 14), "transformer": ("_backward", 17)},
        dict.fromkeys(kinds, ("_backward", -1)),
    ]
    for attempt, death in enumerate(deaths):
        processes = []
        for name, overrides in kinds.items():
            hook, step = death[name]
            here = tmp_path / f"{name}{attempt}"
            if attempt:
                (tmp_path / f"{name}{attempt - 1}").rename(here)
            words = [sys.executable, "-c", DYING, hook, str(step), *command_line(*overrides, f"run_dir={here}")]
            processes.append(warm.start(words, err=tmp_path / f"{name}{attempt}.err"))
        for process, name in zip(processes, kinds, strict=True):
            said = (tmp_path / f"{name}{attempt}.err").read_text
            assert process.wait() == (0 if attempt else -signal.SIGKILL), said()
    for name, overrides in kinds.items():
        train(name, *overrides)
        assert_same_run(tmp_path / f"{name}1", tmp_path / name)


def test_interrupts_failures_and_refusals_have_their_exit_status(command_line, tmp_path, monkeypatch, capsys):
    from lmlab.cli import main

    words = command_line(*LSTM, f"run_dir={tmp_path / 'run'}", "trainer.max_steps=8", "trainer.val_check_interval=4")
    backward = LMModule._backward

    def happens(what):
        def at_step_5(self, *args):
            if self.step == 5:
                if isinstance(what, signal.Signals):
                    os.kill(os.getpid(), what)
                else:
                    return backward(self, *args) * what
            return backward(self, *args)

        return at_step_5

    last = tmp_path / "run/checkpoints/last.ckpt"
    for what, status, said in (
        (float("nan"), 3, "last.ckpt is kept"),
        (signal.SIGINT, 130, "stopping after this step"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(LMModule, "_backward", happens(what))
            assert main(words) == status
        assert said in capsys.readouterr().err
    whole = last.read_bytes()
    last.write_bytes(whole[:-100])
    assert main(words) == 2
    complaint = capsys.readouterr().err.strip()
    assert complaint.count("\n") == 0
    assert str(last) in complaint
    assert "delete it" in complaint
    last.write_bytes(whole)
    assert main(words) == 0
    assert main([*words, "optimizer.lr=0.5"]) == 2
    assert "optimizer.lr" in capsys.readouterr().err
