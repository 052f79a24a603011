"""Intervals that hold what they promise, and Student's t against its table."""

import tracemalloc

import numpy as np
import pytest

from lmlab.evaluation import bootstrap
from lmlab.evaluation.bootstrap import estimate, estimates, holm, t_cdf, t_quantile

RESAMPLES = 400


def test_students_t_is_the_tables():
    # Fisher and Yates, two-sided 5 % and 1 %.
    for df, five, one in ((1, 12.706, 63.657), (2, 4.303, 9.925), (10, 2.228, 3.169), (120, 1.980, 2.617)):
        assert t_quantile(0.975, df) == pytest.approx(five, abs=6e-4)
        assert t_quantile(0.995, df) == pytest.approx(one, abs=6e-4)
    assert t_quantile(0.975, 1e6) == pytest.approx(1.959966, abs=1e-5)
    assert t_cdf(0.0, 3) == 0.5
    # P(T <= 1) is 3/4 with one degree of freedom, Cauchy's.
    assert t_cdf(1.0, 1) == pytest.approx(0.75)
    assert t_cdf(-1.0, 1) == pytest.approx(0.25)


def test_holm_by_hand():
    # Sorted: 0.01 times 3, 0.02 times 2, 0.04 times 1; none below the one before it.
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]


def autoregressive(random: np.random.Generator, n: int, length: int, phi: float) -> np.ndarray:
    """(n, length) of variance 1: x_t = phi x_(t-1) + noise."""
    x = np.empty((length, n))
    x[0] = random.standard_normal(n)
    noise = random.standard_normal((length, n)) * np.sqrt(1 - phi**2)
    for t in range(1, length):
        x[t] = phi * x[t - 1] + noise[t]
    return x.T


def coverage(pairs, true: float) -> float:
    found = [estimate(*pair) for pair in pairs]
    return sum(low <= true <= high for low, high in (e.interval(0.95) for e in found)) / len(found)


def test_an_interval_of_two_models_on_a_stream_covers_as_often_as_it_says():
    """1,000 pairs of models on 6,000 tokens of 1 to 8 bytes. The difference of a token's bits is 0.02, plus a first
    order autoregression with phi 0.95 (a correlation length of twenty tokens, and of a whole block here), plus heavy
    tails (Student's t with 4 degrees of freedom); blocks of 60 tokens, which correlate and are joined."""
    random = np.random.default_rng(5)
    n, blocks, width = 1_000, 100, 60
    bits = 0.02 + autoregressive(random, n, blocks * width, 0.95) + random.standard_t(4, (n, blocks * width))
    bits = bits.reshape(n, blocks, width).sum(-1)
    sizes = random.integers(1, 9, (n, blocks, width)).sum(-1).astype(float)
    none = np.zeros((1, blocks))
    pairs = ((bits[i, None], none, sizes[i], [], RESAMPLES, 0, True) for i in range(n))
    assert 0.93 <= coverage(pairs, 0.02 / 4.5) <= 0.97


@pytest.mark.parametrize(("blocks", "length"), [(200, 5), (200, 20), (64, 5), (64, 0.1)])
def test_an_interval_covers_where_text_correlates_for_longer_than_joining_reaches(blocks: int, length: float):
    """1,000 pairs of models whose difference is a first-order autoregression over blocks of 500 bytes, with a
    correlation length of so many blocks, from none to a tenth of the text."""
    random = np.random.default_rng(7)
    bits = 0.3 + autoregressive(random, 1_000, blocks, np.exp(-1 / length))
    sizes, none = np.full(blocks, 500.0), np.zeros((1, blocks))
    assert 0.93 <= coverage(((row[None], none, sizes, [], RESAMPLES, 0, True) for row in bits), 0.3 / 500) <= 0.97


@pytest.mark.parametrize("spread", [0.1, 0.5])
def test_an_interval_of_configurations_covers_where_text_correlates_for_long(spread: float):
    """As above with three seeds of each side, all with a correlation length of five blocks of their own; their part of
    the noise is not taken for a difference between seeds."""
    random = np.random.default_rng(8)
    runs = autoregressive(random, 6 * 500, 64, np.exp(-1 / 5)).reshape(500, 2, 3, 64)
    runs += random.standard_normal((500, 2, 3, 1)) * spread
    pairs = ((0.3 + a, b, np.full(64, 500.0), [a, b], RESAMPLES, 0, True) for a, b in runs)
    assert 0.93 <= coverage(pairs, 0.3 / 500) <= 0.97


