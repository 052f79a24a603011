"""How a run shows that it goes on: a bar in a terminal, lines elsewhere, all of it in train.log."""

import io
import logging
import sys
from unittest.mock import Mock

import pytest
from lightning import LightningModule, Trainer

from lmlab.cli.command import StandardError
from lmlab.training import progress
from lmlab.training.progress import Progress, clock

TINY = ["model=lstm", "model.d_model=8", "model.n_layers=1", "batching.batch_size=4", "batching.seq_len=16"]
TINY += ["evaluation.lanes=2", "callbacks.progress.every_n_steps=1", "training.log_every=1"]
log = logging.getLogger("lmlab")


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture(params=[io.StringIO, Terminal], ids=["pipe", "terminal"])
def shown(request, monkeypatch):
    stream = request.param()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    handler = StandardError()
    handler.setLevel(logging.INFO)
    log.addHandler(handler)
    level, _ = log.level, log.setLevel(logging.DEBUG)
    yield stream
    log.removeHandler(handler)
    log.setLevel(level)


def test_loss_perplexity_speed_and_time_left_are_shown(shown, train, tmp_path, monkeypatch):
    # Here: between a fixture and its test pytest puts its own in place.
    monkeypatch.setattr(sys, "stderr", shown)
    train("run", *TINY)
    text = shown.getvalue()
    for piece in ("loss ", "ppl ", " tokens/s", " left", "validation at step 14:   loss ", "bpb "):
        assert piece in text
    assert ("━" in text) == shown.isatty()
    assert ("step 20/30" in text) != shown.isatty(), "a bar on the screen needs no lines beside it"
    assert "step 20/30" in (tmp_path / "run/train.log").read_text()
    # No line is written over the bar, and afterwards the log writes where it did before.
    assert "leftvalidation" not in text
    log.info("afterwards")
    assert shown.getvalue().startswith(text + "afterwards\n")


def test_clock():
    assert [clock(s) for s in (0.0, 59.6, 725.0, 3723.0)] == ["0:00", "1:00", "12:05", "1:02:03"]


def test_the_bar_is_drawn_as_often_as_can_be_read(monkeypatch):
    """Drawing costs as much as a small model's step: 100 steps of an eighth of a second, drawn every half second."""
    now = 0.0
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now)
    shown = Progress(every_n_steps=1)
    shown.bar, shown.describe, shown.line = Mock(), lambda module: "", lambda module: ""
    for step in range(100):
        module = Mock(LightningModule, step=step, latest={"train/loss": 1.0})
        shown.on_train_batch_end(Mock(Trainer, is_global_zero=True), module)
        now += 0.125
    assert shown.bar.update.call_count == 25
