"""What a sweep's ledger says goes into the table; a damaged one costs nothing."""

import logging
import sqlite3
from contextlib import closing

import pandas as pd
import pytest
from tests.benchmarks.many_runs import make

from lmlab.report.gather import gather
from lmlab.runs import table


@pytest.fixture
def sweep(tmp_path):
    """Three runs, of which the ledger knows one as failed and one as running; a fourth trial never had a directory."""
    root = tmp_path / "sweep"
    make(root / "trials", 3)
    names = sorted(path.name for path in (root / "trials").iterdir())
    with closing(sqlite3.connect(root / "ledger.sqlite")) as database:
        database.execute(
            "CREATE TABLE trials (id INTEGER, point INTEGER, status TEXT, reason TEXT, seed INTEGER, run_dir, values_)"
        )
        told = '{"mine/score": 0.5, "mine/other": 1.0, "steps": 9}'
        rows = [
            (1, 0, "done", None, 0, f"trials/{names[0]}", told),
            (2, 1, "failed", "坏 <b>", 1, f"trials/{names[1]}", None),
        ]
        rows += [
            (3, 2, "running", None, 2, f"trials/{names[2]}", None),
            (4, 3, "failed", "no such corpus", 0, None, None),
        ]
        database.executemany(
            "INSERT INTO trials VALUES (?, ?, ?, ?, ?, ?, ?)", [*rows, (5, 4, "waiting", None, 0, None, None)]
        )
        database.commit()
    return root


@pytest.mark.parametrize("above", [False, True])
def test_states_and_reasons_come_from_the_ledger(sweep, above):
    frame = table(sweep.parent if above else sweep)
    assert frame["state"].tolist()[:4] == ["budget", "failed", "running", "failed"]
    assert frame["reason"].tolist()[1] == "坏 <b>"
    assert frame["reason"].tolist()[3] == "no such corpus"
    assert len(frame) == 4, "what waits has left nothing yet"


@pytest.mark.parametrize("status", ["pruned", "failed", "waiting"])
def test_a_run_that_one_trial_has_finished_is_finished_whatever_its_duplicate_says(sweep, status):
    before = table(sweep)
    with closing(sqlite3.connect(sweep / "ledger.sqlite")) as database:
        database.execute(
            "INSERT INTO trials SELECT 9, 9, ?, 'stopped by asha', seed, run_dir, NULL FROM trials WHERE id = 1",
            [status],
        )
        database.commit()
    pd.testing.assert_frame_equal(table(sweep), before)


def test_what_a_sweep_chooses_by_is_in_the_table_and_the_report(sweep):
    (sweep / "sweep.yaml").write_text("objective:\n- {metric: mine/score, direction: maximize}\n")
    frame = table(sweep)
    assert frame["mine/score"].tolist()[0] == 0.5
    assert frame["mine/score"].isna().sum() == 3
    assert "mine/other" not in frame
    told = gather(sweep)["metric"]
    assert told == {"name": "mine/score", "higher": True}


def test_a_damaged_ledger_is_said_and_the_runs_are_shown(sweep, caplog):
    (sweep / "ledger.sqlite").write_bytes(b"not a database at all" * 100)
    with caplog.at_level(logging.WARNING, logger="lmlab"):
        assert table(sweep)["state"].tolist() == ["budget"] * 3
    assert "ledger.sqlite cannot be read" in caplog.text
