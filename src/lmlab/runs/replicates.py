"""Runs that differ in nothing but the seed, taken together: mean, confidence interval, n."""

import math
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

# Of a table of runs: what is no key of a config.
NUMBERS = ("parameters", "steps", "tokens", "seconds", "tokens_per_s", "megabytes", "best_step")
FACTS = ("run", "state", "reason", "seed", "treatment", *NUMBERS)


def varied(frame: "pd.DataFrame") -> list[str]:
    """The keys in which the runs of a table differ; the seed is none."""
    keys = [c for c in frame if c not in FACTS and not c.startswith(("val/", "test/")) and c != "model"]
    if "model" in frame and frame["model"].nunique() > 1:
        keys.insert(0, "model")
    return keys


def replicates(frame: "pd.DataFrame", metric: str = "val/bpb", level: float = 0.95) -> "pd.DataFrame":
    """One row a treatment, from `table`: n, mean, low and high of the metric, then the keys that vary; lowest first.

    low, high: Student's confidence interval of the mean; none for a single run. Runs without the metric do not count.
    """
    import pandas as pd

    if metric not in frame:
        raise ValueError(f"metric={metric} is no column of the table; it has {', '.join(frame.columns)}")
    rows = []
    for name, group in frame[frame[metric].notna()].groupby("treatment", sort=False):
        mean, low, high = interval(group[metric].tolist(), level)
        told = {"treatment": name, "n": len(group), "mean": mean, "low": low, "high": high}
        rows.append(told | {key: group[key].iloc[0] for key in varied(frame)})
    found = pd.DataFrame(rows, columns=["treatment", "n", "mean", "low", "high", *varied(frame)])
    return found.sort_values("mean", kind="stable", ignore_index=True)


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float | None, float | None]:
    """Mean, and where the true mean lies with this confidence if the values are normally distributed about it."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return mean, None, None
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = student(level, n - 1) * deviation / math.sqrt(n)
    return mean, mean - half, mean + half


@cache
def student(level: float, df: int) -> float:
    """t with P(|T| < t) = level, for a whole number of degrees of freedom; by bisection."""
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, df) < level else (low, middle)
    return (low + high) / 2


def _within(t: float, df: int) -> float:
    """P(|T| < t): Abramowitz and Stegun 26.7.3 (odd df) and 26.7.4 (even)."""
    angle = math.atan(t / math.sqrt(df))
    sine, square = math.sin(angle), math.cos(angle) ** 2
    odd = df % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for k in range(1 + odd, df, 2):
        total += term
        term *= square * k / (k + 1)
    if odd:
        return 2 / math.pi * (angle + sine * total)
    return sine * total
