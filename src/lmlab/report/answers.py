"""What a set of runs answers beside which is best: a scaling law, and families compared with something held equal."""

from typing import TYPE_CHECKING, Any

import numpy as np

from lmlab.runs import equal, surface
from lmlab.runs.surface import LEAST, Surface

if TYPE_CHECKING:
    import pandas as pd

# Places at which a law is drawn, for each size.
PLACES = 25
# Sizes that get a line of their own; of more, the smallest, the largest and some between.
LINES = 6


def scaling_laws(frame: "pd.DataFrame", metric: str) -> list[dict[str, Any]]:
    """Of a loss, which falls towards a floor; perplexity and speed have no such law."""
    if metric not in ("val/bpb", "val/nll") or len(frame) < LEAST or "parameters" not in frame:
        return []
    return [told(law) for law in surface.surfaces(frame, metric)]


def told(law: Surface) -> dict[str, Any]:
    """The law's numbers with their intervals, its points, and its lines with bands."""
    numbers = {"floor": law.floor, "alpha": law.alpha, "beta": law.beta, "optimal": law.optimal}
    return {
        "label": law.label,
        "n": len(law.losses),
        "rms": law.rms,
        "numbers": {name: [value, *law.interval(name)] for name, value in numbers.items()},
        "points": [list(map(float, one)) for one in zip(law.parameters, law.tokens, law.losses, strict=True)],
        "lines": [line(law, size) for size in sizes(law.parameters)],
    }


def sizes(parameters: np.ndarray) -> list[float]:
    """Different by more than rounding, at most so many."""
    ordered = np.sort(parameters)
    starts = [0, *(i + 1 for i in range(len(ordered) - 1) if ordered[i + 1] > ordered[i] * 1.05)]
    middles = [float(np.median(part)) for part in np.split(ordered, starts[1:])]
    if len(middles) <= LINES:
        return middles
    return [middles[round(i * (len(middles) - 1) / (LINES - 1))] for i in range(LINES)]


def line(law: Surface, parameters: float) -> dict[str, Any]:
    # On to four times the tokens: what more text would give.
    tokens = np.geomspace(law.tokens.min(), 4 * law.tokens.max(), PLACES)
    low, high = law.band(parameters, tokens)
    return {
        "parameters": parameters,
        "tokens": tokens.tolist(),
        "mean": law(parameters, tokens).tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
    }


def equalities(frame: "pd.DataFrame", metric: str, sign: int) -> list[dict[str, Any]]:
    if not metric.startswith("val/") or not {"parameters", "seconds", "model"} <= set(frame):
        return []
    return equal(frame, metric, higher=sign < 0)
