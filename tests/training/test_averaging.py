"""Averaged weights, by hand: a short run's average is of its own late steps, and a long one's as its decay says."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from lmlab.training.averaging import ExponentialMovingAverage


def averaged(steps: int, **settings) -> float:
    """What becomes of one weight that is 1 after the first step, 2 after the second, ..."""
    callback, model = ExponentialMovingAverage(**settings), nn.Linear(1, 1, bias=False)
    average = AveragedModel(model, **callback._kwargs)
    for step in range(steps):
        nn.init.constant_(model.weight, step + 1.0)
        if callback.should_update(step_idx=step):
            average.update_parameters(model)
    return average.module.weight.item()


def test_the_first_updates_worked_by_hand():
    assert averaged(1, decay=0.999) == 1
    # 2 / 11 of the old one stays, then 3 / 12.
    second = 2 / 11 * 1 + 9 / 11 * 2
    assert averaged(2, decay=0.999) == pytest.approx(second)
    assert averaged(3, decay=0.999) == pytest.approx(3 / 12 * second + 9 / 12 * 3)
    assert averaged(3, decay=0.1) == pytest.approx(0.1 * (0.1 * 1 + 0.9 * 2) + 0.9 * 3)


@pytest.mark.parametrize("steps", [200, 400, 800])
def test_a_short_run_s_average_is_of_its_last_ninth(steps):
    """At a decay of 0.999 from the start on it would be two thirds the first of 400 steps."""
    assert averaged(steps, decay=0.999) == pytest.approx(steps * 8 / 9, rel=0.12)


def test_of_a_long_run_it_is_of_as_many_updates_as_its_decay_says():
    assert 5_000 - averaged(5_000, decay=0.99) == pytest.approx(0.99 / 0.01, rel=1e-3)


def test_of_counts_and_places_there_is_no_average():
    callback, model = ExponentialMovingAverage(decay=0.9, use_buffers=True), nn.Linear(1, 1)
    model.register_buffer("rank", torch.tensor([3, 1]))
    average = AveragedModel(model, use_buffers=True, **callback._kwargs)
    for step in range(3):
        model.rank += 1
        assert callback.should_update(step_idx=step)
        average.update_parameters(model)
    assert average.module.rank.tolist() == [6, 4]


def test_what_is_averaged_is_every_so_many_steps_from_one_on():
    callback = ExponentialMovingAverage(decay=0.9, update_every_n_steps=3, update_starting_at_step=6)
    assert [step for step in range(16) if callback.should_update(step_idx=step)] == [6, 9, 12, 15]
    assert callback.kept() == pytest.approx(4 / 13)
    assert not callback.should_update(epoch_idx=3)


@pytest.mark.parametrize("settings", [{"decay": 1.0}, {"decay": -0.1}, {"decay": 0.9, "update_every_n_steps": 0}])
def test_what_averages_nothing_is_refused(settings):
    with pytest.raises(ValueError, match=r"callbacks\.averaging"):
        ExponentialMovingAverage(**settings)
