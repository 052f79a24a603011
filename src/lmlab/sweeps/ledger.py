"""The ledger: what every trial is doing, in SQLite, safe under many processes and against being killed at any moment.

Tables:
- `points(number, params, overrides, attrs)`: one choice of the parameters each, in the order in which they were
  proposed, written before it runs. params, overrides and attrs (what a sampler remembers) are JSON.
- `trials(id, point, replicate, name, status, reason, overrides, seed, run_dir, attempts, takeovers, micro_batch_size,
  rung, step, total_steps, values_, code, host, pid, born, worker, started, heartbeat, finished, seconds)`: a run each.
  status is one of STATUSES; reason says why in words; overrides is a JSON list of all that was asked of `lmlab train`;
  run_dir is relative to the sweep's directory; values_ is a JSON object of the finished run's numbers and its
  protocol; rung counts pruning's looks at it, and is null once it may run to its end; code is the exit status that its
  failure has.
- `reports(trial, step, value)`: what was measured at each validation, for pruning.
- `workers(host, pid, born, started, heartbeat, ended, trials)`.
- `meta(key, value)`.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import socket
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lmlab.errors import full_disk
from lmlab.runs.ledger import reading
from lmlab.seal import seal, unseal

FORMAT = 1
# waiting: not begun, or to be continued. pruned: stopped early, may yet be promoted. The rest says itself.
STATUSES = ("waiting", "running", "done", "pruned", "failed")
# Seconds without a sign of life, after which a worker on another machine counts as dead.
SILENCE = 90.0
# File systems without the shared memory that write-ahead logging needs.
NETWORK = ("nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "beegfs", "ceph", "fuse.sshfs", "9p", "afs", "glusterfs")
# Bytes of the file through which processes share a ledger; where there is no room for it, SQLite speaks of I/O.
SHARED = 1 << 15
# What to do about a damaged one.
REMEDY = "move it away, and the same command makes a new one from the trials' directories, training none twice"

SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS points (number INTEGER PRIMARY KEY, params TEXT, overrides TEXT, attrs TEXT);
CREATE TABLE IF NOT EXISTS trials (
  id INTEGER PRIMARY KEY, point INTEGER, replicate INTEGER, name TEXT, status TEXT, reason TEXT, overrides TEXT,
  seed INTEGER, run_dir TEXT, attempts INTEGER DEFAULT 0, takeovers INTEGER DEFAULT 0, micro_batch_size INTEGER,
  rung INTEGER, step INTEGER DEFAULT 0, total_steps INTEGER, values_ TEXT, code INTEGER, host TEXT, pid INTEGER,
  born TEXT, worker TEXT, started REAL, heartbeat REAL, finished REAL, seconds REAL DEFAULT 0,
  UNIQUE (point, replicate));
CREATE INDEX IF NOT EXISTS by_status ON trials (status);
CREATE TABLE IF NOT EXISTS reports (trial INTEGER, step INTEGER, value REAL, PRIMARY KEY (trial, step));
CREATE TABLE IF NOT EXISTS workers (
  host TEXT, pid INTEGER, born TEXT, started REAL, heartbeat REAL, ended REAL, trials INTEGER DEFAULT 0,
  PRIMARY KEY (host, pid, born));
"""


def me() -> tuple[str, int, str]:
    """This process: host, id, and when it was born, for ids are used again."""
    return socket.gethostname(), os.getpid(), birth(os.getpid()) or ""


def birth(pid: int) -> str | None:
    """When a process of this machine began, in the system's ticks; '' where it does not tell, None for no process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            return ""
        return ""
    # The name, in parentheses, may hold anything; the state follows it.
    fields = text.rpartition(")")[2].split()
    # One that ended and was not waited for is its parent's to report; where that is gone, nobody's.
    return None if fields[0] == "Z" and fields[1] == "1" else fields[19]


def alive(host: str, pid: int, born: str, silent: float) -> bool:
    """silent: seconds for which a process of another machine has given no sign of life."""
    return birth(pid) == born if host == socket.gethostname() else silent < SILENCE


def journal(path: Path) -> str:
    """Write-ahead logging on a disk of this machine, a plain journal on one that machines share."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "wal"
    inside = [m for m in mounts if str(path.resolve()).startswith(m[1].rstrip("/") + "/")]
    return "delete" if inside and max(inside, key=lambda m: len(m[1]))[2] in NETWORK else "wal"


def results_of(row: Any) -> dict[str, Any]:
    """A finished trial's numbers, and its `protocol`. Raises ValueError where they are not what was written."""
    try:
        told = json.loads(unseal(row["values_"]))
        if not all(isinstance(value, str if name == "protocol" else int | float) for name, value in told.items()):
            raise ValueError("it holds more than numbers")
        return told
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"ledger.sqlite is damaged at {row['name'] or row['overrides']} ({error}); {REMEDY}"
        ) from error


