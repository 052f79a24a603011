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


def equal(frame: "pd.DataFrame", metric: str = "val/bpb", by: str = "model", higher: bool = False) -> list[dict]:
    """One entry a comparison: what is `held`, at which value (`at`), `families`, the `winner`, by how much.

    families: {name: {mean, low, high, n, and the parameters, tokens, seconds of what was chosen}}. by: the key whose
    values are the families. winner: None where the interval of the difference holds zero; `sure` says whether there
    was one. Only where two families or more have runs there; nothing for a single family. Raises ValueError where the
    metric was measured under several protocols.
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
    return [told for told in found if len(told["families"]) > 1]


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
    told = [summary(group, by_seed(group, metric)) for _, group in frame.groupby("treatment", sort=False)]
    return min(told, key=lambda one: sign * one["mean"])


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
                families[name] = min(options, key=lambda one: sign * one["mean"])
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
    """The best against the second: Welch's interval of the difference of two means."""
    ranked = sorted(families, key=lambda name: sign * families[name]["mean"])
    told: dict[str, Any] = {"held": held, "at": at, "winner": None, "by": None, "half": None, "sure": False}
    if len(ranked) > 1:
        a, b = (families[name]["values"] for name in ranked[:2])
        told["by"] = abs(families[ranked[1]]["mean"] - families[ranked[0]]["mean"])
        told["half"] = half = welch(a, b)
        told["sure"] = half is not None and told["by"] > half
        told["winner"] = ranked[0] if told["sure"] or half is None else None
    kept = {name: {k: v for k, v in families[name].items() if k != "values"} for name in sorted(families)}
    return told | {"families": kept}


def welch(a: Sequence[float], b: Sequence[float], level: float = 0.95) -> float | None:
    """Half the confidence interval of the difference of two means of unequal variance; None for single runs."""
    if min(len(a), len(b)) < 2:
        return None

    def error(values: Sequence[float]) -> float:
        mean = math.fsum(values) / len(values)
        return math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values)

    ea, eb = error(a), error(b)
    if ea + eb == 0:
        return 0.0
    df = (ea + eb) ** 2 / (ea**2 / (len(a) - 1) + eb**2 / (len(b) - 1))
    return student(level, max(1, math.floor(df))) * math.sqrt(ea + eb)
