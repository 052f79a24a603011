import numpy as np
import pytest

from lmlab.evaluation.extrapolation import forecast

STEPS = np.arange(1, 13) * 50.0


def schedule(kind, steps=600):
    t = np.arange(1, steps + 1)
    rate = {"constant": np.ones(steps), "cosine": 0.5 + 0.5 * np.cos(np.pi * t / steps)}
    rate["wsd"] = np.minimum(1, (steps - t) / (0.4 * steps))
    at = (STEPS * steps / 600).astype(int) - 1
    return np.cumsum(rate[kind])[at], rate[kind][at]


def law(area, rate, c=1.5, a=2.0, b=0.4, cooling=0.05):
    return c + a * (area / 100) ** -b - cooling * (1 - rate)


@pytest.mark.parametrize("kind", ["constant", "cosine", "wsd"])
def test_a_law_s_own_curve_is_forecast_whatever_the_schedule(kind):
    """Twice the steps under the stretched schedule, computed from the same law."""
    area, rate = schedule(kind)
    later = law(*schedule(kind, 1200))[-1]
    found = forecast(area, rate, law(area, rate), 2.0)
    assert found.final == pytest.approx(later, abs=0.02)
    assert found.low <= found.gain <= found.high


@pytest.mark.parametrize("kind", ["constant", "wsd"])
def test_the_intervals_hold_the_truth_under_noise(kind):
    """Of the gain, and of the loss at the end, whatever the luck of the validation that the forecast starts from."""
    held = ends = 0
    area, rate = schedule(kind)
    final = law(*schedule(kind, 1200))[-1]
    gain = law(area, rate)[-1] - final
    for seed in range(30):
        noisy = law(area, rate) + np.random.default_rng(seed).normal(0, 0.005, len(area))
        found = forecast(area, rate, noisy, 2.0)
        held += found.low <= gain <= found.high
        ends += found.lowest <= final <= found.highest
    # 90 % intervals: fewer than 22 of 30 would have a probability below 0.001.
    assert held >= 22
    assert ends >= 22


def test_a_lucky_last_validation_is_not_taken_into_the_future():
    """Level at 2 but for the last of twelve, which is 0.06 lower: no curve of the law falls by all of that at once."""
    area, rate = schedule("constant")
    found = forecast(area, rate, np.append(np.full(11, 2.0), 1.94), 2.0, most=0.0)
    assert found.gain == 0
    assert 1.96 < found.final < 2.0
    assert found.final < found.highest <= 2.03


def test_a_level_curve_gains_nothing_and_a_rising_one_neither():
    area, rate = schedule("constant")
    assert forecast(area, rate, np.full(12, 2.0), 2.0).gain == pytest.approx(0, abs=1e-9)
    assert forecast(area, rate, 2 + STEPS / 1000, 2.0).gain == 0


def test_what_only_cools_is_not_taken_for_learning():
    """The loss falls by two per cent exactly as the rate does, and has been level before."""
    area, rate = schedule("wsd")
    assert forecast(area, rate, 2 - 0.04 * (1 - rate), 2.0).gain < 0.005


def test_few_points_say_nothing():
    assert forecast(np.arange(1.0, 6), np.ones(5), np.ones(5), 2.0) is None


def test_a_schedule_that_is_cut_short_is_followed_to_its_own_end():
    """600 steps of WSD, of which 480 are done: 240 of its decay are seen half of the way."""
    t = np.arange(1, 601)
    rate = np.minimum(1, (600 - t) / 240)
    area = np.cumsum(rate)
    at = np.arange(40, 481, 40) - 1
    curve = law(area, rate)
    found = forecast(area[at], rate[at], curve[at], area[-1] / area[479], end_rate=0.0)
    assert found.final == pytest.approx(curve[-1], abs=0.02)


def test_cooling_that_was_never_seen_widens_the_interval_alone():
    area = np.arange(1, 13) * 50.0
    curve = law(area, np.ones(12), cooling=0.0)
    flat = forecast(area, np.ones(12), curve, 1.5, end_rate=1.0)
    cooled = forecast(area, np.ones(12), curve, 1.5, end_rate=0.0)
    assert cooled.gain == flat.gain
    # Five per cent of the loss, the most that cooling down was found to gain.
    assert cooled.high == pytest.approx(flat.high + 0.05 * curve[-1])
