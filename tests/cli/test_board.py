"""lmlab board: what it says before TensorBoard starts, and how it starts it."""

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.benchmarks.many_runs import make

from lmlab.cli import main


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands in place of which nothing was run."""
    commands: list[list[str]] = []
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: commands.append(command) or SimpleNamespace(returncode=0)
    )
    return commands


def test_several_runs_are_opened_on_their_comparison(tmp_path: Path, started, capsys):
    make(tmp_path, 2)
    assert main(["board", f"root={tmp_path}", "port=6007"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].split() == ["comparison", "http://127.0.0.1:6007/#custom_scalars"]
    assert [line.rpartition("#")[2] for line in told] == ["custom_scalars", "hparams", "timeseries"]
    assert started[0][-4:] == ["--host", "127.0.0.1", "--port", "6007"]


def test_a_free_port_is_found_before_it_is_told(tmp_path: Path, started, capsys):
    make(tmp_path, 2)
    assert main(["board", f"root={tmp_path}", "port=0"]) == 0
    port = int(started[0][-1])
    assert port > 0
    assert f":{port}/#custom_scalars" in capsys.readouterr().out


def test_a_single_run_has_nothing_to_be_compared_with(tmp_path: Path, started, capsys):
    make(tmp_path, 1)
    assert main(["board", f"root={tmp_path}"]) == 0
    assert capsys.readouterr().out == ""
    assert len(started) == 1
