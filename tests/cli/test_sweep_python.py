"""lmlab.sweep: the command from Python, its progress on standard output, its faults as exceptions."""

import logging
import os
import sys

import pytest

import lmlab


def test_what_is_asked_wrongly_is_raised_and_nothing_of_the_caller_is_changed(tmp_path, monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    log = logging.getLogger("lmlab")
    before = log.level, log.propagate, list(log.handlers)
    with pytest.raises(ValueError, match="replicates=0"):
        lmlab.sweep(["optimizer.lr=0.1,0.2", "replicates=0", f"sweep_dir={tmp_path / 'sweep'}"])
    assert (log.level, log.propagate, list(log.handlers)) == before
    assert "HYDRA_FULL_ERROR" not in os.environ
    assert not (tmp_path / "sweep").exists()


def test_another_status_than_done_is_an_exception(monkeypatch):
    monkeypatch.setattr("lmlab.cli.sweep.main", lambda words: 3)
    with pytest.raises(RuntimeError, match="status 3"):
        lmlab.sweep([])


def test_progress_goes_to_standard_output(monkeypatch, capsys):
    monkeypatch.setattr("lmlab.cli.sweep.main", lambda words: print(*words) or print("a trial", file=sys.stderr) or 0)
    lmlab.sweep(["replicates=2"])
    assert capsys.readouterr() == ("replicates=2\na trial\n", "")
