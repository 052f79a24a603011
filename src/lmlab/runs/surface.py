"""How the loss falls with parameters and tokens, fitted to many runs: L(N, D) = E + A / N^alpha + B / D^beta.

Equation 2 of Hoffmann et al. 2022 (arXiv:2203.15556), by least squares. The intervals come from the
parametric bootstrap: what would have been fitted, had the same runs come out as differently as they scatter about it.
"""

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from lmlab.config import BUDGETS
from lmlab.runs import protocols
from lmlab.runs.replicates import ended, varied

if TYPE_CHECKING:
    import pandas as pd

# Keys that say how large a run is, and nothing else: the law is fitted over them, for each setting of all others.
SIZES = ("n_params", *(f"model.{key}" for key in ("d_model", "d_ff", "d_embed", "d_hidden", "n_layers", "n_heads")))
# Five numbers are fitted: with fewer runs than this nothing is left to judge them by.
LEAST = 8
# Exponents that are tried; language models' lie between 0.05 and 0.6. An interval that reaches an end is open there.
EXPONENTS = (0.02, 2.0)
DRAWS = 200


@dataclass(frozen=True)
class Surface:
    """The fit, and what it was fitted to.

    label: what tells it from the other laws of the same runs. parameters, tokens, losses (n,): the runs.
    fitted: (E, A, alpha, B, beta) with N and D in units of `units`; draws (DRAWS, 5): of the bootstrap, likewise.
    """

    label: str
    metric: str
    parameters: np.ndarray
    tokens: np.ndarray
    losses: np.ndarray
    fitted: np.ndarray
    draws: np.ndarray
    units: tuple[float, float]

    @property
    def floor(self) -> float:
        """E: what no size and no text would take away."""
        return float(self.fitted[0])

    @property
    def alpha(self) -> float:
        return float(self.fitted[2])

    @property
    def beta(self) -> float:
        return float(self.fitted[4])

    @property
    def optimal(self) -> float:
        """a of N = C^a: how the best size grows with the computation C = 6 N D (equation 4: beta / (alpha + beta))."""
        return self.beta / (self.alpha + self.beta)

    @property
    def rms(self) -> float:
        """Of the residuals, with the five degrees of freedom that the fit has used."""
        off = self.losses - self(self.parameters, self.tokens)
        return float(np.sqrt(np.sum(off**2) / max(1, len(off) - 5)))

    def __call__(self, parameters: np.ndarray | float, tokens: np.ndarray | float) -> np.ndarray:
        return _law(self.fitted, np.asarray(parameters) / self.units[0], np.asarray(tokens) / self.units[1])

    def band(self, parameters: float, tokens: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Between what the law lies at these sizes, (n,) each."""
        drawn = _law(self.draws[:, :, None].swapaxes(0, 1), parameters / self.units[0], tokens / self.units[1])
        return tuple(np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0))  # type: ignore[return-value]

    def interval(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """Of `floor`, `alpha`, `beta` or `optimal`."""
        floor, _, alpha, _, beta = self.draws.T
        values = {"floor": floor, "alpha": alpha, "beta": beta, "optimal": beta / (alpha + beta)}[name]
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)


def surfaces(frame: "pd.DataFrame", metric: str = "val/bpb") -> list[Surface]:
    """A law for each setting of what is no size, from `table`; none where fewer than three sizes and budgets are known.

    Runs under several protocols, or of several texts, have laws of their own; a seed that was trained twice counts
    once, with its mean. Raises ValueError for a metric that the table has not.
    """
    if metric not in frame:
        raise ValueError(f"metric={metric} is no column of the table; it has {', '.join(frame.columns)}")
    known = ended(frame, metric)
    known = known[known["parameters"].gt(0) & known["tokens"].gt(0)]
    keys = [key for key in varied(frame) if key not in (*BUDGETS, *SIZES, "protocol")]
    others = [key for key in keys if known[key].astype(str).nunique() > 1]
    parts = protocols.apart(known) if protocols.is_measured(metric) else {"": known}
    return [
        law
        for name, part in parts.items()
        for law in _laws(part, metric, others, {"protocol": name} if len(parts) > 1 else {})
    ]


def _laws(frame: "pd.DataFrame", metric: str, others: list[str], about: dict[str, str]) -> list[Surface]:
    """Of one protocol. others: keys for each setting of which there is a law. about: told in each label."""
    once = ["treatment", "seed"]
    means = frame.groupby(once, dropna=False)[metric].transform("mean")
    frame = frame.assign(**{metric: means}).drop_duplicates(once)
    found = []
    for _, group in frame.groupby([*map(repr, frame[others].to_numpy(object).tolist())]):
        n, d, losses = (group[c].to_numpy(float) for c in ("parameters", "tokens", metric))
        # Three of each that differ by more than rounding.
        if len(losses) < LEAST or min(len(set(np.round(np.log(x), 1))) for x in (n, d)) < 3:
            continue
        told = about | {key: group[key].iloc[0] for key in others if "." not in key}
        found.append(fit(n, d, losses, ", ".join(f"{key}={value}" for key, value in told.items()), metric))
    return found


def fit(
    parameters: np.ndarray, tokens: np.ndarray, losses: np.ndarray, label: str = "", metric: str = "val/bpb"
) -> Surface:
    """The law nearest to these runs, by squared error; each argument (n,)."""
    # About 1: the powers of millions would differ by more digits than there are.
    units = tuple(float(np.exp(np.mean(np.log(x)))) for x in (parameters, tokens))
    n, d = parameters / units[0], tokens / units[1]
    coarse = np.geomspace(*EXPONENTS, 60)
    fitted = _nearest(n, d, losses[None], coarse, coarse)[0]
    for width in (1.1, 1.01):
        fine = np.geomspace(1 / width, width, 31)
        fitted = _nearest(n, d, losses[None], *(np.clip(fitted[i] * fine, *EXPONENTS) for i in (2, 4)))[0]
    expected = _law(fitted, n, d)
    rng, df = np.random.default_rng(0), len(losses) - 5
    # How far runs scatter is known from few: drawn, too, so that intervals are Student's rather than the normal's.
    scatter = np.sqrt(np.sum((losses - expected) ** 2) / rng.chisquare(df, (DRAWS, 1)))
    drawn = scatter * rng.normal(size=(DRAWS, len(losses)))
    draws = _nearest(n, d, expected + drawn, coarse, coarse)
    # Again where they lie: an interval must not be as coarse as the grid.
    step = coarse[1] / coarse[0]
    near = (np.geomspace(draws[:, i].min() / step, draws[:, i].max() * step, 60) for i in (2, 4))
    draws = _nearest(n, d, expected + drawn, *(np.unique(np.clip(grid, *EXPONENTS)) for grid in near))
    return Surface(label, metric, parameters, tokens, losses, fitted, draws, units)  # type: ignore[arg-type]


def _law(five: np.ndarray, n: np.ndarray | float, d: np.ndarray | float) -> np.ndarray:
    floor, a, alpha, b, beta = five
    return np.asarray(floor + a * n**-alpha + b * d**-beta)


def _nearest(n: np.ndarray, d: np.ndarray, rows: np.ndarray, alphas: np.ndarray, betas: np.ndarray) -> np.ndarray:
    """For each row of losses (R, n) the law of least squares among these exponents, (R, 5); E, A and B not negative.

    Given the exponents the law is linear. Where the best of it is negative, the best that is not lies on an edge: one
    or two of the three are zero (E, A and B are few enough to try all).
    """
    alpha, beta = (grid.ravel() for grid in np.meshgrid(alphas, betas, indexing="ij"))
    columns = np.stack([np.ones((len(alpha), len(n))), n ** -alpha[:, None], d ** -beta[:, None]], axis=-1)
    best = np.full(len(rows), np.inf)
    found = np.zeros((len(rows), 5))
    for kept in (kept for size in (3, 2, 1) for kept in combinations(range(3), size)):
        q, r = np.linalg.qr(columns[:, :, kept])
        # (G, size, R): coordinates in the basis, from which both the error and the coefficients follow.
        inside = q.swapaxes(1, 2) @ rows.T
        error = np.sum(rows**2, axis=1) - np.sum(inside**2, axis=1)
        weights = np.linalg.solve(r, inside)
        error[(weights < 0).any(axis=1)] = np.inf
        at = error.argmin(axis=0)
        for row in np.flatnonzero(error[at, np.arange(len(rows))] < best - 1e-12):
            best[row] = error[at[row], row]
            found[row] = 0
            found[row, [(0, 1, 3)[k] for k in kept]] = weights[at[row], :, row]
            found[row, [2, 4]] = alpha[at[row]], beta[at[row]]
    return found
