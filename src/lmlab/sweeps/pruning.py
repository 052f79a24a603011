"""Pruning: which trials stop early, and which of those go on after all.

`asha` is successive halving without waiting (Li et al. 2020, arXiv:1810.05934): a trial stops at each rung, a share of
its steps, and of all points that have reached a rung the best 1/factor are promoted to the next. New points are tried
before any is promoted, so that steps are spent on ranks that are known. `hyperband` (Li et al. 2018,
arXiv:1603.06560) deals points to brackets that differ in their first rung. `median` (Golovin et al. 2017) stops a trial
whose best value so far is worse than the median of other points' at the same step.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, median
from typing import Any

from lmlab.sweeps.asked import Asked
from lmlab.sweeps.ledger import Ledger

RUNGED = ("asha", "hyperband")


def shares(pruning: Mapping[str, Any], point: int) -> list[float]:
    """The rungs of a point, as shares of its steps, its end left out."""
    if pruning["rule"] not in RUNGED:
        return []
    factor, first = pruning["factor"], pruning["first"]
    n = max(1, round(math.log(1 / first, factor)))
    rungs = [first * factor**i for i in range(n)]
    return rungs[bracket(pruning, point) :] if pruning["rule"] == "hyperband" else rungs


def bracket(pruning: Mapping[str, Any], point: int) -> int:
    """Which bracket a point belongs to, from 0, which has all rungs: dealt out in turn, in Hyperband's proportions."""
    if pruning["rule"] != "hyperband":
        return 0
    factor = pruning["factor"]
    most = max(1, round(math.log(1 / pruning["first"], factor)))
    # Algorithm 1: bracket s begins with ceil((s_max + 1) / (s + 1) * factor^s) points.
    sizes = [math.ceil((most + 1) / (s + 1) * factor**s) for s in range(most, -1, -1)]
    place = point % sum(sizes)
    for number, size in enumerate(sizes):
        if place < size:
            return number
        place -= size
    raise AssertionError


def first_rung(pruning: Mapping[str, Any], point: int) -> int | None:
    return 0 if shares(pruning, point) else None


def goal(pruning: Mapping[str, Any], point: int, rung: int | None, total_steps: int) -> int:
    """The step at which a trial stops next."""
    rungs = shares(pruning, point)
    if rung is None or rung >= len(rungs):
        return total_steps
    return min(total_steps, max(1, math.ceil(rungs[rung] * total_steps - 1e-9)))


def promote(asked: Asked, ledger: Ledger) -> bool:
    """Let one pruned point go on, the best of the highest rung that has one to give; whether there was one."""
    pruning = asked.pruning
    with ledger.transaction():
        if pruning["rule"] not in RUNGED:
            # Stopped under another rule than is asked for now, or by nothing any more.
            return _release(ledger) if pruning["rule"] == "none" else False
        points = ledger.by_point()
        found = _standings(asked, points, ledger.reports())
        last = not ledger.counts()["running"]
        for group in sorted(found, key=lambda g: (-g[1], g[0])):
            values = found[group]
            keep = len(values) // pruning["factor"]
            best = sorted(values, key=lambda point: (values[point], point))
            # Where there is nothing else to do, a rung with few points sends on its best one all the same.
            for point in best[: max(keep, 1 if last else 0)]:
                # A replicate that ended by itself, as early stopping does, has nowhere to go on to.
                rows = [r for r in points[point] if r["status"] != "done"]
                if rows and all(r["status"] == "pruned" and r["rung"] == group[1] for r in rows):
                    more = group[1] + 1 < len(shares(pruning, point))
                    for row in rows:
                        ledger.set(row["id"], status="waiting", rung=group[1] + 1 if more else None)
                    return True
    return False


def _release(ledger: Ledger) -> bool:
    pruned = ledger.trials("pruned")
    for row in pruned:
        ledger.set(row["id"], status="waiting", rung=None)
    return bool(pruned)


def _standings(
    asked: Asked, points: Mapping[int, Sequence[Any]], reports: Mapping[int, Mapping[int, float]]
) -> dict[tuple[int, int], dict[int, float]]:
    """{(bracket, rung): {point: its value there, lower is better}}, of points whose replicates have all been there.

    There is where a trial was first measured at the rung or past it: one that began past it was at no other place.
    One that ended before it, as early stopping does, stays at its end.
    """
    sign = -1.0 if asked.objective[0]["direction"] == "maximize" else 1.0
    found: dict[tuple[int, int], dict[int, float]] = {}
    for point, rows in points.items():
        for rung in range(len(shares(asked.pruning, point))):
            told = []
            for row in rows:
                step = goal(asked.pruning, point, rung, row["total_steps"] or 0)
                told.append(reached(reports.get(row["id"], {}), step, over=row["status"] == "done"))
            if all(value is not None for value in told):
                group = (bracket(asked.pruning, point), rung)
                found.setdefault(group, {})[point] = sign * fmean(told)  # type: ignore[arg-type]
    return found


def reached(reports: Mapping[int, float], step: int, over: bool) -> float | None:
    places = sorted(reports)
    return next((reports[at] for at in places if at >= step), reports[places[-1]] if over and places else None)


def behind(asked: Asked, ledger: Ledger, trial: int, step: int) -> bool:
    """median: whether this trial's best so far is worse than the middle of other points' trials at this step."""
    pruning = asked.pruning
    if pruning["rule"] != "median":
        return False
    sign = -1.0 if asked.objective[0]["direction"] == "maximize" else 1.0
    reports, points = ledger.reports(), {row["id"]: row["point"] for row in ledger.trials()}
    # Its own replicates are no others: a good point's would stop each other.
    others = [sign * told[step] for n, told in reports.items() if points[n] != points[trial] and step in told]
    if len(others) < pruning["least"]:
        return False
    best = min(sign * value for at, value in reports[trial].items() if at <= step)
    return best > median(others)


def watcher(metric: str, begin: Callable[[int], int], report: Callable[[int, float], bool]) -> Callable[[], Any]:
    """A callback for the run: tells `begin` how many steps it has, and is told where to stop; reports each validation.

    report: (step, value) -> whether to stop here.
    """

    def build() -> Any:
        # Lightning costs seconds; a model that only counts never needs it.
        from lmlab.sweeps.reporter import Reporter

        return Reporter(metric, begin, report)

    return build


def check(pruning: Mapping[str, Any]) -> None:
    """Raises ValueError where the numbers make no rungs."""
    for key, kind, least in (("factor", int, 2), ("least", int, 1)):
        value = pruning[key]
        if isinstance(value, bool) or not isinstance(value, kind) or value < least:
            raise ValueError(f"pruning.{key}={value} must be a whole number, at least {least}")
    first = pruning["first"]
    if isinstance(first, bool) or not isinstance(first, float | int) or not 0 < first < 1:
        raise ValueError(f"pruning.first={first} must be between 0 and 1, a share of the steps")
