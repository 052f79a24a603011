"""The end of a sweep: the winner, its test score, and the checkpoints that stay."""

import logging
from collections.abc import Mapping
from pathlib import Path

from lmlab.run_directory import RunDirectory
from lmlab.runs import protocols
from lmlab.sweeps.asked import Asked
from lmlab.sweeps.ledger import Ledger, results_of
from lmlab.sweeps.strategy import means, standing

log = logging.getLogger("lmlab")


def finished(asked: Asked, ledger: Ledger) -> dict[str, dict[int, list[float]]]:
    """{protocol: {point: its means}}, of the points whose replicates are all done.

    Points are chosen among those of one protocol: numbers of two are not comparable. Where no objective is of an
    evaluation, there is but one, ''.
    """
    measured = any(protocols.is_measured(one["metric"]) for one in asked.objective)
    found: dict[str, dict[int, list[float]]] = {}
    for point, trials in ledger.by_point().items():
        if standing(trials) == "done":
            protocol = results_of(trials[0]).get("protocol", protocols.UNNAMED) if measured else ""
            found.setdefault(protocol, {})[point] = means(asked, trials)
    return found


def best(asked: Asked, values: Mapping[int, list[float]]) -> list[int]:
    """The best of these points, the first of equal ones; with several objectives the Pareto front."""
    signs = [-1.0 if one["direction"] == "maximize" else 1.0 for one in asked.objective]
    told = {p: [s * v for s, v in zip(signs, each, strict=True)] for p, each in values.items()}
    if len(signs) == 1:
        return [min(told, key=lambda p: (told[p], p))] if told else []
    return [p for p, v in told.items() if not any(_dominates(other, v) for other in told.values())]


def winners(asked: Asked, ledger: Ledger) -> set[int]:
    """Of each protocol."""
    return {point for values in finished(asked, ledger).values() for point in best(asked, values)}


def _dominates(a: list[float], b: list[float]) -> bool:
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))


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
        chosen = winners(self.asked, self.ledger) | open_
        kept = {row["run_dir"] for row in rows if row["point"] in chosen}
        for row in rows:
            over = row["status"] == "done" or (last and row["status"] == "pruned" and self.asked.keep == "none")
            if not over or row["run_dir"] is None:
                continue
            run = RunDirectory(self.directory / row["run_dir"])
            run.last.unlink(missing_ok=True)
            if row["run_dir"] not in kept:
                run.best.unlink(missing_ok=True)

    def finish(self) -> None:
        """Once nothing is left to do; test is scored for the winner alone, of each protocol."""
        self.update(last=True)
        if not self.asked.test or len(self.asked.objective) > 1:
            return
        chosen = winners(self.asked, self.ledger)
        for row in self.ledger.trials("done"):
            if row["point"] in chosen:
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
