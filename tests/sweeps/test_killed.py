"""A sweep that is killed at any moment and started again ends as one that never was."""

import os
import random
import re
import signal
import sqlite3
import sys
import time
from pathlib import Path

import pytest
from tests.sweeps.conftest import ALONE, COMMAND, TINY
from tests.warm import Forked, Warm

from lmlab.sweeps.ledger import Ledger, results_of
from lmlab.training.checkpoints import read

STEPS = 80
LONGER = [f"trainer.max_steps={STEPS}", "trainer.val_check_interval=20", "keep=all"]
GRID = ["optimizer.lr=1e-3,3e-3,1e-2,3e-2", "model.d_model=4,6,8", "replicates=2", "workers=2", "strategy=grid"]
DRAWN = ["optimizer.lr=tag(log,interval(1e-3,1e-1))", "model.d_model=int(interval(4,8))", "strategy=tpe", "trials=24"]


def start(warm: Warm, directory: str, words: list[str]) -> Forked:
    code = ALONE if "workers=1" in words else COMMAND
    return warm.start([sys.executable, "-c", code, "sweep", *TINY, *LONGER, *words, f"sweep_dir={directory}"])


def rows(directory: Path) -> list[dict]:
    with Ledger(directory / "ledger.sqlite") as ledger:
        return [dict(row) for row in ledger.trials()]


def finished(directory: Path) -> int:
    """Trials that are done; none before there is a ledger."""
    try:
        return sum(row["status"] == "done" for row in rows(directory))
    except (FileNotFoundError, ValueError, sqlite3.Error):
        return 0


# Beginnings of the names of what depends on the machine and what else it does.
CLOCK = ("seconds", "measuring_seconds", "tokens_per", "perf/")


def table(directory: Path) -> list[tuple]:
    """What the sweep found, without what the clock measured."""
    told = []
    for row in rows(directory):
        found = {k: v for k, v in results_of(row).items() if not k.startswith(CLOCK)}
        told.append((row["point"], row["replicate"], row["name"], row["status"], found))
    return told


@pytest.mark.slow
@pytest.mark.parametrize("words", [GRID, [*DRAWN, "workers=1"]], ids=["grid on two workers", "tpe on one"])
def test_killed_three_times_a_sweep_of_24_trials_ends_with_the_same_table(here, warm, words):
    assert start(warm, "whole", words).wait() == 0
    chosen, ended = random.Random(0), 0
    done: dict[str, list[int]] = {}
    for _ in range(3):
        running = start(warm, "killed", words)
        # At random, somewhere in what is left: counted in trials, for machines are not always as fast.
        ended += chosen.randint(3, 6)
        while finished(here / "killed") < ended:
            assert running.poll() is None, "it had ended before it could be killed"
            time.sleep(0.05)
        time.sleep(chosen.uniform(0, 0.5))
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        for row in rows(here / "killed"):
            path = here / "killed" / (row["run_dir"] or "none") / "checkpoints/last.ckpt"
            if row["status"] == "running" and path.exists():
                done.setdefault(row["name"], []).append(read(path)["lmlab"]["step"])
    assert start(warm, "killed", words).wait() == 0
    assert len(table(here / "killed")) == 24
    assert (here / "killed/study.sqlite").stat().st_size > 0
    assert table(here / "killed") == table(here / "whole")
    # Each went on from its last checkpoint, and none was begun a second time.
    for row in rows(here / "killed"):
        log = (here / "killed" / row["run_dir"] / "train.log").read_text()
        steps = [int(step) for step in re.findall(r"continuing after step (\d+)", log)]
        # One that had all its steps may have had its results, too, and only the ledger did not know it yet.
        expected = [step for step in done.get(row["name"], []) if step < STEPS]
        assert [step for step in steps if step < STEPS] == expected, row["name"]
