"""Where a curve leads: exact curves of the law, cut short, are foretold; schedules that go on, and stretched ones."""

import numpy as np
import pytest

from lmlab.config import compose
from lmlab.reproduction.ahead import ahead, end_of_schedule

WSD = ["schedule=wsd", "schedule.warmup=0", "schedule.decay=0.5", "schedule.final=0.0"]


def decided(total: int) -> dict:
    return {"total_steps": total, "steps_per_epoch": 50}


def points(steps: range, law, validated: int | None) -> list[dict]:
    """As curves.csv has them: a training loss at every step, a validation at every so many."""
    told = []
    for step in steps:
        point = {"step": step, "train/loss": law(step), "optim/lr": 0.1, "val/loss": ""}
        if validated and step % validated == 0:
            point["val/loss"] = law(step)
        told.append(point)
    return told


def test_a_schedule_that_goes_on_is_summed_to_its_end():
    config = compose(WSD)
    # Of 100 steps 60 are done: 50 at the full rate, then 50/50, 49/50 ... 41/50; to come are 40/50 ... 1/50.
    times, rate = end_of_schedule(config, config, decided(100), 60, 100)
    past = 50 + sum(n / 50 for n in range(41, 51))
    assert times == pytest.approx((past + sum(n / 50 for n in range(1, 41))) / past)
    assert rate == pytest.approx(1 / 50)


def test_a_schedule_that_was_stretched_keeps_its_end():
    config = compose(WSD)
    assert end_of_schedule(config, config, decided(20), 20, 100) == (5.0, None)


def test_a_schedule_that_follows_validations_is_taken_as_it_stands():
    config = compose(["schedule=plateau"])
    assert end_of_schedule(config, config, decided(100), 10, 100) == (10.0, None)


def test_a_constant_rate_cut_short_goes_on():
    config = compose(["schedule=constant"])
    assert end_of_schedule(config, config, decided(20), 20, 100) == (5.0, 1.0)


@pytest.mark.parametrize(("validated", "by"), [(4, "validations"), (None, "training loss")])
def test_the_law_itself_is_foretold(validated, by):
    def law(step: int) -> float:
        return 2.0 + 3.0 * (step / 100) ** -0.5

    config = compose(["schedule=constant"])
    found = ahead(points(range(1, 101), law, validated), decided(100), config, config, 100, 400)
    assert found["by"] == by
    assert found["times"] == 4.0
    # 3 nats above the asymptote become 1.5; means over several steps lie a little to the side.
    assert found["gain"] == pytest.approx(1.5, abs=0.01 if validated else 0.15)
    assert found["low"] <= found["gain"] <= found["high"]


def test_no_gain_is_larger_than_the_loss_and_too_few_points_say_nothing():
    config = compose(["schedule=constant"])
    steep = ahead(points(range(1, 101), lambda s: 10.0 - s / 11, 4), decided(100), config, config, 100, 10**6)
    assert steep["high"] <= 10.0 - 100 / 11 + 1e-9
    assert ahead(points(range(1, 4), lambda s: 1.0 / s, 1), decided(3), config, config, 3, 30) is None
    assert ahead([], decided(3), config, config, 3, 30) is None
    assert ahead(points(range(1, 101), lambda s: 1.0 / s, 4), decided(100), config, config, 100, 100) is None, (
        "it is whole"
    )


def test_noise_widens_the_interval():
    random = np.random.default_rng(0)

    def noisy(step: int) -> float:
        return 2.0 + 3.0 * step**-0.5 + 0.02 * random.standard_normal()

    config = compose(["schedule=constant"])
    smooth = ahead(points(range(1, 101), lambda s: 2.0 + 3.0 * s**-0.5, 4), decided(100), config, config, 100, 400)
    rough = ahead(points(range(1, 101), noisy, 4), decided(100), config, config, 100, 400)
    assert rough["high"] - rough["low"] > 10 * (smooth["high"] - smooth["low"])
