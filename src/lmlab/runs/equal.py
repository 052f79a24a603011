"""Which family of models is better, with something held equal: parameters, training tokens, or seconds of training.

Three questions with three answers: at equal parameters each family has its best budget, at equal tokens its best size,
and at equal seconds the best it reaches in that time at any size.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from lmlab.config import BUDGETS
from lmlab.runs import protocols
from lmlab.runs.replicates import by_seed, ended, interval, is_key, student

if TYPE_CHECKING:
    import pandas as pd

HELD = ("parameters", "tokens", "seconds")
# A solved width mostly comes within 1 % of its budget, a number of steps within a step of its tokens.
CLOSE = 1.05
# Seconds at which families are compared, from the slowest start to the earliest end.
TIMES = 4
LEVEL = 0.95


def equal(frame: "pd.DataFrame", metric: str = "val/bpb", by: str = "model", higher: bool = False) -> list[dict]:
    """One entry a comparison: what is `held`, at which value (`at`), `families`, the `winner`, by how much.

    families: {name: {mean, low, high, n, and the parameters, tokens, seconds of what was chosen, and from how many
    configurations it was (`chosen_from`)}}. by: the key whose values are the families. half: of the interval of the
    difference (Welch); p_holm: his test's p, adjusted for all comparisons of the call (Holm 1979); None where there are
    no replicates. winner: None where that p is not below 0.05; `sure`: it is. Only where two families or more have runs
    there; nothing for a single family. Raises ValueError where the metric was measured under several protocols.

    What stands for a family is chosen by the very numbers that are then compared, which flatters each the more, the
    more it was chosen from: the chosen, compared on test (`lmlab compare split=test`), settle it.
    """
    known = ended(frame, metric) if len(frame) else frame
    known = known[known["parameters"].gt(0) & known["seconds"].gt(0)] if len(known) else known
    if by not in known or known[by].nunique() < 2:
        return []
    protocols.check(known, metric)
    sign = -1.0 if higher else 1.0
    found = []
    for held in HELD[:2]:
        for at, rows in levels(known, held):
            told = {name: best(group, metric, sign) for name, group in rows.groupby(by)}
            found.append(compared(held, at, told, sign))
    found += at_seconds(known, metric, by, sign)
    return judged([told for told in found if len(told["families"]) > 1])


def levels(frame: "pd.DataFrame", held: str) -> list[tuple[float, "pd.DataFrame"]]:
    """Runs of nearly the same size together, ascending."""
    found: list[tuple[float, Any]] = []
    ordered = frame.sort_values(held, kind="stable")
    starts = [0]
    values = ordered[held].tolist()
    for place, value in enumerate(values):
        if value > values[starts[-1]] * CLOSE:
            starts.append(place)
    for start, end in zip(starts, [*starts[1:], len(values)], strict=True):
        part = ordered.iloc[start:end]
        found.append((float(part[held].median()), part))
    return found


def best(frame: "pd.DataFrame", metric: str, sign: float) -> dict[str, Any]:
    """The treatment with the best mean."""
    return chosen([summary(group, by_seed(group, metric)) for _, group in frame.groupby("treatment", sort=False)], sign)


def chosen(told: Sequence[dict[str, Any]], sign: float) -> dict[str, Any]:
    return min(told, key=lambda one: sign * one["mean"]) | {"chosen_from": len(told)}


def summary(group: "pd.DataFrame", values: Sequence[float]) -> dict[str, Any]:
    mean, low, high = interval(values)
    sizes = {key: float(group[key].mean()) for key in HELD}
    return {"mean": mean, "low": low, "high": high, "n": len(values), **sizes, "values": list(values)}


def at_seconds(frame: "pd.DataFrame", metric: str, by: str, sign: float) -> list[dict]:
    """Between a shorter and a longer run of the same kind, each with its own schedule, along the logarithm of time."""
    budgets = [key for key in BUDGETS if key in frame]
    others = [k for k in frame if k not in budgets and is_key(k)]
    lines: dict[Any, list[tuple[Any, list[list[tuple[float, float]]]]]] = {}
    for _, kind in frame.groupby([*map(repr, frame[others].to_numpy(object).tolist())]):
        seeds = []
        for _, runs in kind.groupby("seed"):
            ordered = runs.sort_values("seconds")
            seeds.append(list(zip(ordered["seconds"], ordered[metric], strict=True)))
        lines.setdefault(kind[by].iloc[0], []).append((kind, seeds))
    first = max(min(s[0][0] for _, seeds in told for s in seeds) for told in lines.values())
    last = min(max(s[-1][0] for _, seeds in told for s in seeds) for told in lines.values())
    if first >= last:
        return []
    found = []
    for place in range(TIMES):
        # Inside of both ends: replicates take different times.
        at = first * (last / first) ** ((place + 1) / TIMES)
        families = {}
        for name, told in lines.items():
            options = []
            for kind, seeds in told:
                values = [v for v in (reached(seed, at) for seed in seeds) if v is not None]
                if len(values) == len(seeds):
                    nearest = kind.iloc[(kind["seconds"] - at).abs().argsort()[:1]]
                    options.append(summary(nearest, values))
            if options:
                families[name] = chosen(options, sign)
        found.append(compared("seconds", at, families, sign))
    return found


def reached(line: Sequence[tuple[float, float]], at: float) -> float | None:
    """What a run of so many seconds would reach, from those of one seed; None before the shortest has ended.

    After the longest: its own value, as it is finished by then.
    """
    if at < line[0][0]:
        return None
    for (t0, v0), (t1, v1) in pairwise(line):
        if t0 <= at <= t1:
            return v0 if t1 == t0 else v0 + (v1 - v0) * math.log(at / t0) / math.log(t1 / t0)
    return line[-1][1]


def compared(held: str, at: float, families: dict[str, dict[str, Any]], sign: float) -> dict[str, Any]:
    """The best against the second: Welch's interval of the difference of two means, and p of his test."""
    ranked = sorted(families, key=lambda name: sign * families[name]["mean"])
    told: dict[str, Any] = {"held": held, "at": at, "winner": None, "by": None, "half": None, "p": None, "sure": False}
    if len(ranked) > 1:
        a, b = (families[name]["values"] for name in ranked[:2])
        difference = abs(families[ranked[1]]["mean"] - families[ranked[0]]["mean"])
        told |= {"winner": ranked[0], "by": difference, "half": welch(a, b, LEVEL), "p": welch_p(a, b)}
    kept = {name: {k: v for k, v in families[name].items() if k != "values"} for name in sorted(families)}
    return told | {"families": kept}


