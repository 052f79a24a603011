"""The end of a sweep: the winner, its test score, and the checkpoints that stay."""

import logging
from pathlib import Path
from typing import Any

from lmlab.run_directory import RunDirectory
from lmlab.sweeps.asked import Asked
from lmlab.sweeps.ledger import Ledger
from lmlab.sweeps.strategy import means, standing

log = logging.getLogger("lmlab")


def finished(asked: Asked, ledger: Ledger) -> dict[int, list[float]]:
    """{point: its means}, of the points whose replicates are all done."""
    rows: dict[int, list[Any]] = {}
    for row in ledger.trials():
        rows.setdefault(row["point"], []).append(row)
    return {point: means(asked, trials) for point, trials in rows.items() if standing(trials) == "done"}


def best(asked: Asked, ledger: Ledger) -> list[int]:
    """The best point, the first of equal ones; with several objectives the Pareto front."""
    signs = [-1.0 if one["direction"] == "maximize" else 1.0 for one in asked.objective]
    told = {p: [s * v for s, v in zip(signs, values, strict=True)] for p, values in finished(asked, ledger).items()}
    if len(signs) == 1:
        return [min(told, key=lambda p: (told[p], p))] if told else []
    return [p for p, v in told.items() if not any(_dominates(other, v) for other in told.values())]


def _dominates(a: list[float], b: list[float]) -> bool:
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))


def finish(asked: Asked, ledger: Ledger, directory: Path) -> None:
    """Once nothing is left to do: drop the checkpoints that nobody keeps, score test for the winner."""
    winners = best(asked, ledger)
    sweep_away(asked, ledger, directory, winners, last=True)
    if asked.test and len(asked.objective) == 1:
        for row in ledger.trials("done"):
            if row["point"] in winners:
                score_test(directory / row["run_dir"])


def sweep_away(asked: Asked, ledger: Ledger, directory: Path, winners: list[int], last: bool) -> None:
    """Remove checkpoints by the rule. last: whether the sweep is over, so that nothing pruned goes on."""
    if asked.keep == "all":
        return
    kept = {row["run_dir"] for row in ledger.trials() if row["point"] in winners}
    for row in ledger.trials("done", *(["pruned"] if last and asked.keep == "none" else [])):
        run = RunDirectory(directory / (row["run_dir"] or ""))
        if row["run_dir"] is None:
            continue
        run.last.unlink(missing_ok=True)
        if row["run_dir"] not in kept:
            run.best.unlink(missing_ok=True)


def score_test(path: Path) -> None:
    """Add the test split to a finished run's results, once."""
    from lmlab.runs import load

    run = load(path)
    results = run.results
    if results is None or "test" in results["splits"] or "test" not in run.store().splits:
        return
    results["splits"]["test"] = run.evaluate("test").as_dict()
    RunDirectory(path).write_json("results.json", results)
