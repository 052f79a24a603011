"""What a sweep's ledger says of its trials, beside what they left on disk."""

import logging
import os
import sqlite3
from pathlib import Path

log = logging.getLogger("lmlab")

Told = dict[str, str | None]


def ledgers(root: str | os.PathLike) -> list[Path]:
    """The sweep at `root`, or those a level or two below it."""
    name = "ledger.sqlite"
    return [path for pattern in (name, f"*/{name}", f"*/*/{name}") for path in sorted(Path(root).glob(pattern))]


def trials(ledger: Path) -> list[Told]:
    """name, status, reason, seed and run_dir of every trial. One that cannot be read is said and has none."""
    try:
        with sqlite3.connect(f"{ledger.resolve().as_uri()}?mode=ro", uri=True, timeout=10) as database:
            database.row_factory = sqlite3.Row
            rows = database.execute("SELECT name, status, reason, seed, run_dir FROM trials ORDER BY rowid").fetchall()
    except sqlite3.Error as error:
        log.warning("%s cannot be read (%s); its runs are shown as they lie on disk", ledger, error)
        return []
    finally:
        if "database" in locals():
            database.close()
    return [dict(row) for row in rows]
