"""Figures: tables in, Axes out. Needs matplotlib, which lmlab[notebooks] brings.

Each function draws on `ax`, or on new axes where it is None, and returns them.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import font_manager
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

if TYPE_CHECKING:
    import pandas as pd

# Distinguishable with colour-blindness too (Okabe and Ito 2008): ours, the other, what both stand against.
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#b8b8b8"
SERIES = (BLUE, ORANGE, "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
COSTS = {
    "tokens": "training tokens seen",
    "step": "training steps",
    "seconds": "seconds of training",
    "compute": "training computation (6 N D operations)",
}
UNITS = {"bpb": "bits per byte", "nll": "nats per token", "loss": "nats per token", "ppl": "perplexity per token"}
FLOORS = {"unigram": "unigram", "kneser_ney_5": "Kneser-Ney 5-gram"}
# matplotlib's own font has no Chinese: the first of these that is installed has.
CHINESE_FONTS = (
    "Noto Sans CJK SC",
    "Source Han Sans SC",
    "PingFang SC",
    "Hiragino Sans GB",
    "Microsoft YaHei",
    "SimHei",
    "WenQuanYi Micro Hei",
)


def learning_curves(curves: "pd.DataFrame", ax: Axes | None = None) -> Axes:
    """Held-out and training loss against tokens seen, from `run.curves`; both without dropout.

    Raises ValueError where there are no validations to draw.
    """
    if curves.empty:
        raise ValueError("curves has no rows: the run was not validated yet, or its model is fitted by counting")
    ax = _axes(ax)
    ax.plot(curves["tokens"], curves["val/loss"], marker="o", color=BLUE, label="held-out text (val)")
    if "train/eval_loss" in curves:
        ax.plot(
            curves["tokens"], curves["train/eval_loss"], marker=".", ls="--", color=ORANGE, label="a slice of train"
        )
    best = curves.loc[curves["val/loss"].idxmin()]
    at = (best["tokens"], best["val/loss"])
    ax.annotate(f"{best['val/loss']:.3f}", at, xytext=(0, 8), textcoords="offset points", ha="center")
    ax.xaxis.set_major_formatter(lambda tokens, _: _count(tokens))
    ax.set(title="Learning curves", xlabel="training tokens seen", ylabel="loss (nats per token)")
    ax.legend(frameon=False)
    return ax


def beside_floors(results: Mapping[str, Any], split: str = "test", ax: Axes | None = None) -> Axes:
    """Bits per byte of a run and of the floors on the same split, from `run.results`.

    Raises ValueError for a split that was not measured.
    """
    if split not in results["splits"]:
        raise ValueError(f"split={split} was not measured; there are {', '.join(results['splits'])}")
    measured = {FLOORS.get(name, name): floor[split]["bpb"] for name, floor in results.get("floors", {}).items()}
    measured["this model"] = results["splits"][split]["bpb"]
    ax = _axes(ax, height=0.9 + 0.5 * len(measured))
    bars = ax.barh(list(measured), list(measured.values()), color=[*[GREY] * (len(measured) - 1), BLUE])
    ax.bar_label(bars, fmt="%.3f", padding=3)
    ax.margins(x=0.12)
    ax.set(title=f"How well the {split} split is predicted", xlabel="bits per byte (lower is better)")
    return ax


def surprisal(tokens: "pd.DataFrame", ax: Axes | None = None) -> Axes:
    """One bar a token, in bits, from `pd.DataFrame(run.score(text).tokens)`; for a sentence, not a chapter."""
    bits = -tokens["log_prob"] / math.log(2)
    at = range(len(tokens))
    ax = _axes(ax, width=max(6.0, 0.45 * len(tokens)))
    ax.bar(at, bits, color=[BLUE if rank == 1 else ORANGE for rank in tokens["rank"]])
    ax.set_xticks(at, [*map(_label, tokens["token"])], rotation=60, ha="right", fontfamily=fonts())
    ax.axhline(bits.mean(), color=GREY, lw=1, zorder=0, label=f"mean {bits.mean():.2f} bits")
    ax.legend(frameon=False)
    ax.set(title="Surprisal, token by token (blue: the model's first guess)", ylabel="bits, -log2 P(token | before)")
    return ax


def scaling(
    table: "pd.DataFrame", law: Any, size: str = "parameters", metric: str = "val/bpb", ax: Axes | None = None
) -> Axes:
    """Every run of a table by its size, and a law fitted to the best of each, with its interval.

    law: `lmlab.runs.scaling_law(table)`. It is drawn to three times the largest size, dashed where nothing was trained.
    """
    ax = _axes(ax)
    known = table[table[metric].notna() & table[size].notna()]
    smallest, largest = known[size].min(), known[size].max()
    ax.scatter(known[size], known[metric], s=18, color=GREY, zorder=3, label="runs")
    sizes = np.geomspace(smallest, 3 * largest, 200)
    inside = sizes <= largest
    ax.fill_between(sizes, *law.band(sizes), color=BLUE, alpha=0.15, lw=0, label=f"{law.level:.0%} interval")
    ax.plot(
        sizes[inside],
        law.predict(sizes)[inside],
        color=BLUE,
        label=f"{law.floor:.3g} + {law.scale:.3g} / N^{law.exponent:.3g}",
    )
    ax.plot(sizes[~inside], law.predict(sizes)[~inside], color=BLUE, ls="--")
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(lambda n, _: _count(n))
    ax.xaxis.set_minor_formatter(lambda n, _: "")
    ax.set(title="Scaling law", xlabel=f"{size}, N", ylabel=_named(metric))
    ax.legend(frameon=False)
    return ax


def mean_curves(
    table: "pd.DataFrame", by: str | Sequence[str], x: str = "tokens", metric: str = "val/bpb", ax: Axes | None = None
) -> Axes:
    """A line for each treatment, of `lmlab.runs.mean_curves`, named by a key or several; the band is its interval."""
    many = table["treatment"].nunique() > 4
    ax = _axes(ax, width=8.0 if many else 6.0)
    for color, (_, points) in zip(_colors(), table.groupby("treatment", sort=False), strict=False):
        n = points["n"].iloc[0]
        ax.plot(
            points[x],
            points["mean"],
            marker=".",
            color=color,
            label=_treatment(points.iloc[0].to_dict(), by) + (f", n={n}" if n > 1 else ""),
        )
        if n > 1:
            low, high = (points[end].astype(float) for end in ("low", "high"))
            ax.fill_between(points[x].astype(float), low, high, color=color, alpha=0.15, lw=0)
    if x == "compute":
        ax.set_xscale("log")
    elif x != "seconds":
        ax.xaxis.set_major_formatter(lambda count, _: _count(count))
    interval = ", mean and 95% interval" if table["n"].max() > 1 else ""
    ax.set(title=f"Learning curves{interval}", xlabel=COSTS[x], ylabel=_named(metric))
    # Of many lines, beside them.
    ax.legend(frameon=False, **({"loc": "upper left", "bbox_to_anchor": (1, 1)} if many else {}))
    return ax


def intervals(
    table: "pd.DataFrame", by: Sequence[str], metric: str = "val/bpb", title: str = "", ax: Axes | None = None
) -> Axes:
    """Mean and interval of each treatment, best on top, of `lmlab.runs.replicates` or `against_best`.

    by: the keys that name a treatment. The hollow ones have no interval: a single run, or the one compared with.
    """
    ax = _axes(ax, height=1.1 + 0.32 * len(table))
    for place, told in enumerate(table.iloc[::-1].to_dict("records")):
        known = told["low"] is not None and told["low"] == told["low"] and told["high"] > told["low"]
        if known:
            ax.plot([told["low"], told["high"]], [place, place], color=BLUE, lw=2)
        ax.plot(told["mean"], place, "o", color=BLUE, mfc=BLUE if known else "white")
    names = [_treatment(told, by) for told in table.to_dict("records")]
    ax.set_yticks(range(len(table)), names[::-1])
    ax.grid(axis="x", color=GREY, alpha=0.4)
    counts = sorted({*table["n"]})
    told = f"n={counts[0]}" if len(counts) == 1 else f"n={counts[0]} to {counts[-1]}"
    ax.set(title=title or f"Mean and 95% interval ({told})", xlabel=f"{_named(metric)}, lower is better")
    return ax


def against(
    table: "pd.DataFrame", x: str, by: str | None = None, metric: str = "val/bpb", ax: Axes | None = None
) -> Axes:
    """A metric against a numerical key, logarithmic, with intervals; a line for each value of a second key.

    table: of `lmlab.runs.replicates`.
    """
    ax = _axes(ax)
    groups = [("", table)] if by is None else list(table.groupby(by))
    for color, (value, points) in zip(_colors(), groups, strict=False):
        points = points.sort_values(x)
        ends = [(points["mean"] - points["low"].astype(float)), (points["high"].astype(float) - points["mean"])]
        label = None if by is None else f"{by}={value}"
        ax.errorbar(points[x], points["mean"], yerr=ends, marker="o", capsize=3, color=color, label=label)
    ax.set_xscale("log")
    places = sorted({*table[x]})
    ax.set_xticks(places, [_value(place) for place in places])
    ax.minorticks_off()
    ax.set(title=f"Effect of {x} (mean, 95% interval)", xlabel=f"{x} (log scale)", ylabel=_named(metric))
    if by is not None:
        ax.legend(frameon=False)
    return ax


def by_year(table: "pd.DataFrame", means: "pd.DataFrame", metric: str = "ppl", ax: Axes | None = None) -> Axes:
    """A dot a document, of `lmlab.runs.by_document`, and the means of `by_span` with their intervals."""
    ax = _axes(ax, width=8.0)
    for color, (split, documents) in zip((GREY, *SERIES[1:]), table.groupby("split", sort=False), strict=False):
        ax.scatter(documents["year"], documents[metric], s=12, color=color, label=f"{split}, one document")
    ends = (means["high"].astype(float) - means["mean"]).fillna(0.0)
    span = f"mean of {means['last'][0] - means['first'][0] + 1} years, 95% interval"
    middle = (means["first"] + means["last"]) / 2
    ax.errorbar(middle, means["mean"], yerr=ends, color=BLUE, marker="o", ms=4, capsize=2, label=span)
    named = _named(metric)
    ax.set(title=f"{named[0].upper()}{named[1:]}, by year", xlabel="year", ylabel=named)
    ax.legend(frameon=False)
    return ax


def fonts() -> list[str]:
    """matplotlib's families, and after them an installed one with Chinese characters, where there is one."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return [*plt.rcParams["font.family"], *[name for name in CHINESE_FONTS if name in installed][:1]]


def _axes(ax: Axes | None, width: float = 6.0, height: float = 3.6) -> Axes:
    if ax is not None:
        return ax
    _, ax = plt.subplots(figsize=(width, height), layout="constrained")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _colors() -> Iterator[str]:
    return cycle(SERIES)


def _named(metric: str) -> str:
    """A metric with its unit."""
    split, _, name = metric.rpartition("/")
    unit = UNITS.get(name, name)
    return f"{metric} ({unit})" if split else unit


def _treatment(told: Mapping[str, Any], by: str | Sequence[str]) -> str:
    keys = [by] if isinstance(by, str) else by
    return ", ".join(f"{key.rpartition('.')[2]}={_value(told[key])}" for key in keys)


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _label(token: str) -> str:
    """A token on one line, its spaces to be seen; a dollar sign would start matplotlib's mathematics."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in token)
    return shown.replace(" ", "␣").replace("$", r"\$")


def _count(n: float | int) -> str:
    """700k, 1.2M."""
    for scale, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if n >= scale:
            return f"{n / scale:.3g}{letter}"
    return f"{n:.0f}"
