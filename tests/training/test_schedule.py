import math
from itertools import pairwise
from pathlib import Path

import pytest
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from lmlab.training.schedule import WSD, Constant, Cosine, Plateau, StepDecay

OPTIONS = sorted((Path(__file__).parents[2] / "conf/schedule").glob("*.yaml"))
RUN = {"total_steps": 100, "steps_per_epoch": 10}


def wsd(**changes):
    return WSD(**RUN | {"warmup": 10, "decay": 0.5, "final": 0.0, "shape": "linear"} | changes)


def cosine(**changes):
    return Cosine(**RUN | {"warmup": 10, "final": 0.1} | changes)


def plateau(**changes):
    return Plateau(**RUN | {"warmup": 0, "shrink": 0.25, "patience": 0, "floor": 0.0} | changes)


def test_warm_up_rises_in_equal_steps_and_never_starts_at_zero():
    schedule = Constant(**RUN, warmup=4)
    assert [schedule.factor(step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_warm_up_below_one_is_a_fraction_of_all_steps():
    assert Constant(**RUN, warmup=0.05).warmup == 5
    assert Constant(**RUN, warmup=1).warmup == 1


def test_cosine_is_halfway_down_in_the_middle_and_final_at_the_end():
    schedule = cosine()
    assert schedule.factor(10) == 1.0
    # (1 + 0.1) / 2 at step 10 + 90 / 2.
    assert schedule.factor(55) == pytest.approx(0.55)
    assert schedule.factor(100) == schedule.factor(130) == pytest.approx(0.1)


def test_wsd_is_flat_then_falls_linearly():
    schedule = wsd(final=0.2)
    assert [schedule.factor(step) for step in (10, 30, 50)] == [1.0, 1.0, 1.0]
    # 25 of 50 decaying steps are left: 0.2 + 0.8 / 2.
    assert schedule.factor(75) == pytest.approx(0.6)
    assert schedule.factor(99) == pytest.approx(0.2 + 0.8 / 50)
    assert schedule.factor(100) == schedule.factor(120) == pytest.approx(0.2)


def test_wsd_in_the_shape_of_one_minus_a_square_root():
    # 36 % of the decay is done: 1 - sqrt(0.36).
    assert wsd(shape="1-sqrt").factor(68) == pytest.approx(0.4)


def test_wsd_that_decays_all_the_way_is_linear_after_the_warm_up():
    schedule = wsd(decay=1.0)
    assert schedule.decay_steps == 90
    assert schedule.factor(10) == 1.0
    assert schedule.factor(55) == pytest.approx(0.5)


def test_zaremba_holds_then_divides_every_epoch():
    schedule = StepDecay(**RUN, warmup=0, hold_epochs=6, rate=1 / 1.2)
    assert schedule.factor(59) == 1.0
    assert schedule.factor(60) == schedule.factor(69) == pytest.approx(1 / 1.2)
    assert schedule.factor(70) == pytest.approx(1 / 1.44)


def test_plateau_divides_by_four_whenever_validation_is_no_new_best():
    schedule, levels = plateau(), []
    for metric in (5.0, 4.0, 4.0, 4.5, 3.0, 3.5):
        schedule.observe(metric)
        levels.append(schedule.factor(0))
    assert levels == [1, 1, 0.25, 0.0625, 0.0625, 0.015625]


def test_plateau_forgives_as_often_as_its_patience():
    schedule = plateau(patience=2)
    for metric in (1.0, 2.0, 2.0):
        schedule.observe(metric)
    assert schedule.factor(0) == 1.0
    schedule.observe(math.nan)
    assert schedule.factor(0) == 0.25


def test_plateau_stops_at_its_floor():
    schedule = plateau(floor=0.1)
    for _ in range(4):
        schedule.observe(1.0)
    assert schedule.factor(0) == 0.1


def test_a_resumed_plateau_goes_on_where_it_was():
    whole, first, second = plateau(patience=1), plateau(patience=1), plateau(patience=1)
    for metric in (3.0, 4.0):
        whole.observe(metric)
        first.observe(metric)
    second.load_state_dict(first.state_dict())
    whole.observe(5.0)
    second.observe(5.0)
    assert second.state_dict() == whole.state_dict() == {"level": 0.25, "best": 3.0, "misses": 0}


def test_schedules_that_observe_nothing_have_no_state():
    assert cosine().state_dict() == {}
    cosine().load_state_dict({})
    with pytest.raises(ValueError, match="schedule=cosine has no state"):
        cosine().load_state_dict(plateau().state_dict())


@settings(deadline=None)
@given(total=st.integers(1, 300), warmup=st.floats(0, 400), decay=st.floats(0, 1), final=st.floats(0, 1))
def test_factors_stay_between_zero_and_one_and_fall_after_the_warm_up(total, warmup, decay, final):
    run = {"total_steps": total, "steps_per_epoch": 7, "warmup": warmup, "final": final}
    for schedule in (Cosine(**run), WSD(**run, decay=decay, shape="linear"), WSD(**run, decay=decay, shape="1-sqrt")):
        factors = [schedule.factor(step) for step in range(total + 3)]
        assert all(0 <= f <= 1 for f in factors)
        after = factors[schedule.warmup :]
        assert all(a >= b - 1e-12 for a, b in pairwise(after))


def test_the_description_states_the_horizon_and_a_longer_budget_moves_it():
    assert wsd().describe() == "wsd over 100 steps, warm-up 10, decay in the last 50"
    assert wsd(total_steps=2000).describe() == "wsd over 2,000 steps, warm-up 10, decay in the last 1,000"


def test_schedules_that_need_the_end_ask_for_it():
    for make in (cosine, wsd):
        with pytest.raises(ValueError, match=r"must know when training ends; set trainer\.max_steps"):
            make(total_steps=None)
    with pytest.raises(ValueError, match="schedule=constant must know"):
        Constant(total_steps=None, steps_per_epoch=10, warmup=0.1)
    assert Constant(total_steps=None, steps_per_epoch=10, warmup=3).describe() == "constant, warm-up 3"


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (wsd, {"warmup": -1}, "schedule.warmup=-1"),
        (wsd, {"decay": 1.5}, "schedule.decay=1.5"),
        (wsd, {"shape": "square"}, "must be linear or 1-sqrt"),
        (plateau, {"shrink": 4.0}, "schedule.shrink=4.0"),
        (plateau, {"patience": -1}, "schedule.patience=-1"),
    ],
)
def test_impossible_values_are_named(make, changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


@pytest.mark.parametrize("path", OPTIONS, ids=[path.stem for path in OPTIONS])
def test_every_option_makes_the_schedule_of_its_name(path):
    schedule = instantiate(OmegaConf.load(path))(**RUN)
    assert schedule.name == path.stem
    assert 0 < schedule.factor(99) <= 1