def test_correlation_that_is_left_counts_as_fewer_blocks_by_hand():
    # 30 blocks, too few to be joined: fifteen of 1 and fifteen of -1. The 28 pairs of equals less the pair in the
    # middle, over 30, is c = 28 / 30; Kendall adds (1 + 4 c) / 30, beyond 1. Three independent ones are left.
    bits = np.repeat([1.0, -1.0], 15)
    found = estimate(bits[None], np.zeros((1, 30)), np.ones(30), [], 20_000, 0, True)
    assert (found.text_df, found.blocks) == (2, 30)
    assert found.text == pytest.approx(10 * bits.var(ddof=1) / 30, rel=0.05)
    # Ones of each sign in turn: c is below nought, and the blocks are as many as they are.
    bits = np.tile([1.0, -1.0], 15)
    assert estimate(bits[None], np.zeros((1, 30)), np.ones(30), [], RESAMPLES, 0, True).text_df == 29
    # Of 200 that follow each other, as many are joined as leave MERGED or more.
    assert estimate(np.repeat([1.0, -1.0], 100)[None], np.zeros((1, 200)), np.ones(200), [], 9, 0, True).blocks == 50


def documents(random: np.random.Generator, *sides: tuple[int, float]):
    """Two sets of runs on 100 documents of 500 to 1,500 bytes, truly 0.01 bits per byte apart. sides: how many runs,
    and the standard deviation between their seeds; configurations differ by 0.1 from document to document, and so do
    runs."""
    sizes = random.integers(500, 1500, 100).astype(float)
    between = random.standard_normal(100) * 0.1
    ours, theirs = (
        random.standard_normal((runs, 1)) * spread + random.standard_normal((runs, 100)) * 0.1 for runs, spread in sides
    )
    ours, theirs = (0.01 + ours + between) * sizes, theirs * sizes
    return ours, theirs, sizes, [ours, theirs], RESAMPLES, 0, False


@pytest.mark.parametrize(("runs", "spread"), [(2, 0.02), (3, 0.02), (3, 0.01), (5, 0.01)])
def test_an_interval_of_two_configurations_covers_as_often_as_it_says(runs: int, spread: float):
    """1,000 pairs."""
    random = np.random.default_rng([runs, round(1000 * spread)])
    pairs = (documents(random, (runs, spread), (runs, spread)) for _ in range(1_000))
    assert 0.93 <= coverage(pairs, 0.01) <= 0.97


@pytest.mark.parametrize("runs", [3, 5])
def test_it_covers_as_often_where_one_configurations_seeds_differ_ten_times_as_much(runs: int):
    """1,000 pairs: a variance pooled over both would cover 89 % of them with three runs each."""
    random = np.random.default_rng(runs)
    pairs = (documents(random, (runs, 0.2), (runs, 0.02)) for _ in range(1_000))
    assert 0.93 <= coverage(pairs, 0.01) <= 0.97


@pytest.mark.parametrize(("fewest", "others", "least"), [(2, 2, 0.91), (2, 5, 0.87)])
def test_it_covers_somewhat_less_where_two_runs_differ_more_than_the_others(fewest: int, others: int, least: float):
    """1,000 pairs: two seeds tell little of how much they differ. A pooled variance would cover 85 and 60 %."""
    random = np.random.default_rng(others)
    pairs = (documents(random, (fewest, 0.2), (others, 0.02)) for _ in range(1_000))
    assert least <= coverage(pairs, 0.01) <= 0.95


def test_the_variance_between_seeds_is_each_configurations_own_by_hand():
    # Documents without noise of their own: ours at 0 and 2, theirs at 0, 3 and 6 bits a byte, variances 2 and 9.
    ours, theirs = (np.array(levels)[:, None] * np.full(50, 8.0) for levels in ([0.0, 2.0], [0.0, 3.0, 6.0]))
    sizes = np.full(50, 8.0)
    found = estimate(ours, theirs, sizes, [ours, theirs], RESAMPLES, 0, False)
    assert (found.difference, found.text) == pytest.approx((-2.0, 0.0))
    # 2 / 2 + 9 / 3 = 4, and Satterthwaite's 4^2 / (1^2 / 1 + 3^2 / 2).
    assert (found.seeds, found.seeds_df) == pytest.approx((4.0, 16 / 5.5))
    # What more seeds of each would divide.
    assert found.each == pytest.approx((2 + 9) / 2)
    # One of a single run is taken to spread as the other; of one configuration, both have its variance.
    found = estimate(ours[:1], theirs, sizes, [ours[:1], theirs], RESAMPLES, 0, False)
    assert (found.seeds, found.seeds_df) == pytest.approx((9 * (1 + 1 / 3), 2))
    found = estimate(theirs[:1], theirs[1:], sizes, [theirs], RESAMPLES, 0, False)
    assert (found.seeds, found.seeds_df) == pytest.approx((9 * (1 + 1 / 2), 2))


def test_two_seeds_of_one_configuration_are_never_told_apart():
    # The variance between them is estimated from the two themselves: their distance is its own yardstick.
    random = np.random.default_rng(0)
    for gap in (0.0, 0.01, 0.1, 1.0, 10.0):
        one = random.standard_normal((1, 50)) + 5
        other = one + gap + random.standard_normal((1, 50)) * 0.1
        found = estimate(one, other, np.full(50, 10.0), [np.concatenate((one, other))], RESAMPLES, 0, False)
        low, high = found.interval(0.95)
        assert low < 0 < high


