"""One run from its first command to its last: stopped, continued, extended, refused."""

import logging
import os
import re
import signal
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from lmlab import experiment, measurement
from lmlab.config import compose
from lmlab.errors import TrainingFailed
from lmlab.models import cross_entropy, kernels
from lmlab.models.head import LinearHead
from lmlab.run_directory import RunDirectory
from lmlab.runs import load, prune, table
from lmlab.training.checkpoints import read, weights
from lmlab.training.module import LMModule

from .conftest import QUIET, TRANSFORMER

LSTM = ["model=lstm", "model.d_model=12", "model.n_layers=1", "batching=lanes", "batching.batch_size=4"]
LSTM += ["batching.seq_len=16", "optimizer=adam", "optimizer.lr=0.01", "evaluation.lanes=2"]
SHORT = [*LSTM, "trainer.max_steps=10", "trainer.val_check_interval=4"]


def stamps(path: Path) -> dict[str, int]:
    return {str(file): file.stat().st_mtime_ns for file in path.rglob("*")}


def signalled_at(monkeypatch: pytest.MonkeyPatch, step: int, number: int) -> None:
    """The signal arrives in the middle of a step."""
    original = LMModule._backward

    def backward(self, *args):
        if self.step == step:
            os.kill(os.getpid(), number)
        return original(self, *args)

    monkeypatch.setattr(LMModule, "_backward", backward)


def test_a_finished_run_is_left_alone(train, tmp_path, caplog):
    caplog.set_level(logging.INFO, "lmlab")
    first = train("run", *SHORT)
    before = stamps(tmp_path / "run")
    assert train("run", *SHORT) == first
    assert "is finished; nothing to do" in caplog.text
    assert stamps(tmp_path / "run") == before


def test_the_last_step_is_validated_though_it_is_not_due(train, tmp_path):
    train("run", *SHORT)
    last = read(tmp_path / "run/checkpoints/last.ckpt")
    assert last["lmlab"]["step"] == 10
    assert [entry["step"] for entry in last["lmlab"]["history"]] == [4, 8, 10]


def test_without_a_slice_of_train_there_is_no_gap(train, tmp_path):
    with_slice, without = (train(str(n), *SHORT, f"validation.train_tokens={n}") for n in (50, 0))
    (*_, last), (*_, plain) = with_slice["training"]["history"], without["training"]["history"]
    assert {"train/eval_loss", "val/gap"} == last.keys() - plain.keys()
    assert plain["val/loss"] == last["val/loss"]


def test_a_larger_budget_continues_and_states_the_new_horizon(train, tmp_path, caplog):
    caplog.set_level(logging.INFO, "lmlab")
    train("run", *SHORT, "schedule=cosine")
    assert "cosine over 10 steps" in caplog.text
    caplog.clear()
    results = train("run", *SHORT, "schedule=cosine", "trainer.max_steps=14")
    assert results["training"]["steps"] == 14
    assert "continuing after step 10" in caplog.text
    assert "cosine over 14 steps" in caplog.text
    assert "cosine over 14 steps" in (tmp_path / "run/train.log").read_text()
    assert RunDirectory(tmp_path / "run").asked()["trainer"]["max_steps"] == 14


def test_a_lengthened_run_is_a_replicate_of_its_like_alone(train, tmp_path, caplog):
    caplog.set_level(logging.INFO, "lmlab")
    longer, wsd = [*SHORT, "trainer.max_steps=20"], ["schedule=wsd", "schedule.warmup=2"]
    for seed in (0, 1):
        train(f"longer{seed}", *SHORT, *wsd, f"seed={seed}")
        results = train(f"longer{seed}", *longer, *wsd, f"seed={seed}")
        assert results["training"]["horizons"] == [[10, 10]]
    # The decay is the last 8 steps of 10, and will be the last 16 of 20.
    assert "the learning rate's factor, 0.125 at step 10, is 0.625 at the next" in caplog.text
    train("at once", *longer, *wsd, "seed=2")
    frame = table(tmp_path).set_index("run")
    assert frame["treatment"]["longer0"] == frame["treatment"]["longer1"] != frame["treatment"]["at once"]
    assert frame["lengthened"].dropna().to_dict() == {"longer0": "10/10", "longer1": "10/10"}
    sides = measurement.sides([("runs", load(tmp_path / name)) for name in ("longer0", "longer1", "at once")])
    assert [[run.path.name for run in runs] for _, _, runs in sides] == [["longer0", "longer1"], ["at once"]]


