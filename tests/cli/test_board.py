"""lmlab board: the addresses that it tells, and the server behind them."""

import socket
import subprocess
import sys
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import pytest
from tests.benchmarks.many_runs import make

from lmlab.cli import board, main

URL = "http://127.0.0.1:6007/"


def test_several_runs_are_opened_on_their_comparison(tmp_path: Path):
    make(tmp_path, 2)
    told = board.addresses(tmp_path, URL)
    assert told[0].split() == ["comparison", "http://127.0.0.1:6007/#custom_scalars"]
    assert [line.rpartition("#")[2] for line in told] == ["custom_scalars", "hparams", "timeseries"]


@pytest.mark.parametrize(("n_runs", "told"), [(40, False), (41, True)])
def test_where_tensorboard_draws_nothing_at_first_it_is_said(n_runs: int, told: bool, tmp_path: Path):
    make(tmp_path, n_runs)
    assert ("TOGGLE ALL RUNS" in board.addresses(tmp_path, URL)[-1]) is told


def test_a_single_run_has_nothing_to_be_compared_with(tmp_path: Path):
    make(tmp_path, 1)
    assert board.addresses(tmp_path, URL) == []


@pytest.mark.parametrize(("status", "end"), [(0, 0), (-1, 2), (1, 2)])
def test_a_server_that_could_not_begin_is_a_mistake_of_the_user(status: int, end: int, tmp_path: Path, monkeypatch):
    asked = []
    monkeypatch.setattr(board, "serve", lambda root, port: asked.append((root, port)) or status)
    assert main(["board", f"root={tmp_path}", "port=6007"]) == end
    assert asked == [(tmp_path, 6007)]


@pytest.mark.slow
def test_a_free_port_is_told_that_only_this_machine_can_reach(tmp_path: Path):
    make(tmp_path, 2)
    words = [sys.executable, "-c", "from lmlab.cli import run; run()", "board", f"root={tmp_path}", "port=0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            address = process.stdout.readline().split()[1]
            assert address.startswith("http://127.0.0.1:")
            with build_opener(ProxyHandler({})).open(address.partition("#")[0], timeout=60) as page:
                assert page.status == 200
            port = int(address.partition("/#")[0].rpartition(":")[2])
            # One that is bound to every address of the machine would answer here.
            with pytest.raises(OSError), socket.create_connection(("127.0.0.2", port), timeout=2):
                pass
        finally:
            process.terminate()
        assert process.wait(60) == 0
