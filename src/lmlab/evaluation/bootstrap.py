"""How far a difference in bits per byte can be trusted: text resampled in blocks, seeds as replicates."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

# Fewer blocks than these say little, however they are resampled.
FEWEST = 10
# Neighbouring blocks are merged until they no longer correlate, but not below so many.
MERGED = 30
# Numbers of a table of draws that are held at once, of 8 bytes each: with 2,000 resamples the whole of one of 2,097
# blocks. A text of 50,000 documents has a table of 800 MB, which is drawn and used piece by piece.
AT_ONCE = 2**22
# The power at which a difference counts as detectable (Cohen 1988).
POWER = 0.8


@dataclass(frozen=True)
class Estimate:
    """A difference in bits per byte, and what makes it uncertain.

    text, seeds: the two variances that add up, one of which more text would shrink, the other more seeds. seeds is None
    where neither configuration has two runs: the interval is then of these models, not of their configurations.
    text_df, seeds_df: degrees of freedom of Student's t for each. each: the variance between seeds, the mean of both
    configurations'. blocks: of text, after neighbours were joined.
    """

    difference: float
    text: float
    text_df: int
    seeds: float | None
    seeds_df: float
    each: float
    blocks: int

    def half_width(self, confidence: float) -> float:
        """Of the interval. The half widths of text and seeds are combined, not their variances: with few seeds an
        interval of their sum, with one number of degrees of freedom for both, covers too little (see its test)."""
        share = 0.5 + confidence / 2
        squared = self.text * t_quantile(share, self.text_df) ** 2
        if self.seeds:
            squared += self.seeds * t_quantile(share, self.seeds_df) ** 2
        return math.sqrt(squared)

    def interval(self, confidence: float) -> tuple[float, float]:
        half = self.half_width(confidence)
        return self.difference - half, self.difference + half

    def detectable(self, confidence: float) -> float:
        """The smallest true difference that such a comparison finds with a probability of POWER."""
        return self.half_width(confidence) + self.half_width(2 * POWER - 1)

    @property
    def p(self) -> float:
        """Two-sided: the level at which the interval just reaches zero."""
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            reached = self.half_width(1 - middle) >= abs(self.difference)
            low, high = (middle, high) if reached else (low, middle)
        return high


def estimate(
    ours: np.ndarray,
    theirs: np.ndarray,
    sizes: np.ndarray,
    replicates: Sequence[np.ndarray],
    resamples: int,
    seed: int,
    stream: bool,
) -> Estimate:
    """Mean bits per byte of our runs less that of theirs, over blocks of the same text.

    ours, theirs: (runs, blocks), bits. sizes: (blocks,), bytes. replicates: (runs, blocks), all runs that there are of
    our configuration and of theirs; one array where that is one configuration.
    stream: blocks are stretches of one text, so that neighbours may be alike; they are then joined, and what
    correlation is left adds to the variance and takes degrees of freedom, as if the blocks were fewer.

    Text: blocks are drawn with replacement, the same for all runs, so that what makes a block hard for both cancels.
    Seeds: the variance between runs of one configuration, less what the text explains of it. Each configuration has
    its own (Welch 1947, with Satterthwaite's degrees of freedom); one of a single run is taken to spread as the other.
    """
    return estimates([(ours, theirs)], sizes, [replicates], resamples, seed, stream)[0]


def estimates(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
    sizes: np.ndarray,
    replicates: Sequence[Sequence[np.ndarray]],
    resamples: int,
    seed: int,
    stream: bool,
) -> list[Estimate]:
    """`estimate` of each pair (ours, theirs) with its replicates, in order; blocks are drawn once for all that have as
    many."""
    differences = [ours.mean(0) - theirs.mean(0) for ours, theirs in pairs]
    widths = [_width(paired, sizes) if stream else 1 for paired in differences]
    found: dict[int, Estimate] = {}
    for width in sorted(set(widths)):
        members = [i for i, own in enumerate(widths) if own == width]
        joined = _merged(sizes, width)
        n_blocks = len(joined)
        if n_blocks < FEWEST:
            raise ValueError(f"{n_blocks} blocks of text are too few to compare on (at least {FEWEST}); give more text")
        paired = [_merged(differences[i], width) for i in members]
        # Each configuration once, though it may stand in several pairs.
        sets = {id(runs): runs for i in members for runs in replicates[i] if len(runs) > 1}
        left = [_merged(runs, width) for runs in sets.values()]
        left = [runs - runs.mean(0) for runs in left]
        variances = iter(_variances([*paired, *(run for runs in left for run in runs)], joined, resamples, seed))
        texts = [next(variances) for _ in members]
        spreads = {key: _spread(runs, joined, variances, stream) for key, runs in zip(sets, left, strict=True)}
        for i, bits, text in zip(members, paired, texts, strict=True):
            alike = _alike(bits[None], joined) if stream else 1.0
            seeds, df, each = _seeds(*map(len, pairs[i]), [spreads.get(id(runs)) for runs in replicates[i]])
            told = float(bits.sum() / joined.sum()), text * alike, round(n_blocks / alike) - 1
            found[i] = Estimate(*told, seeds, df, each, n_blocks)
    return [found[i] for i in range(len(pairs))]


def _drawn(n_blocks: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each block is drawn in each resample: (some resamples, blocks) at a time, the same in any pieces."""
    random, rows = np.random.default_rng([seed, n_blocks]), max(1, AT_ONCE // n_blocks)
    for done in range(0, resamples, rows):
        some = min(rows, resamples - done)
        yield random.multinomial(n_blocks, np.full(n_blocks, 1 / n_blocks), some).astype(float)


@lru_cache(maxsize=4)
def _table(n_blocks: int, resamples: int, seed: int) -> np.ndarray:
    """The same where it is one piece, (resamples, blocks)."""
    (whole,) = _drawn(n_blocks, resamples, seed)
    return whole


def _weights(n_blocks: int, resamples: int, seed: int) -> Iterable[np.ndarray]:
    """What `_drawn` gives; a table of one piece is kept for the next comparison."""
    if n_blocks * resamples <= AT_ONCE:
        return [_table(n_blocks, resamples, seed)]
    return _drawn(n_blocks, resamples, seed)


def _variances(rows: Sequence[np.ndarray], sizes: np.ndarray, resamples: int, seed: int) -> list[float]:
    """Of sum(bits) / sum(sizes) over resamples, for each of rows, (blocks,) as sizes; no bias of few blocks."""
    n, done = len(sizes), 0
    means = np.empty((len(rows), resamples))
    for weights in _weights(n, resamples, seed):
        drawn = slice(done, done := done + len(weights))
        n_bytes = weights @ sizes
        for row, bits in zip(means, rows, strict=True):
            row[drawn] = (weights @ bits) / n_bytes
    return [float(row.var(ddof=1) * n / (n - 1)) for row in means]


@dataclass(frozen=True)
class _Spread:
    """The variance between runs of one configuration, with its degrees of freedom; `noise` of it is the text's."""

    variance: float
    noise: float
    df: int


def _spread(runs: np.ndarray, sizes: np.ndarray, variances: Iterator[float], stream: bool) -> _Spread:
    """runs: (two or more, blocks), bits less those of their mean. variances: of each run's, in order."""
    df = len(runs) - 1
    squares = float(((runs.sum(1) / sizes.sum()) ** 2).sum())
    # Theirs, not the difference's: what follows the text in both sides is gone from these.
    alike = _alike(runs, sizes) if stream else 1.0
    return _Spread(squares / df, alike * sum(next(variances) for _ in runs) / df, df)


def _seeds(n_ours: int, n_theirs: int, spreads: Sequence[_Spread | None]) -> tuple[float | None, float, float]:
    """The variance of a difference of means of so many runs, its degrees of freedom, and that of one run of either;
    None without replicates.

    spreads: of our configuration and of theirs, or of the one that both are; None: it has a single run.
    """
    known = [spread for spread in spreads if spread is not None]
    if not known:
        return None, 0, 0.0
    ours, theirs = known * 2 if len(known) == 1 else known
    parts = ours.variance / n_ours, theirs.variance / n_theirs
    of_seeds = max(sum(parts) - ours.noise / n_ours - theirs.noise / n_theirs, 0.0)
    each = max((ours.variance + theirs.variance - ours.noise - theirs.noise) / 2, 0.0)
    if len(known) == 1 or not any(parts):
        return of_seeds, sum(spread.df for spread in known), each
    return of_seeds, sum(parts) ** 2 / (parts[0] ** 2 / ours.df + parts[1] ** 2 / theirs.df), each


def _width(bits: np.ndarray, sizes: np.ndarray) -> int:
    """How many neighbours are to be one block, so that they no longer follow each other, as far as there are enough."""
    width = 1
    # Twice the standard error of a correlation that is none.
    while len(bits) // 2 >= MERGED and _correlation(bits[None], sizes) >= 2 / math.sqrt(len(bits)):
        bits, sizes, width = _merged(bits, 2), _merged(sizes, 2), 2 * width
    return width


def _correlation(bits: np.ndarray, sizes: np.ndarray) -> float:
    """Of neighbouring blocks, about each row's own mean; (runs, blocks)."""
    left = bits - sizes * (bits.sum(1, keepdims=True) / sizes.sum())
    spread = float((left**2).sum())
    return float((left[:, 1:] * left[:, :-1]).sum()) / spread if spread else 0.0


def _alike(bits: np.ndarray, sizes: np.ndarray) -> float:
    """How many blocks say as much as one independent block would, 1 or more; (runs, blocks).

    Of a first-order autoregression, (1 + c) / (1 - c). Found in n blocks, c is too low by (1 + 4c) / n (Kendall 1954).
    """
    n, found = len(sizes), _correlation(bits, sizes)
    c = max(0.0, found + (1 + 4 * found) / n)
    # Two degrees of freedom stay, where all else would be guessed.
    most = n / 3
    return (1 + c) / (1 - c) if c < (most - 1) / (most + 1) else most


def _merged(values: np.ndarray, width: int) -> np.ndarray:
    """Neighbours on the last axis added up; those that fill no last block join it."""
    if width == 1:
        return values
    starts = np.arange(values.shape[-1] // width) * width
    return np.add.reduceat(values, starts, axis=-1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted for being many (Holm 1979): each below alpha with the family's error held at alpha."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[i]))
        adjusted[i] = largest
    return adjusted


# Student's t. With t = sqrt(df) tan(a), its density is proportional to cos(a)**(df - 1).
NODES, NODE_WEIGHTS = np.polynomial.legendre.leggauss(64)


def t_cdf(t: float, df: float) -> float:
    """P(T <= t)."""
    if math.isinf(t):
        return float(t > 0)
    # Past forty standard deviations of the angle nothing is left, and a narrow peak would fall between the nodes.
    reach = min(math.atan(abs(t) / math.sqrt(df)), 40 / math.sqrt(df))
    angles = reach / 2 * (NODES + 1)
    density = np.exp((df - 1) * np.log(np.cos(angles)))
    log_norm = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(math.pi)
    half = min(0.5, float(density @ NODE_WEIGHTS) * reach / 2 * math.exp(log_norm))
    return 0.5 + math.copysign(half, t)


@lru_cache(maxsize=256)
def t_quantile(p: float, df: float) -> float:
    """The t below which a share p lies, by bisection; 0.5 <= p < 1."""
    low, high = 0.0, 1.0
    while t_cdf(high, df) < p:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, df) < p else (low, middle)
    return (low + high) / 2