def test_a_lengthened_run_whose_steps_were_those_of_the_longer_is_its_replicate(train, tmp_path, monkeypatch):
    train("constant", *SHORT, "schedule=constant")
    assert "horizons" not in train("constant", *SHORT, "schedule=constant", "trainer.max_steps=14")["training"]
    # Stopped before the decay, which takes the last half.
    wsd = [*SHORT, "schedule=wsd", "schedule.warmup=2", "schedule.decay=0.5"]
    with monkeypatch.context() as patch:
        signalled_at(patch, 3, signal.SIGINT)
        assert train("wsd", *wsd)["training"]["steps"] == 4
    assert "horizons" not in train("wsd", *wsd, "trainer.max_steps=14")["training"]
    train("at once", *wsd, "trainer.max_steps=14")
    ours, theirs = (weights(read(tmp_path / name / "checkpoints/last.ckpt")) for name in ("wsd", "at once"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_larger_budget_without_the_last_checkpoint_is_refused_and_nothing_changes(train, tmp_path):
    train("run", *SHORT)
    prune(tmp_path, "best", do_it=True)
    before = stamps(tmp_path / "run")
    with pytest.raises(ValueError, match=r"last\.ckpt was removed; training longer needs it: name another run_dir"):
        train("run", *SHORT, "trainer.max_steps=14")
    assert stamps(tmp_path / "run") == before
    assert train("run", *SHORT)["training"]["steps"] == 10


def test_a_larger_budget_that_was_killed_before_it_was_measured_is_measured(train, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    train("run", *SHORT)
    with monkeypatch.context() as patch:
        patch.setattr("lmlab.training.results.evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            train("run", *SHORT, "trainer.max_steps=14")
    assert train("run", *SHORT, "trainer.max_steps=14")["training"]["steps"] == 14


FAMILIES = {
    "lstm": [*LSTM, "model.n_layers=2", "training.clip_norm=0.25"],
    "awd lstm": [*LSTM, "model.n_layers=3", "model.d_embed=8", "model.d_hidden=10", "training.ar=2", "training.tar=1"],
    "gru": [*LSTM, "model.cell=gru"],
    "transformer": [*TRANSFORMER, "optimizer=muon"],
    "gpt2": ["model=gpt2", *TRANSFORMER[1:], "optimizer=adamw"],
    "squared relu": [*TRANSFORMER, "model.mlp=relu2", "model.positions=alibi", "optimizer=adamw"],
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_both_kernels_train_the_same(name, train, tmp_path, monkeypatch):
    monkeypatch.setattr(cross_entropy, "SMALL", 0)
    blocks, losses = [], {}
    original = cross_entropy._blocks
    monkeypatch.setattr(cross_entropy, "_blocks", lambda *sizes: blocks.append(sizes) or original(*sizes))
    drops = [key for key in compose(FAMILIES[name]).model if key.startswith("dropout")]
    words = [f"model.{key}=0" for key in drops if key != "dropout_masks"]
    words += ["training.log_every=1", "trainer.max_steps=20", "trainer.val_check_interval=20"]
    for how in kernels.KERNELS:
        blocks.clear()
        train(how, *FAMILIES[name], *words, f"kernels={how}")
        assert bool(blocks) == (how == "auto")
        points = RunDirectory(tmp_path / how).points()
        losses[how] = [float(point["train/loss"]) for point in points if point["train/loss"]]
    assert len(losses["auto"]) == 20
    assert losses["auto"][-1] < losses["auto"][0]
    assert losses["auto"] == pytest.approx(losses["plain"], rel=1e-5)


@pytest.mark.parametrize(
    ("change", "told"),
    [("trainer.max_steps=9", r"max_steps=9 is below the 10"), ("optimizer.lr=0.02", r"optimizer.lr: 0.01 .*0.02")],
)
def test_anything_but_a_larger_budget_is_refused_by_name(change, told, train, tmp_path):
    train("run", *SHORT)
    before = stamps(tmp_path / "run")
    with pytest.raises(ValueError, match=told):
        train("run", *SHORT, change)
    assert stamps(tmp_path / "run") == before


def test_a_run_is_not_trained_by_two_processes(train, tmp_path):
    train("run", *SHORT)
    held = RunDirectory(tmp_path / "run")
    held.claim()
    try:
        with pytest.raises(ValueError, match="is being trained by another process"):
            train("run", *SHORT, "trainer.max_steps=12")
    finally:
        held.release()


def test_other_text_under_the_same_path_is_refused(train, tmp_path, text):
    mine = tmp_path / "mine.txt"
    mine.write_text(text.read_text())
    train("run", *SHORT, f"corpus.path={mine}")
    mine.write_text(text.read_text() + "one more sentence\n")
    with pytest.raises(ValueError, match="was trained on other text"):
        train("run", *SHORT, f"corpus.path={mine}", "trainer.max_steps=12")
    # Nor are its numbers shown as those of the other text.
    with pytest.raises(ValueError, match="was trained on another text than is read from there now"):
        train("run", *SHORT, f"corpus.path={mine}")
    mine.write_text(text.read_text())
    known = train("run", *SHORT, f"corpus.path={mine}")
    mine.unlink()
    assert train("run", *SHORT, f"corpus.path={mine}") == known


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_an_interrupted_run_is_usable_and_goes_on_as_if_it_had_not_been(number, train, tmp_path, monkeypatch):
    plateau = [*SHORT, "schedule=plateau", "optimizer.lr=0.1"]
    train("whole", *plateau)
    with monkeypatch.context() as patch:
        signalled_at(patch, 5, number)
        results = train("run", *plateau)
    assert results["training"]["stopped_because"] == "interrupted"
    assert results["training"]["steps"] == 6, "the step was finished"
    assert list(results["splits"]) == ["val"], "the test split is scored once, at the end"
    assert read(tmp_path / "run/checkpoints/last.ckpt")["lmlab"]["step"] == 6
    assert signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL)
    assert train("run", *plateau)["training"]["stopped_because"] == "budget"
    ours, theirs = (read(tmp_path / name / "checkpoints/last.ckpt") for name in ("run", "whole"))
    assert ours["lmlab"]["history"] == theirs["lmlab"]["history"]
    assert all(torch.equal(weights(ours)[name], value) for name, value in weights(theirs).items())


def test_a_second_interrupt_leaves_at_once(train, monkeypatch):
    backward = LMModule._backward

    def twice(self, *args):
        for _ in range(2 if self.step == 5 else 0):
            os.kill(os.getpid(), signal.SIGINT)
        return backward(self, *args)

    monkeypatch.setattr(LMModule, "_backward", twice)
    with pytest.raises(KeyboardInterrupt):
        train("run", *SHORT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_max_time_stops_and_counts_what_was_used_before(train, tmp_path, slow):
    slow(0.15)
    timed = [*LSTM, "trainer.max_steps=1000", "trainer.val_check_interval=100", "validation.limit_tokens=50"]
    results = train("run", *timed, "trainer.max_time=00:00:00:01")["training"]
    assert results["stopped_because"] == "max_time"
    assert 0 < results["steps"] <= 7
    more = train("run", *timed, "trainer.max_time=00:00:00:02")["training"]
    assert more["stopped_because"] == "max_time"
    assert results["steps"] < more["steps"] <= 14, "one more second, not two"


def test_a_run_out_of_memory_while_validating_goes_on_with_fewer_rows_at_once(train, tmp_path, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    def full_cpu(*_, **__):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 2 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(LMModule, "training_step", full_cpu)
        with pytest.raises(TrainingFailed, match=r"out of memory at step 0: halve training.micro_batch_size"):
            train("step", *SHORT)
    with monkeypatch.context() as patch:
        patch.setattr(LMModule, "validation_step", full)
        with pytest.raises(TrainingFailed, match=r"while validating after step 4: .*smaller validation.batch_size"):
            train("run", *SHORT)
    train("run", *SHORT, "validation.batch_size=1")
    assert RunDirectory(tmp_path / "run").asked()["validation"]["batch_size"] == 1, "the new value holds"


class Enough(Callback):
    """Somebody else's, which stops training after two steps."""

    def on_train_batch_end(self, trainer, pl_module, *_):
        trainer.should_stop = pl_module.step == 2


def test_a_time_limit_that_was_not_reached_is_not_why_a_run_stopped(text, tmp_path):
    words = [*QUIET, *SHORT, f"corpus.path={text}", f"run_dir={tmp_path / 'run'}", "trainer.max_time=00:01:00:00"]
    stopped = experiment.train(compose(words), watchers=[Enough])["training"]
    assert (stopped["steps"], stopped["stopped_because"]) == (2, "callback")


def test_debug_measures_the_first_loss_and_overfits_one_batch(train, caplog):
    caplog.set_level(logging.INFO, "lmlab")
    debug = [*LSTM, "trainer=debug", "trainer.accelerator=cpu", "trainer.max_steps=40", "trainer.val_check_interval=40"]
    train("run", *debug)
    start, expected = map(float, re.search(r"loss at the start (\S+), ln V (\S+)", caplog.text).groups())
    assert expected == pytest.approx(5.549, abs=1e-3), "ln 257"
    assert start == pytest.approx(expected, rel=0.2)
    first, last = map(float, re.search(r"on one batch went from (\S+) to (\S+) in 40", caplog.text).groups())
    assert last < 0.8 * first
    with pytest.raises(TrainingFailed, match=r"the loss starts at \S+, more than 20% above ln V = 5.549"):
        train("wild", *debug, "model.init_range=5.0")


def test_debug_refuses_a_model_that_knows_its_targets(train, monkeypatch):
    nll_of = LinearHead.nll_of
    monkeypatch.setattr(LinearHead, "nll_of", lambda self, dropped, targets: nll_of(self, dropped, targets) / 2)
    with pytest.raises(TrainingFailed, match=r"more than 20% below ln V"):
        train("run", *LSTM, "trainer=debug", "trainer.accelerator=cpu")