def directory_of(sweep: Path, row: Any) -> Path:
    """A trial's directory. Raises ValueError where that is none of this sweep's: the ledger may be a stranger's."""
    if not re.fullmatch(r"trials/(?!\.\.?\Z)[^/\0]+", str(row["run_dir"])):
        raise ValueError(f"ledger.sqlite is damaged at {row['run_dir']!r}, which is no trial's directory; {REMEDY}")
    return sweep / row["run_dir"]


class Ledger:
    """Open it in each process anew. Raises ValueError where the file is damaged, of another format or not to be opened.

    read: only that; a colleague's sweep may be looked at.
    """

    def __init__(self, path: str | os.PathLike, create: bool = False, read: bool = False):
        self.path = Path(path)
        # {trial: (its last sign of life, when that was first seen)}
        self.signs: dict[int, tuple[Any, float]] = {}
        if not create and not self.path.is_file():
            raise FileNotFoundError(f"{self.path.parent} is no sweep: it has no {self.path.name}")
        try:
            if create and not self.path.exists():
                self._create()
            self.connection = self._connect(self.path, read)
            found = self.meta("format")
            # A millisecond for a thousand trials. SQLite itself notices a damaged page only when it comes across it.
            if (said := self.ask("PRAGMA integrity_check(1)")[0][0]) != "ok":
                raise sqlite3.DatabaseError(said)
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            # The latter of SQLite's own complaint, where it quotes what is damaged.
            if full_disk(error) is not None:
                raise
            if "disk I/O error" in str(error) and shutil.disk_usage(self.path.parent).free < SHARED:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path)) from error
            if isinstance(error, sqlite3.OperationalError) and "no such" not in str(error):
                raise ValueError(f"{self.path} cannot be opened: {error}") from error
            raise ValueError(f"{self.path} is damaged ({error}); {REMEDY}") from error
        if found != str(FORMAT):
            raise ValueError(f"{self.path} has ledger format {found}, this version reads {FORMAT}")

    @staticmethod
    def _connect(path: Path, read: bool = False) -> sqlite3.Connection:
        connection = reading(path) if read else sqlite3.connect(path, timeout=120, isolation_level=None)
        connection.row_factory = sqlite3.Row
        # What a disk changed may be no text; checksums say so, and SQLite's error would name no remedy.
        connection.text_factory = lambda content: content.decode("utf-8", "replace")
        return connection

    def _create(self) -> None:
        """Whole or not at all: others may be looking for it."""
        beside = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        beside.unlink(missing_ok=True)
        connection = self._connect(beside)
        connection.executescript(SCHEMA)
        connection.execute("INSERT INTO meta VALUES ('format', ?)", (FORMAT,))
        connection.execute(f"PRAGMA journal_mode={journal(self.path)}")
        connection.close()
        # Another process may have been faster.
        try:
            os.link(beside, self.path)
        except FileExistsError:
            pass
        except OSError:
            # Some file systems have no links: whoever makes the empty file is first.
            with contextlib.suppress(FileExistsError):
                self.path.open("x").close()
                os.replace(beside, self.path)
        beside.unlink(missing_ok=True)

    def close(self) -> None:
        self.connection.close()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Within, nobody else writes; what was written is there whole or not at all. One inside another is one."""
        if self.connection.in_transaction:
            yield
            return
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")

    def ask(self, query: str, *values: Any) -> list[sqlite3.Row]:
        return self.connection.execute(query, values).fetchall()

    def meta(self, key: str) -> str | None:
        rows = self.ask("SELECT value FROM meta WHERE key = ?", key)
        return None if not rows else str(rows[0]["value"])

    # Points and trials

    def add_point(
        self,
        params: Mapping[str, Any],
        overrides: Sequence[str],
        attrs: Mapping[str, Any],
        seeds: Sequence[int],
        rung: int | None = None,
    ) -> int:
        """Write down the next point and its replicates. Returns its number."""
        with self.transaction():
            number = self.n_points()
            self.connection.execute(
                "INSERT INTO points VALUES (?, ?, ?, ?)",
                (number, json.dumps(dict(params)), json.dumps(list(overrides)), json.dumps(dict(attrs))),
            )
            for replicate, seed in enumerate(seeds):
                self.connection.execute(
                    "INSERT INTO trials (point, replicate, status, seed, overrides, rung) "
                    "VALUES (?, ?, 'waiting', ?, ?, ?)",
                    (number, replicate, seed, json.dumps(list(overrides)), rung),
                )
        return number

    def n_points(self) -> int:
        return self.ask("SELECT COUNT(*) AS n FROM points")[0]["n"]

    def points(self) -> list[sqlite3.Row]:
        return self.ask("SELECT * FROM points ORDER BY number")

    def trials(self, *statuses: str) -> list[sqlite3.Row]:
        where = f"WHERE status IN ({','.join('?' * len(statuses))})" if statuses else ""
        return self.ask(f"SELECT * FROM trials {where} ORDER BY point, replicate", *statuses)

    def trial(self, number: int) -> sqlite3.Row:
        return self.ask("SELECT * FROM trials WHERE id = ?", number)[0]

    def by_point(self) -> dict[int, list[sqlite3.Row]]:
        """{point: its replicates' trials}"""
        found: dict[int, list[sqlite3.Row]] = {}
        for row in self.trials():
            found.setdefault(row["point"], []).append(row)
        return found

    def set(self, number: int, **values: Any) -> None:
        names = ", ".join(f"{name} = ?" for name in values)
        self.connection.execute(f"UPDATE trials SET {names} WHERE id = ?", (*values.values(), number))

    def finish(self, number: int, results: Mapping[str, Any], steps: int) -> None:
        """The trial is done, with these numbers, under this protocol."""
        # With a checksum: SQLite would read a changed byte as another number.
        told = seal(json.dumps(dict(results), indent=1))
        self.set(number, status="done", reason=None, values_=told, finished=time.time(), step=steps)

    def counts(self) -> dict[str, int]:
        rows = self.ask("SELECT status, COUNT(*) AS n FROM trials GROUP BY status")
        return dict.fromkeys(STATUSES, 0) | {row["status"]: row["n"] for row in rows}

    # Who does what

    def next_waiting(self) -> sqlite3.Row | None:
        """The first trial that nobody is at; one whose directory another trial is using waits for that."""
        rows = self.ask(
            "SELECT * FROM trials WHERE status = 'waiting' AND (run_dir IS NULL OR run_dir NOT IN "
            "(SELECT run_dir FROM trials WHERE status = 'running' AND run_dir IS NOT NULL)) "
            "ORDER BY point, replicate LIMIT 1"
        )
        return rows[0] if rows else None

    def start(self, number: int, worker: str) -> sqlite3.Row:
        host, pid, born = me()
        now = time.time()
        told = {"host": host, "pid": pid, "born": born, "worker": worker, "heartbeat": now, "started": now}
        self.set(number, status="running", reason=None, code=None, **told)
        return self.trial(number)

    def place(self, number: int, name: str, run_dir: str) -> bool:
        """Take the run's directory for this trial; False, and waiting again, where another trial is using it."""
        with self.transaction():
            others = self.ask(
                "SELECT id FROM trials WHERE run_dir = ? AND status = 'running' AND id != ?", run_dir, number
            )
            self.set(number, name=name, run_dir=run_dir, **({"status": "waiting"} if others else {}))
        return not others

    def beat(self) -> None:
        """A sign of life of this process."""
        host, pid, born = me()
        now = time.time()
        with self.transaction():
            for table in ("trials", "workers"):
                running = "status = 'running' AND" if table == "trials" else ""
                self.connection.execute(
                    f"UPDATE {table} SET heartbeat = ? WHERE {running} host = ? AND pid = ? AND born = ?",
                    (now, host, pid, born),
                )

    def orphans(self) -> list[sqlite3.Row]:
        """Trials whose worker is dead."""
        rows = self.trials("running")
        return [r for r in rows if not alive(r["host"], r["pid"], r["born"], self._silent(r))]

    def _silent(self, row: Any) -> float:
        """Seconds since its sign of life was first seen, by our clock: another machine's may be wrong."""
        sign, now = (row["host"], row["pid"], row["born"], row["heartbeat"]), time.monotonic()
        seen, since = self.signs.get(row["id"], (None, now))
        self.signs[row["id"]] = (sign, since if sign == seen else now)
        return now - self.signs[row["id"]][1]

    def report(self, number: int, step: int, value: float) -> None:
        """What a validation measured. A trial that gets further than ever is no cause of its workers' deaths so far."""
        with self.transaction():
            furthest = self.ask("SELECT COALESCE(MAX(step), 0) AS step FROM reports WHERE trial = ?", number)[0]["step"]
            self.connection.execute("INSERT OR REPLACE INTO reports VALUES (?, ?, ?)", (number, step, value))
            further = {"takeovers": 0} if step > furthest else {}
            self.set(number, step=step, heartbeat=time.time(), **further)

    def reports(self) -> dict[int, dict[int, float]]:
        """{trial: {step: value}}"""
        told: dict[int, dict[int, float]] = {}
        for row in self.ask("SELECT * FROM reports ORDER BY trial, step"):
            told.setdefault(row["trial"], {})[row["step"]] = row["value"]
        return told
