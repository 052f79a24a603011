"""What a report says, as plain data: the page only draws it."""

import json
import math
import os
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmlab import runs
from lmlab.config import suggest
from lmlab.report.answers import equalities, scaling_laws
from lmlab.report.command import repeat
from lmlab.report.importance import importance
from lmlab.report.parameters import Parameter, parameters
from lmlab.run_directory import RunDirectory
from lmlab.runs import protocols
from lmlab.runs.ledger import directions, lacking, objectives
from lmlab.runs.measures import front, higher
from lmlab.runs.replicates import OPEN, by_seed, counted, interval

if TYPE_CHECKING:
    import pandas as pd

# Points of all curves together: what a browser draws without a pause, and a file stays small with.
POINTS = 24_000
SIZES = ("parameters", "seconds", "tokens", "tokens_per_s")


def gather(
    root: str | os.PathLike, metric: str | None = None, read: "tuple[pd.DataFrame, pd.DataFrame] | None" = None
) -> dict[str, Any]:
    """Everything on the page; each protocol has a part, and nothing in one is compared with anything in another.

    Of a sweep with several objectives nobody is the best, unless it is asked for by a metric: there is a front.
    metric: a column of the table; None: a sweep's objective, else val/bpb, and where no run has come to its end, the
    best that there was of it. read: `runs.table(root)` and `runs.curves(root)`, where they have been asked for already.
    Raises FileNotFoundError where there are no runs, ValueError for a metric that none has.
    """
    frame, points = read or (runs.table(root), runs.curves(root))
    if frame.empty:
        raise FileNotFoundError(f"no runs under {root}; train one: lmlab train")
    objective = objectives(Path(root))
    stated = directions(root)
    # Whoever names a metric asks for the best by it.
    several = {name: higher(name, stated) for name in objective} if metric is None and len(objective) > 1 else {}
    metric = measure(frame, metric, [*objective, "val/bpb", "val/bpb_best"])
    if metric not in frame:
        # Nothing was ever validated: what is left to tell is why.
        frame = frame.assign(**{metric: math.nan})
    sign = -1 if higher(metric, stated) else 1
    unfinished = lacking(root)
    parts = protocols.apart(frame)
    told = {
        "title": Path(root).resolve().name,
        "made": datetime.now().astimezone().isoformat(" ", "minutes"),
        "metric": {"name": metric, "higher": sign < 0},
        "runs": single(frame, metric),
        "curves": thinned(points, frame, metric, stated),
        "objectives": [{"name": name, "higher": more} for name, more in several.items()],
        "apart": protocols.incomparable(parts) if len(parts) > 1 else "",
        "parts": [part(Path(root), name, those, metric, sign, several, unfinished) for name, those in parts.items()],
    }
    return clean(told)


def part(
    root: Path,
    protocol: str,
    frame: "pd.DataFrame",
    metric: str,
    sign: int,
    several: dict[str, bool],
    unfinished: dict[str, dict[int, str]],
) -> dict[str, Any]:
    """What runs of one protocol say. members: their places in the whole table. several: see `measured`."""
    varied = parameters(frame)
    groups = treatments(frame, metric, sign, varied, unfinished)
    if several:
        measured(frame, groups, several)
    told = {
        "protocol": protocol,
        "members": frame.index.tolist(),
        "params": [p.told() for p in varied],
        "groups": groups,
        "importance": importance(varied, groups, sign),
        "laws": scaling_laws(frame, metric),
        "equal": equalities(frame, metric, sign),
    }
    return told | winner(root, frame, groups[0], metric, sign) if groups and not several else told


def measure(frame: "pd.DataFrame", metric: str | None, defaults: list[str]) -> str:
    """The column by which runs are compared."""
    numbers = [c for c in frame if frame[c].dtype.kind in "if" and frame[c].notna().any() and c != "seed"]
    if metric is None:
        return next((name for name in defaults if name in numbers), defaults[0])
    if metric not in numbers:
        near = suggest(metric, numbers)
        raise ValueError(f"no run has metric={metric}{near}; lmlab runs format=csv has all of them")
    return metric


