"""The end of a sweep: the winner, what is measured for it alone, and the checkpoints that stay."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmlab.config import plain, targets
from lmlab.run_directory import RunDirectory
from lmlab.runs import protocols
from lmlab.runs.measures import front
from lmlab.sweeps.asked import Asked, load
from lmlab.sweeps.composer import Composer
from lmlab.sweeps.ledger import Ledger, directory_of, results_of
from lmlab.sweeps.strategy import means, standing

log = logging.getLogger("lmlab")

# Runs of a front that an error names.
NAMED = 8


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
    return front(told)


def winners(asked: Asked, ledger: Ledger) -> set[int]:
    """Of each protocol."""
    return {point for values in finished(asked, ledger).values() for point in best(asked, values)}


def winner(directory: Path) -> list[Path]:
    """The best point's runs, its replicates, of a sweep's directory; which point that is, is said.

    Raises ValueError where no point has finished, and where several objectives or protocols leave more than one.
    """
    asked = load(directory)
    with Ledger(directory / "ledger.sqlite", read=True) as ledger:
        found, chosen = finished(asked, ledger), winners(asked, ledger)
        rows = [row for row in ledger.trials("done") if row["point"] in chosen]
    if not rows:
        raise ValueError(f"{directory} has no winner yet; lmlab sweep status={directory} shows how it stands")
    if len(found) > 1:
        raise ValueError(f"{directory} has no winner: {protocols.incomparable(found)}")
    paths = [directory_of(directory, row) for row in rows]
    if len(chosen) > 1:
        front = ", ".join(map(str, paths[:NAMED])) + (f" and {len(paths) - NAMED} more" if len(paths) > NAMED else "")
        raise ValueError(f"{directory} has several objectives and no one winner; name a run of its front: {front}")
    told, among = " ".join(json.loads(rows[0]["overrides"])), len(next(iter(found.values())))
    log.info("%s: its winner, the best of %d points: %s", directory, among, told or paths[0].name)
    return paths


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
        over = {point for values in finished(self.asked, self.ledger).values() for point in values}
        given_up = last and self.asked.keep == "none"
        # Those of a point that has not finished may yet be the winner's.
        open_ = set() if given_up else {row["point"] for row in rows if row["point"] not in over}
        # The winner keeps its last one, too: it can be trained longer.
        chosen = winners(self.asked, self.ledger) | open_
        kept = {row["run_dir"] for row in rows if row["point"] in chosen}
        for row in rows:
            ended = row["status"] == "done" or (given_up and row["status"] == "pruned")
            if ended and row["run_dir"] is not None and row["run_dir"] not in kept:
                run = RunDirectory(directory_of(self.directory, row))
                if run.path.is_symlink() or run.checkpoints.is_symlink():
                    # Somewhere else, where others may need them.
                    continue
                run.last.unlink(missing_ok=True)
                run.best.unlink(missing_ok=True)

    def finish(self) -> None:
        """Once nothing is left to do."""
        self.update(last=True)
        chosen = winners(self.asked, self.ledger)
        for row in self.ledger.trials("done"):
            if row["point"] in chosen:
                complete(self.asked, row, directory_of(self.directory, row))


def complete(asked: Asked, row: Any, path: Path) -> None:
    """Add to a winner's results what is measured for it alone, once: the floors and, of one objective, test."""
    from lmlab.decisions import choose_device
    from lmlab.runs import load

    results = RunDirectory(path).results()
    if results is None:
        return
    splits, known = results["splits"], next(iter(results.get("floors", {}).values()), {})
    test = asked.test and len(asked.objective) == 1 and "test" not in splits
    if not test and not (asked.floors and splits.keys() - known.keys()):
        return
    config = asked_of(asked, row)
    # Where it was trained; a launcher's jobs may have had GPUs where we have none.
    accelerator = config["trainer"]["accelerator"]
    run = load(
        path, device=choose_device("cpu" if accelerator == "cpu" else "auto"), kernels=config["kernels"],
        allow_targets=set(targets(config)), cache_dir=config["cache_dir"],
    )  # fmt: skip
    if test := test and "test" in run.store().splits:
        splits["test"] = run.evaluate("test").as_dict() | {"unknown": run.unknown("test")}
    if floors := asked.floors and splits.keys() - known.keys():
        results |= run.floors(splits)
    if test or floors:
        RunDirectory(path).write_json("results.json", results)


def asked_of(asked: Asked, row: Any) -> dict[str, Any]:
    """The config that a trial was asked for: with classes by name, the user's own among them."""
    from lmlab.sweeps.trial import config_of

    overrides = [*asked.overrides, *asked.overrides_in(row)]
    return plain(config_of(overrides, row["seed"], Composer(asked.config_dir)))