def test_without_replicates_only_text_is_uncertain():
    random = np.random.default_rng(0)
    bits, sizes = random.standard_normal((2, 400)), np.full(400, 4.0)
    found = estimate(bits[:1], bits[1:], sizes, [], 4_000, 0, False)
    assert (found.seeds, found.text_df) == (None, 399)
    # Of blocks of one size the bootstrap's variance is the mean's own.
    assert found.text == pytest.approx((bits[0] - bits[1]).var(ddof=1) / 400 / 16, rel=0.05)
    assert found.difference == pytest.approx((bits[0] - bits[1]).mean() / 4)


def test_p_is_the_level_at_which_the_interval_reaches_zero():
    random = np.random.default_rng(1)
    ours, theirs = random.standard_normal((3, 60)) + 0.3, random.standard_normal((3, 60))
    found = estimate(ours, theirs, np.ones(60), [ours, theirs], RESAMPLES, 0, False)
    assert 0 < found.p < 1
    assert found.half_width(1 - found.p) == pytest.approx(abs(found.difference), rel=1e-6)


def test_a_difference_as_large_as_detectable_is_found_four_times_of_five():
    random = np.random.default_rng(3)
    true, found = 0.0, []
    for _ in range(400):
        bits = random.standard_normal((1, 60))
        found.append(estimate(bits + true, np.zeros((1, 60)), np.ones(60), [], RESAMPLES, 0, False))
        # Known here: the standard error is 1 / sqrt(60).
        true = 2.8 / np.sqrt(60)
    assert np.mean([e.detectable(0.95) for e in found]) == pytest.approx(true, rel=0.05)
    assert 0.74 <= np.mean([e.p < 0.05 for e in found[1:]]) <= 0.86


def test_more_seeds_and_more_text_shrink_their_own_part():
    random = np.random.default_rng(2)
    ours, theirs = (random.standard_normal((8, 1)) + random.standard_normal((8, 200)) for _ in range(2))
    few, many = (
        estimate(a, b, np.ones(200), [ours, theirs], RESAMPLES, 0, False)
        for a, b in ((ours[:2], theirs[:2]), (ours, theirs))
    )
    assert few.seeds == pytest.approx(4 * many.seeds)
    assert few.text > 2 * many.text


def test_too_few_blocks_are_refused():
    with pytest.raises(ValueError, match="9 blocks of text are too few"):
        estimate(np.ones((1, 9)), np.zeros((1, 9)), np.ones(9), [], RESAMPLES, 0, False)


def made(n: int, phi: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bits of two sides of three runs each, (3, n), and sizes, (n,)."""
    random = np.random.default_rng(11)
    sizes = random.integers(3, 9, n).astype(float)
    ours, theirs = (autoregressive(random, 3, n, phi) + random.standard_normal((3, 1)) for _ in range(2))
    return ours * sizes, theirs * sizes, sizes


@pytest.mark.parametrize("at_once", [2**22, 100_000, 1])
def test_numbers_are_those_of_one_table_of_all_draws(at_once: int, monkeypatch):
    """As they were recorded when the whole table was held, joined blocks (37 of 300) and all."""
    monkeypatch.setattr(bootstrap, "AT_ONCE", at_once)
    bootstrap._table.cache_clear()
    recorded = {
        (300, 0.9, True): (-1.2695410753306353, 0.03533992032720016, 12, 2.3744829388669144, 37),
        (300, 0.0, False): (-1.389610351734686, 0.002983818503280224, 299, 2.320804102592862, 300),
        (40, 0.5, True): (-0.26530039644463277, 0.051125419623247466, 13, 0.31958797442881387, 40),
    }
    for (n, phi, stream), wanted in recorded.items():
        ours, theirs, sizes = made(n, phi)
        e = estimate(ours, theirs, sizes, [ours, theirs], 2_000, 4, stream)
        found = (e.difference, e.text, e.text_df, e.seeds, e.blocks)
        assert found == pytest.approx(wanted, rel=1e-12)


def test_several_pairs_are_what_each_is_alone():
    ours, theirs, sizes = made(300, 0.9)
    independent, replicates = np.random.default_rng(0).standard_normal((1, 300)), [ours, theirs]
    # Blocks are joined for some of them and not for others.
    pairs = [(ours, theirs), (ours, independent), (independent, np.zeros((1, 300))), (independent, theirs[:1])]
    found = estimates(pairs, sizes, [replicates] * len(pairs), RESAMPLES, 0, True)
    assert len({e.blocks for e in found}) > 1
    assert found == [estimate(a, b, sizes, replicates, RESAMPLES, 0, True) for a, b in pairs]


def test_memory_does_not_grow_with_the_number_of_documents():
    """20,000 documents under 500 resamples: a table of 80 MB, and as many again while it was drawn."""
    bits = np.random.default_rng(0).standard_normal((2, 20_000))
    tracemalloc.start()
    try:
        estimate(bits[:1], bits[1:], np.ones(20_000), [], 500, 0, False)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Draws as integers and as numbers, the piece before them not yet freed.
    assert peak < 3.2 * 8 * bootstrap.AT_ONCE