def treatments(
    frame: "pd.DataFrame",
    metric: str,
    sign: int,
    varied: list[Parameter],
    unfinished: dict[str, dict[int, str]],
) -> list[dict[str, Any]]:
    """Runs that differ in the seed alone taken together, best first: n, mean, interval, sizes, varied values.

    lacking: how it stands with each seed, of `seeds`, whose run has not come to its end or that their sweep has no
    result of; such are last, for there they cannot win. What they reached is shown where nothing else is known.
    """
    found = []
    for _, group in frame[frame[metric].notna()].groupby("treatment", sort=False):
        known = counted(group)
        values = by_seed(known, metric)
        mean, low, high = interval(values)
        told = {"n": len(values), "mean": mean, "low": low, "high": high, "runs": group.index.tolist()}
        told |= {name: float(known[name].mean()) for name in SIZES if name in group}
        if metric != "val/ppl" and "val/ppl" in group:
            told["val/ppl"] = float(known["val/ppl"].mean())
        missing = {seed: how for run in group["run"] for seed, how in unfinished.get(run, {}).items()}
        stopped = group["state"].isin(OPEN)
        done = set(group["seed"][~stopped])
        missing |= dict(zip(group["seed"][stopped], group["state"][stopped], strict=True))
        told["lacking"] = [how for seed, how in missing.items() if seed not in done]
        told["seeds"] = len({*group["seed"], *missing})
        place = frame.index.get_loc(group.index[0])
        told["values"] = [p.values[place] for p in varied]
        found.append(told)
    return sorted(found, key=lambda told: (bool(told["lacking"]), sign * told["mean"], told["runs"][0]))


def measured(frame: "pd.DataFrame", groups: list[dict[str, Any]], several: dict[str, bool]) -> None:
    """Give each group its means of `objectives`, and whether it is on their `front`, as the sweep has it.

    several: {objective: whether more is better}.
    """
    for group in groups:
        known = counted(frame.loc[group["runs"]])
        seeds = [by_seed(known, name) if name in known else [] for name in several]
        group["objectives"] = [math.fsum(values) / len(values) if values else math.nan for values in seeds]
    signed = {
        n: [-v if more else v for v, more in zip(group["objectives"], several.values(), strict=True)]
        for n, group in enumerate(groups)
        if not group["lacking"] and not any(map(math.isnan, group["objectives"]))
    }
    best = front(signed)
    for n, group in enumerate(groups):
        group["front"] = n in best


def single(frame: "pd.DataFrame", metric: str) -> list[dict[str, Any]]:
    """Every run, in the table's order."""
    columns = [c for c in ("run", "state", "reason", "seed", "steps", metric, *SIZES) if c in frame]
    return [
        {("score" if c == metric else c): v for c, v in zip(columns, row, strict=True) if v == v and v is not None}
        for row in frame[columns].itertuples(index=False, name=None)
    ]


def thinned(curves: "pd.DataFrame", frame: "pd.DataFrame", metric: str, stated: dict[str, str]) -> dict[str, Any]:
    """Validations of each run: tokens, seconds, value; of long curves some, the first and the last among them."""
    name = metric if metric in curves and metric.startswith("val/") else "val/bpb"
    told: dict[str, Any] = {"name": name, "higher": higher(name, stated), "tokens": [], "seconds": [], "values": []}
    if name not in curves:
        return told
    points = curves[curves[name].notna()]
    by_run = dict(iter(points.groupby("run", sort=False)))
    most = min(200, max(12, POINTS // max(1, len(frame))))
    for run in frame["run"]:
        part = by_run.get(run)
        part = points.iloc[:0] if part is None else part
        if len(part) > most:
            part = part.iloc[[round(i * (len(part) - 1) / (most - 1)) for i in range(most)]]
        told["tokens"].append([int(v) for v in part["tokens"]])
        told["seconds"].append([round(float(v), 2) for v in part["seconds"]] if "seconds" in part else [])
        told["values"].append([significant(float(v)) for v in part[name]])
    return told


def winner(root: Path, frame: "pd.DataFrame", group: dict[str, Any], metric: str, sign: int) -> dict[str, Any]:
    """The best run of the best treatment: its samples, its floors, and the command that repeats it."""
    at = min(counted(frame.loc[group["runs"]]).index, key=lambda i: sign * frame[metric][i])
    directory = RunDirectory(root / frame["run"][at])
    told: dict[str, Any] = {"best": int(at)}
    try:
        results = directory.results() or {}
        told["samples"] = [str(text) for text in results.get("samples") or []]
        told["floors"] = {
            name: splits["val"][metric.partition("/")[2]]
            for name, splits in (results.get("floors") or {}).items()
            if metric.startswith("val/") and metric.partition("/")[2] in splits.get("val", {})
        }
    except (ValueError, OSError, AttributeError, TypeError):
        told |= {"samples": [], "floors": {}}
    return told | {"command": repeat(directory)}


def significant(value: float) -> float:
    """Six digits."""
    return float(f"{value:.6g}")


def clean(tree: Any) -> Any:
    """JSON's own types: no number that is none of its, no other objects."""
    if isinstance(tree, dict):
        return {str(key): clean(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [clean(value) for value in tree]
    if isinstance(tree, bool) or tree is None or isinstance(tree, str):
        return tree
    if isinstance(tree, int):
        return tree
    try:
        number = float(tree)
    except (TypeError, ValueError):
        return json.dumps(tree, default=str, ensure_ascii=False)
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() and abs(number) < 2**53 else number
