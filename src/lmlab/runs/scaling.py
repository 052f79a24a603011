"""A scaling law fitted to runs of several sizes: loss = E + A / N^a, with intervals."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lmlab.runs import protocols
from lmlab.runs.replicates import ended

if TYPE_CHECKING:
    import pandas as pd

# Exponents that are tried; published ones for language models lie from 0.05 to 0.8.
EXPONENTS = np.linspace(0.01, 2.0, 400)
DRAWS = 400


@dataclass(frozen=True)
class Law:
    """loss = floor + scale / size^exponent (Hoffmann et al. 2022, one of the two terms of equation 2).

    draws: the same three of each bootstrap draw, (draws, 3). level: of the intervals.
    """

    floor: float
    scale: float
    exponent: float
    draws: NDArray[np.float64]
    level: float

    def predict(self, size: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.floor + self.scale * size**-self.exponent

    def band(self, size: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Within which the law's curve lies."""
        floor, scale, exponent = self.draws.T[..., None]
        return self._between(floor + scale * size**-exponent)

    def interval(self, name: str) -> tuple[float, float]:
        """Of floor, scale or exponent."""
        low, high = self._between(self.draws[:, ("floor", "scale", "exponent").index(name), None])
        return float(low[0]), float(high[0])

    def _between(self, values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        tail = (1 - self.level) / 2
        low, high = np.quantile(values, (tail, 1 - tail), axis=0)
        return low, high

    def __str__(self) -> str:
        low, high = self.interval("exponent")
        return f"{self.floor:.3g} + {self.scale:.3g} / N^{self.exponent:.3g} (exponent {low:.3g} to {high:.3g})"


def scaling_law(
    frame: "pd.DataFrame", size: str = "parameters", metric: str = "val/bpb", level: float = 0.95, seed: int = 0
) -> Law:
    """Fitted to the best run of each size, as a table has them; replicates of it are all taken, each seed once.

    Intervals are by the parametric bootstrap. Raises ValueError for fewer than four sizes (the law has three
    numbers), and where the metric was measured under several protocols.
    """
    x, y = frontier(frame, size, metric)
    if len(np.unique(x)) < 4:
        raise ValueError(f"a scaling law needs runs of four sizes or more; {size} has {len(np.unique(x))} here")
    found, random = fit(x, y), np.random.default_rng(seed)
    floor, scale, exponent = found
    fitted = floor + scale * x**-exponent
    # How far runs scatter is known from few: drawn, too, so that intervals are Student's rather than the normal's. To
    # draw among the residuals themselves, four sizes leave too little: such intervals held the truth in 37 of 60 cases.
    scatter = np.sqrt(np.sum((y - fitted) ** 2) / random.chisquare(max(1, len(x) - 3), (DRAWS, 1)))
    draws = [fit(x, drawn) for drawn in fitted + scatter * random.normal(size=(DRAWS, len(x)))]
    return Law(float(floor), float(scale), float(exponent), np.array(draws), level)


def frontier(frame: "pd.DataFrame", size: str, metric: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sizes and values: of each size, one value a seed of the treatment whose mean is lowest.

    Where a seed was trained twice it is the mean: the same again scatters about itself, not about the law.
    """
    for name in (size, metric):
        if name not in frame:
            raise ValueError(f"{name} is no column of the table; it has {', '.join(frame.columns)}")
    known = ended(frame, metric)
    known = known[known[size].notna()]
    protocols.check(known, metric)
    known = known.groupby([size, "treatment", "seed"], as_index=False, dropna=False)[metric].mean()
    taken = []
    for _, same in known.groupby(size):
        means = same.groupby("treatment")[metric].mean()
        taken.append(same[same["treatment"] == means.idxmin()])
    if not taken:
        return np.array([]), np.array([])
    return tuple(np.concatenate([part[c].to_numpy(dtype=np.float64) for part in taken]) for c in (size, metric))


def fit(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float, float]:
    """Least squares (floor, scale, exponent), floor and scale not below 0.

    For a given exponent the rest is linear: exponents are tried in a row, and again between the neighbours of the best.
    """
    best, step = _try(x, y, EXPONENTS), float(EXPONENTS[1] - EXPONENTS[0])
    for _ in range(3):
        best = _try(x, y, np.linspace(max(best[2] - step, 1e-4), best[2] + step, 41))
        step /= 20
    return best


def _try(x: NDArray[np.float64], y: NDArray[np.float64], exponents: NDArray[np.float64]) -> tuple[float, float, float]:
    # In units of the geometric mean, so that no power is huge.
    centre = np.exp(np.log(x).mean())
    u = (x / centre) ** -exponents[:, None]
    mean_u, mean_y = u.mean(1), y.mean()
    scale = ((u - mean_u[:, None]) * (y - mean_y)).sum(1) / ((u - mean_u[:, None]) ** 2).sum(1)
    floor = mean_y - scale * mean_u
    # Where the floor would be negative it is 0, and the line goes through the origin.
    through = (u * y).sum(1) / (u**2).sum(1)
    floor, scale = np.where(floor < 0, 0.0, floor), np.where(floor < 0, through, scale)
    floor, scale = np.where(scale < 0, mean_y, floor), np.maximum(scale, 0.0)
    errors = ((y - floor[:, None] - scale[:, None] * u) ** 2).sum(1)
    k = int(errors.argmin())
    return float(floor[k]), float(scale[k] * centre ** exponents[k]), float(exponents[k])
