"""What a sweep's ledger says of its trials, beside what they left on disk."""

import logging
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

log = logging.getLogger("lmlab")

# What a trial is doing, where that is not for its directory to say.
TOLD = ("running", "waiting", "pruned", "failed")


def apply(rows: list[dict[str, Any]], root: str | os.PathLike) -> None:
    """Put states and reasons of the sweeps at or below `root` into a table's rows; trials without files come last."""
    by_run = {told["run"]: told for told in rows}
    for ledger in ledgers(root):
        for trial in trials(ledger):
            if trial["status"] not in TOLD:
                continue
            run = os.path.relpath(ledger.parent / trial["run_dir"], root) if trial["run_dir"] else None
            if run not in by_run:
                if trial["status"] == "waiting":
                    continue
                run = run or os.path.relpath(ledger.parent / f"trial {trial['id']}", root)
                by_run[run] = {"run": run, "seed": trial["seed"], "treatment": None, "asked": {}}
                rows.append(by_run[run])
            by_run[run] |= {"state": trial["status"], "reason": trial["reason"]}


def ledgers(root: str | os.PathLike) -> list[Path]:
    """Of the sweep at `root`, or of those one or two levels below it."""
    patterns = ("ledger.sqlite", "*/ledger.sqlite", "*/*/ledger.sqlite")
    return [path for pattern in patterns for path in sorted(Path(root).glob(pattern))]


def trials(ledger: Path) -> list[dict[str, Any]]:
    """id, status, reason, seed and run_dir of every trial. A ledger that cannot be read is said, and has none."""
    try:
        database = sqlite3.connect(f"{ledger.resolve().as_uri()}?mode=ro", uri=True, timeout=10)
        with closing(database):
            database.row_factory = sqlite3.Row
            return [dict(row) for row in database.execute("SELECT id, status, reason, seed, run_dir FROM trials")]
    except sqlite3.Error as error:
        log.warning("%s cannot be read (%s): its runs are shown as they lie on disk", ledger, error)
        return []
