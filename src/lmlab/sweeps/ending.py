"""The end of a sweep: the winner, its test score, and the checkpoints that stay."""

import json
import logging
from pathlib import Path

from lmlab.run_directory import RunDirectory
from lmlab.sweeps.asked import Asked, load
from lmlab.sweeps.ledger import Ledger
from lmlab.sweeps.strategy import means, standing

log = logging.getLogger("lmlab")

# Runs of a front that an error names.
NAMED = 8


def finished(asked: Asked, ledger: Ledger) -> dict[int, list[float]]:
    """{point: its means}, of the points whose replicates are all done."""
    return {point: means(asked, trials) for point, trials in ledger.by_point().items() if standing(trials) == "done"}


def best(asked: Asked, ledger: Ledger) -> list[int]:
    """The best point, the first of equal ones; with several objectives the Pareto front."""
    signs = [-1.0 if one["direction"] == "maximize" else 1.0 for one in asked.objective]
    told = {p: [s * v for s, v in zip(signs, values, strict=True)] for p, values in finished(asked, ledger).items()}
    if len(signs) == 1:
        return [min(told, key=lambda p: (told[p], p))] if told else []
    return [p for p, v in told.items() if not any(_dominates(other, v) for other in told.values())]


def _dominates(a: list[float], b: list[float]) -> bool:
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))


def winner(directory: Path) -> list[Path]:
    """The best point's runs, its replicates, of a sweep's directory; which point that is, is said.

    Raises ValueError where no point has finished, and where several objectives leave more than one.
    """
    asked = load(directory)
    with Ledger(directory / "ledger.sqlite") as ledger:
        points, among = best(asked, ledger), len(finished(asked, ledger))
        rows = [row for row in ledger.trials("done") if row["point"] in points]
    if not points:
        raise ValueError(f"{directory} has no winner yet; lmlab sweep status={directory} shows how it stands")
    found = [directory / row["run_dir"] for row in rows]
    if len(points) > 1:
        front = ", ".join(map(str, found[:NAMED])) + (f" and {len(found) - NAMED} more" if len(found) > NAMED else "")
        raise ValueError(f"{directory} has several objectives and no one winner; name a run of its front: {front}")
    told = " ".join(json.loads(rows[0]["overrides"]))
    log.info("%s: its winner, the best of %d points: %s", directory, among, told or found[0].name)
    return found


class Tidy:
    """Removes the checkpoints that nobody keeps, while the sweep runs and at its end: a thousand trials fit a disk."""

    def __init__(self, asked: Asked, ledger: Ledger, directory: Path):
        self.asked, self.ledger, self.directory = asked, ledger, directory
        self.done = 0

    def update(self, last: bool = False) -> None:
        """last: whether the sweep is over, so that nothing pruned goes on."""
        counts = self.ledger.counts()
        if self.asked.keep == "all" or (counts["done"] == self.done and not last):
            return
        self.done = counts["done"]
        rows = self.ledger.trials()
        # Those of a point whose other replicates still run may yet be the winner's.
        open_ = {row["point"] for row in rows if row["status"] in ("waiting", "running")}
        winners = set(best(self.asked, self.ledger))
        kept = {row["run_dir"] for row in rows if row["point"] in winners | open_}
        for row in rows:
            over = row["status"] == "done" or (last and row["status"] == "pruned" and self.asked.keep == "none")
            if not over or row["run_dir"] is None:
                continue
            run = RunDirectory(self.directory / row["run_dir"])
            run.last.unlink(missing_ok=True)
            if row["run_dir"] not in kept:
                run.best.unlink(missing_ok=True)

    def finish(self) -> None:
        """Once nothing is left to do; test is scored for the winner alone."""
        self.update(last=True)
        if not self.asked.test or len(self.asked.objective) > 1:
            return
        winners = best(self.asked, self.ledger)
        for row in self.ledger.trials("done"):
            if row["point"] in winners:
                score_test(self.directory / row["run_dir"])


def score_test(path: Path) -> None:
    """Add the test split to a finished run's results, once."""
    from lmlab.runs import load

    run = load(path)
    results = run.results
    if results is None or "test" in results["splits"] or "test" not in run.store().splits:
        return
    results["splits"]["test"] = run.evaluate("test").as_dict()
    RunDirectory(path).write_json("results.json", results)
