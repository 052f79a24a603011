"""What a sweep looks like from the terminal: counts, the best so far, time left."""

import json
import sys
import time
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from lmlab.runs.protocols import incomparable
from lmlab.sweeps.asked import Asked, load
from lmlab.sweeps.ending import best, finished
from lmlab.sweeps.ledger import Ledger, results_of
from lmlab.sweeps.strategy import comparing
from lmlab.terminal import printable

# Seconds between looks at the ledger.
EVERY = 1.0


def total(asked: Asked) -> int:
    return asked.n_points * asked.replicates


def seconds_left(asked: Asked, ledger: Ledger) -> float | None:
    """From the seconds of the trials that are done; None before the first."""
    rows = ledger.trials()
    done = [row["seconds"] for row in rows if row["status"] in ("done", "pruned", "failed")]
    left = total(asked) - len(done)
    workers = len({(row["host"], row["pid"]) for row in rows if row["status"] == "running"})
    return left * sum(done) / len(done) / max(workers, 1) if done else None


def pace(ledger: Ledger) -> tuple[float, float] | None:
    """Medians over warm workers' trials: seconds from one to the next, and what a trial took beside its steps and the
    scoring of its validations and its end. None before there are any."""
    by_worker: dict[tuple, list[Any]] = {}
    for row in ledger.trials():
        if row["finished"] and row["status"] not in ("waiting", "running"):
            by_worker.setdefault((row["host"], row["pid"], row["born"]), []).append(row)
    between, beside = [], []
    for rows in by_worker.values():
        rows.sort(key=lambda row: row["started"])
        # The first one of a worker pays for its imports.
        for before, row in pairwise(rows):
            values = results_of(row) if row["values_"] else {}
            between.append(max(0.0, row["started"] - before["finished"]))
            if row["status"] == "done" and "measuring_seconds" in values:
                own = row["seconds"] - values["seconds"] - values["measuring_seconds"]
                # In one go, and not a run that was there already.
                if abs(row["finished"] - row["started"] - row["seconds"]) < 1 and own > 0:
                    beside.append(own)
    return (median(between), median(beside)) if beside else None


def paced(ledger: Ledger) -> str | None:
    if (told := pace(ledger)) is None:
        return None
    return f"{told[1]:.2f} s of a warm trial beside training and scoring, {told[0]:.2f} s between trials (medians)"


def counted(asked: Asked, ledger: Ledger) -> str:
    counts = ledger.counts()
    counts["waiting"] += total(asked) - sum(counts.values())
    lost = len(ledger.orphans())
    counts["running"] -= lost
    counts["waiting"] += lost
    return ", ".join(f"{counts[s]} {s}" for s in ("done", "running", "waiting", "pruned", "failed") if counts[s])


def leaders(asked: Asked, ledger: Ledger) -> list[tuple[str, str]]:
    """(what, which): the best points so far; of several protocols that none is the best of all, then those of each."""
    found, points = finished(asked, ledger), {p["number"]: p for p in ledger.points()}
    lines = [("no winner", incomparable(found) + misled(asked))] if len(found) > 1 else []
    for protocol, values in found.items():
        what = f"best under {protocol}" if len(found) > 1 else "best"
        for point in best(asked, values):
            told = ", ".join(f"{o['metric']} {v:.4f}" for o, v in zip(asked.objective, values[point], strict=True))
            lines.append((what, f"{told}  {' '.join(json.loads(points[point]['overrides']))}"))
    return lines


def misled(asked: Asked) -> str:
    """What chose by numbers of all protocols while the sweep ran."""
    found = comparing(asked.strategy, asked.pruning["rule"])
    return f" ({' and '.join(found)} compared them all the same)" if found else ""


def trial_line(row: Any) -> str:
    """A trial that has ended."""
    reason = f": {row['reason']}" if row["reason"] else ""
    numbers = results_of(row) if row["values_"] else {}
    told = f", val/bpb {numbers['val/bpb']:.4f}" if "val/bpb" in numbers else ""
    return f"{row['name'] or ' '.join(json.loads(row['overrides']))}: {row['status']}{told}{reason}"


class View:
    """Shows the sweep while it runs: redrawn in place on a terminal, else a line for each trial that ends."""

    def __init__(self, directory: Path, ledger: Ledger, asked: Asked):
        self.directory, self.ledger, self.asked = directory, ledger, asked
        self.shown = {row["id"]: (row["status"], row["step"]) for row in ledger.trials()}
        self.looked = 0.0
        self.live: Any = None

    def __enter__(self) -> "View":
        if sys.stderr.isatty():
            from rich.live import Live

            self.live = Live(console=console(stderr=True), auto_refresh=False, transient=True)
            self.live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.looked = 0.0
        self.update()
        if self.live is not None:
            self.live.stop()
            self.live = None

    def update(self) -> None:
        if time.monotonic() - self.looked < EVERY:
            return
        self.looked = time.monotonic()
        for row in self.ledger.trials("done", "pruned", "failed"):
            # A pruned trial that went on and was pruned again is news.
            if self.shown.get(row["id"]) != (row["status"], row["step"]):
                self.shown[row["id"]] = (row["status"], row["step"])
                if self.live is None or row["status"] == "failed":
                    self.say(trial_line(row))
        if self.live is not None:
            self.live.update(panel(self.directory, self.asked, self.ledger), refresh=True)

    def say(self, line: str) -> None:
        (self.live.console.print if self.live else lambda text: print(printable(text), file=sys.stderr))(line)

    def conclude(self) -> None:
        """What the sweep found."""
        print(f"{printable(str(self.directory))}: {counted(self.asked, self.ledger)}")
        if (told := paced(self.ledger)) is not None:
            print(told)
        for what, which in leaders(self.asked, self.ledger):
            print(printable(f"{what}: {which}"))


def console(stderr: bool = False) -> Any:
    """A terminal on which no text is markup: overrides and reasons have brackets of their own."""
    from lmlab import terminal

    return terminal.console(stderr=stderr, highlight=False)


def panel(directory: Path, asked: Asked, ledger: Ledger) -> Any:
    """The whole state as one of rich's tables."""
    from rich.table import Table

    table = Table(title=f"{directory}", title_justify="left", box=None, show_header=False)
    table.add_row("trials", f"{counted(asked, ledger)} of {total(asked)}")
    left = seconds_left(asked, ledger)
    table.add_row("time left", "not known yet" if left is None else str(timedelta(seconds=round(left))))
    if (told := paced(ledger)) is not None:
        table.add_row("overhead", told)
    for what, which in leaders(asked, ledger)[:5]:
        table.add_row(what, which)
    if lost := {row["id"] for row in ledger.orphans()}:
        table.add_row(
            "stopped", f"{len(lost)} of those that wait lost their worker; the same command goes on with them"
        )
    for row in ledger.trials("running"):
        if row["id"] in lost:
            continue
        of = f" of {row['total_steps']}" if row["total_steps"] else ""
        table.add_row(f"worker {row['worker']}", f"{' '.join(json.loads(row['overrides']))}  step {row['step']}{of}")
    return table


def status(directory: Path) -> None:
    """The same from another terminal."""
    asked = load(directory)
    with Ledger(directory / "ledger.sqlite", read=True) as ledger:
        console().print(panel(directory, asked, ledger))
        for row in ledger.trials("failed"):
            print(printable(trial_line(row)))
