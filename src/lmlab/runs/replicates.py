"""Runs that differ in nothing but the seed, taken together: mean, confidence interval, n."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lmlab.runs import protocols
from lmlab.runs.ledger import TOLD

if TYPE_CHECKING:
    import pandas as pd

# Of a table of runs: what is no key of a config.
NUMBERS = ("parameters", "steps", "tokens", "seconds", "tokens_per_s", "megabytes", "best_step", "val_bytes")
FACTS = ("run", "state", "reason", "seed", "treatment", "val_text", *NUMBERS)

# States of runs that have not come to their end; what they have reached says nothing of what they would have.
OPEN = ("unfinished", "interrupted", *TOLD)


def is_key(column: str) -> bool:
    """Whether it is a config's: what is measured has a slash (perf/memory_gb), a key none before its first dot."""
    return column not in FACTS and "/" not in column.partition(".")[0]


def varied(frame: "pd.DataFrame") -> list[str]:
    """The keys in which the runs of a table differ; the seed is none."""
    keys = [c for c in frame if is_key(c) and c != "model"]
    # Columns of every table: keys only where they tell runs apart.
    keys = [c for c in keys if c != "protocol" or frame[c].nunique() > 1]
    if "model" in frame and frame["model"].nunique() > 1:
        keys.insert(0, "model")
    return keys


def ended(frame: "pd.DataFrame", metric: str) -> "pd.DataFrame":
    """The runs that count: they have the metric, and came to their end."""
    known = frame[frame[metric].notna()]
    return known[~known["state"].isin(OPEN)] if "state" in known else known


def counted(group: "pd.DataFrame") -> "pd.DataFrame":
    """Of a treatment's runs those that came to their end; all of them where none did."""
    done = group[~group["state"].isin(OPEN)] if "state" in group else group
    return group if done.empty else done


def by_seed(runs: "pd.DataFrame", metric: str) -> list[float]:
    """Of a treatment's runs one value a seed, the mean where it was trained twice: the same again is no replicate."""
    return runs.groupby("seed", sort=False, dropna=False)[metric].mean().tolist()


def replicates(frame: "pd.DataFrame", metric: str = "val/bpb", level: float = 0.95) -> "pd.DataFrame":
    """One row a treatment, from `table`: n, mean, low and high of the metric, then the keys that vary; lowest first.

    n: seeds. low, high: Student's confidence interval of the mean; none for a single one. Runs without the metric, and
    those that were interrupted or pruned, do not count.
    """
    import pandas as pd

    if metric not in frame:
        raise ValueError(f"metric={metric} is no column of the table; it has {', '.join(frame.columns)}")
    keys, rows = varied(frame), []
    for name, group in ended(frame, metric).groupby("treatment", sort=False):
        values = by_seed(group, metric)
        mean, low, high = interval(values, level)
        told = {"treatment": name, "n": len(values), "mean": mean, "low": low, "high": high}
        rows.append(told | {key: group[key].iloc[0] for key in keys})
    found = pd.DataFrame(rows, columns=["treatment", "n", "mean", "low", "high", *keys])
    return found.sort_values("mean", kind="stable", ignore_index=True)


def mean_curves(frame: "pd.DataFrame", curves: "pd.DataFrame", metric: str = "val/bpb") -> "pd.DataFrame":
    """Curves of replicates taken together: one row a treatment and step at which the metric was logged.

    frame, curves: `table` and `curves` of the same root. Columns: treatment, step, tokens, seconds (the mean), n, mean,
    low and high of the metric, then the keys that vary. Steps that not every replicate has reached are left out; one
    that did not come to its end is no replicate of those that did.
    """
    import pandas as pd

    if metric not in curves:
        raise ValueError(f"metric={metric} is no column of the curves; they have {', '.join(curves.columns)}")
    keys = varied(frame)
    whole = [run for _, group in frame.groupby("treatment", sort=False) for run in counted(group)["run"]]
    frame = frame[frame["run"].isin(whole)]
    points = curves[curves[metric].notna()].merge(frame[["run", "treatment", "seed", *keys]], on="run")
    members = points.groupby("treatment")["run"].nunique()
    rows = []
    for (name, step), group in points.groupby(["treatment", "step"], sort=False):
        if len(group) == members[name]:
            values = by_seed(group, metric)
            mean, low, high = interval(values)
            told = {"treatment": name, "step": step, "tokens": group["tokens"].mean(), "n": len(values)}
            told |= {"seconds": group["seconds"].mean(), "mean": mean, "low": low, "high": high}
            rows.append(told | {key: group[key].iloc[0] for key in keys})
    columns = ["treatment", "step", "tokens", "seconds", "n", "mean", "low", "high", *keys]
    return pd.DataFrame(rows, columns=columns).sort_values(["treatment", "step"], kind="stable", ignore_index=True)


def within(frame: "pd.DataFrame", curves: "pd.DataFrame", metric: str = "val/bpb", **budget: float) -> "pd.DataFrame":
    """The table as if every run had ended at a budget: `within(frame, curves, seconds=20)`, or tokens, or steps.

    metric becomes that of the last validation within the budget, none where there was none yet. It is what a run of
    that budget would have reached only where the schedule does not depend on the budget (schedule=constant). A run
    that was interrupted after the budget counts as one that came to its end.
    """
    if len(budget) != 1 or not budget.keys() <= {"steps", "tokens", "seconds"}:
        raise ValueError(f"budget={budget}: give one of steps, tokens, seconds")
    ((unit, most),) = budget.items()
    points = curves.rename(columns={"step": "steps"}).sort_values("steps", kind="stable")
    last = points[points[metric].notna() & (points[unit] <= most)].groupby("run").last()
    told = {metric: frame["run"].map(last[metric]), unit: frame["run"].map(last[unit])}
    if "state" in frame:
        there = frame["run"].map(points.groupby("run")[unit].max()) >= most
        told["state"] = frame["state"].mask(there & frame["state"].isin(OPEN), "budget")
    return frame.assign(**told)


def against_best(frame: "pd.DataFrame", metric: str = "val/bpb", level: float = 0.95) -> "pd.DataFrame":
    """What each treatment is worse by than the best (the lowest mean), seed by seed: n, mean, low, high, varied keys.

    Pairs of one seed begin with the same draws of data, so that part of their chance cancels in the difference. An
    interval that holds 0 is no proof of a difference; none for fewer than two common seeds. The best comes first, 0.
    Raises ValueError where the metric was measured under several protocols.
    """
    import pandas as pd

    order = replicates(frame, metric, level)
    known = ended(frame, metric)
    protocols.check(known, metric)
    seeds = {name: group.groupby("seed")[metric].mean() for name, group in known.groupby("treatment")}
    rows = []
    for told in order.to_dict("records"):
        pairs = (seeds[told["treatment"]] - seeds[order["treatment"][0]]).dropna().tolist()
        mean, low, high = interval(pairs, level) if pairs else (math.nan, None, None)
        rows.append(told | {"n": len(pairs), "mean": mean, "low": low, "high": high})
    return pd.DataFrame(rows, columns=order.columns)


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float | None, float | None]:
    """Mean, and where the true mean lies with this confidence if the values are normally distributed about it."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return mean, None, None
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = student(level, n - 1) * deviation / math.sqrt(n)
    return mean, mean - half, mean + half


def student(level: float, df: int) -> float:
    """t with P(|T| < t) = level, of Student's distribution."""
    from lmlab.evaluation.bootstrap import t_quantile

    return t_quantile(0.5 + level / 2, df)
