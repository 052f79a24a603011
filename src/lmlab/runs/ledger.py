"""What a sweep's ledger says of its trials, beside what they left on disk."""

import json
import logging
import os
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import yaml

from lmlab.run_directory.plain_yaml import read_yaml
from lmlab.seal import unseal

log = logging.getLogger("lmlab")

# What a trial is doing, where that is not for its directory to say.
TOLD = ("running", "waiting", "pruned", "failed")


def apply(rows: list[dict[str, Any]], root: str | os.PathLike) -> None:
    """Put states and reasons of the sweeps at or below `root` into a table's rows; trials without files come last."""
    by_run = {told["run"]: told for told in rows}
    for ledger in ledgers(root):
        # What the sweep chooses by may be what a run logged, which its results do not have.
        wanted, known = objectives(ledger.parent), trials(ledger)
        # Of a point that was drawn twice, one may have stopped where the other went on.
        ended = {trial["run_dir"] for trial in known if trial["status"] == "done"} - {None}
        for trial in known:
            if trial["status"] in TOLD and trial["run_dir"] in ended:
                continue
            if trial["status"] not in TOLD:
                place = os.path.relpath(ledger.parent / (trial["run_dir"] or ""), root)
                done = by_run.get(place)
                if done is not None and not wanted.keys() <= done.keys():
                    told = numbers(trial, ledger)
                    done |= {name: told[name] for name in wanted if name in told and name not in done}
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


def objectives(sweep: Path) -> dict[str, str]:
    """{metric: direction} of the sweep in this directory; nothing where there is none."""
    try:
        stated = read_yaml(unseal((sweep / "sweep.yaml").read_text(encoding="utf-8")))["objective"]
        return {one["metric"]: one["direction"] for one in stated}
    except (OSError, yaml.YAMLError, ValueError, KeyError, TypeError):
        return {}


def directions(root: str | os.PathLike) -> dict[str, str]:
    """{metric: direction} of the objectives of the sweep at `root`, then of those below it."""
    sweeps = [Path(root), *(path.parent for path in ledgers(root))]
    return {metric: way for sweep in reversed(sweeps) for metric, way in objectives(sweep).items()}


def lacking(root: str | os.PathLike) -> dict[str, dict[int, str]]:
    """{run: {seed: status}} of what is not done of the point that this run is of.

    The sweep itself lets no point win of which one seed failed, was stopped, or is still to come.
    """
    found: dict[str, dict[int, str]] = {}
    for ledger in ledgers(root):
        points: dict[Any, list[dict[str, Any]]] = {}
        for trial in trials(ledger):
            points.setdefault(trial["point"], []).append(trial)
        for those in points.values():
            if missing := {trial["seed"]: trial["status"] for trial in those if trial["status"] in TOLD}:
                for run in (trial["run_dir"] for trial in those if trial["run_dir"]):
                    found.setdefault(os.path.relpath(ledger.parent / run, root), {}).update(missing)
    return found


def numbers(trial: Mapping[str, Any], ledger: Path) -> dict[str, float]:
    """What a finished trial told. A damaged record is said, and has none."""
    try:
        return json.loads(unseal(trial["values_"] or "{}"))
    except ValueError as error:
        log.warning("%s is damaged at trial %s (%s): its run is shown as it lies on disk", ledger, trial["id"], error)
        return {}


def reading(ledger: Path) -> sqlite3.Connection:
    """A connection that writes nothing, also where SQLite may not make its files beside. Raises sqlite3.Error."""
    uri = ledger.resolve().as_uri()
    database = sqlite3.connect(f"{uri}?mode=ro", uri=True, timeout=10, isolation_level=None)
    try:
        database.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        database.close()
        if "locked" in str(error) or ledger.with_name(ledger.name + "-wal").exists():
            raise
        # Nobody is writing: what is in the file is all.
        database = sqlite3.connect(f"{uri}?immutable=1", uri=True, isolation_level=None)
    return database


def trials(ledger: Path) -> list[dict[str, Any]]:
    """What every trial is and how it stands. A ledger that cannot be read is said, and has none."""
    try:
        with closing(reading(ledger)) as database:
            database.row_factory = sqlite3.Row
            query = "SELECT id, point, status, reason, seed, run_dir, values_ FROM trials"
            return [dict(row) for row in database.execute(query)]
    except sqlite3.Error as error:
        log.warning("%s cannot be read (%s): its runs are shown as they lie on disk", ledger, error)
        return []
