"""What a sweep looks like from the terminal: its pace, by hand."""

import json
import os
import socket
import sys
from pathlib import Path

from tests.sweeps.test_pruning import ASKED

from lmlab.sweeps.ledger import Ledger, birth
from lmlab.sweeps.live import View, pace, paced, status

# As rich's markup: closing tags that nothing opened, an emoji, and a style that nobody knows.
TRAIN, REASON = "corpus.train=[/data/a.txt,b.txt]", "no such file [bold]:cat:; pip install 'lmlab[files]'"


def words(text: str) -> str:
    """Without the line breaks of a terminal."""
    return " ".join(text.split())


def test_pace_is_of_warm_workers_trials_and_leaves_out_steps_and_scoring(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite", create=True) as ledger:
        ledger.add_point({}, [], {}, range(6))
        # (process, began, ended, seconds in all, of training, of scoring)
        told = [(1, 0, 9, 9, 2, 1), (1, 9.1, 12.1, 3, 2, 0.6), (1, 12.3, 16.3, 4, 3, 0.4)]
        told += [(2, 0, 8, 8, 2, 1), (2, 8.3, 12.3, 4, 2.5, 1)]
        assert pace(ledger) is None
        for number, (pid, began, ended, seconds, training, scoring) in enumerate(told, 1):
            values = json.dumps({"seconds": training, "measuring_seconds": scoring})
            ledger.set(number, status="done", host="here", pid=pid, born="", started=began, finished=ended)
            ledger.set(number, seconds=seconds, values_=values)
        # The first one of each worker is cold. Between: 0.1, 0.2, 0.3; beside: 0.4, 0.6, 0.5.
        between, beside = pace(ledger)
        assert (round(between, 6), round(beside, 6)) == (0.2, 0.5)
        # One that went on in a second process has the seconds of both.
        ledger.set(6, status="done", host="here", pid=2, born="", started=13, finished=14, seconds=99, values_=values)
        assert round(pace(ledger)[1], 6) == 0.5
        assert paced(ledger) == "0.50 s of a warm trial beside training and scoring, 0.25 s between trials (medians)"


def test_trials_whose_workers_are_dead_are_not_shown_as_running(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    ASKED.save(tmp_path)
    with Ledger(tmp_path / "ledger.sqlite", create=True) as ledger:
        ledger.add_point({}, ["x=1"], {}, [0, 1])
        for number, pid in ((1, os.getpid()), (2, 2**22 + 1)):
            mine = {"host": socket.gethostname(), "pid": pid, "born": birth(os.getpid())}
            ledger.set(number, status="running", worker=str(number), **mine)
        status(tmp_path)
    shown = words(capsys.readouterr().out)
    assert "trials 1 running, " in shown
    assert "1 of those that wait lost their worker; the same command goes on with them" in shown
    assert "worker 1" in shown
    assert "worker 2" not in shown


def test_brackets_in_overrides_and_reasons_are_no_markup(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    directory = Path("[blue]s")
    directory.mkdir()
    ASKED.save(directory)
    with Ledger(directory / "ledger.sqlite", create=True) as ledger:
        for n, told in enumerate(("done", "running", "failed"), 1):
            ledger.add_point({}, [TRAIN, f"x={n}"], {}, [0])
            here = {"host": socket.gethostname(), "pid": os.getpid(), "born": birth(os.getpid())}
            ledger.set(n, status=told, worker="0", **here, reason=REASON if told == "failed" else None)
        ledger.set(1, values_='{"val/bpb": 2.0}')
        status(directory)
        shown = words(capsys.readouterr().out)
        assert f"best val/bpb 2.0000 {TRAIN} x=1" in shown
        assert f"worker 0 {TRAIN} x=2 step 0" in shown
        assert shown.startswith("[blue]s trials 1 done")
        # Redrawn in place, with a line above for the trial that failed.
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        with View(directory, ledger, ASKED) as view:
            view.shown.clear()
            view.update()
            view.looked = 0.0
            view.update()
        shown = words(capsys.readouterr().err)
    assert f"{TRAIN} x=3: failed: {REASON}" in shown