def judged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With p for being so many: of twenty pairs that are alike one would be found to differ."""
    from lmlab.evaluation.bootstrap import holm

    adjusted = iter(holm([row["p"] for row in rows if row["p"] is not None]))
    found = []
    for row in rows:
        p = None if row["p"] is None else next(adjusted)
        sure = p is not None and p < 1 - LEVEL
        winner = row["winner"] if sure or p is None else None
        told = {key: value for key, value in row.items() if key != "p"}
        found.append(told | {"winner": winner, "p_holm": p, "sure": sure})
    return found


def welch(a: Sequence[float], b: Sequence[float], level: float = LEVEL) -> float | None:
    """Half the confidence interval of the difference of two means of unequal variance; None for single runs."""
    if min(len(a), len(b)) < 2:
        return None
    error, df = _error(a, b)
    return student(level, df) * error


def welch_p(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Of two equal means to differ by as much (Welch 1947), two-sided; None for single runs."""
    from lmlab.evaluation.bootstrap import t_cdf

    if min(len(a), len(b)) < 2:
        return None
    difference = abs(math.fsum(a) / len(a) - math.fsum(b) / len(b))
    error, df = _error(a, b)
    return 2 * t_cdf(-difference / error, df) if error else float(difference == 0)


def _error(a: Sequence[float], b: Sequence[float]) -> tuple[float, int]:
    """Standard error of the difference of two means, and its degrees of freedom."""

    def squared(values: Sequence[float]) -> float:
        mean = math.fsum(values) / len(values)
        return math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values)

    ea, eb = squared(a), squared(b)
    if ea + eb == 0:
        return 0.0, 1
    df = (ea + eb) ** 2 / (ea**2 / (len(a) - 1) + eb**2 / (len(b) - 1))
    # Of equal variances it is a whole number, but for rounding.
    return math.sqrt(ea + eb), max(1, math.floor(df + 1e-9))
