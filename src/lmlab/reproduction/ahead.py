"""Where the curve of an unfinished run leads by the end of its recipe."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from omegaconf import DictConfig

from lmlab.evaluation.curve import Curve
from lmlab.evaluation.extrapolation import COOLING, FEWEST, forecast
from lmlab.experiment import build_schedule

# Points that a training loss is averaged to, where there are too few validations to extrapolate.
BINS = 24


def ahead(
    points: Sequence[Mapping[str, Any]],
    decided: Mapping[str, Any],
    recipe: DictConfig,
    config: DictConfig,
    done: int,
    whole: int,
) -> dict[str, Any] | None:
    """Where the curve leads by the recipe's end, in nats a token less than now; None where it says nothing.

    By the fitted curve from its own last point on, as a gain is taken off what the run has measured on a whole split.
    points: the rows of curves.csv. decided: of config.yaml. done, whole: steps. times: how many times as much training
    there would be, by the area under the learning rate. by: what was extrapolated.
    """
    if whole <= done or not points:
        return None
    curve, by = Curve.of(points), "validations"
    late = curve.val_steps > 0.25 * done
    if late.sum() < FEWEST:
        curve, by = averaged(curve), "training loss"
        late = curve.val_steps > 0.25 * done
    if late.sum() < FEWEST:
        return None
    times, end_rate = end_of_schedule(recipe, config, decided, done, whole)
    area, rate = curve.areas
    found = forecast(area[late], rate[late], curve.val[late], times, end_rate)
    # A law with a falling exponent gains less from each doubling than from the one before it, cooling down gains what
    # it was ever found to, and no loss is negative.
    last = max(0.0, float(np.interp(area[-1] / 2, area, curve.val) - curve.val[-1]))
    colder = 0.0 if end_rate is None else max(0.0, float(rate[-1] - end_rate))
    most = math.log2(max(times, 1.0)) * last + COOLING[-1] * float(curve.val[-1]) * colder
    most = min(most, float(curve.val[-1]))
    gain = min(found.gain, most)
    return {
        "gain": gain,
        "low": min(found.low, gain),
        "high": max(min(found.high, most), gain),
        "times": times,
        "by": by,
    }


def averaged(curve: Curve) -> Curve:
    """With means of the training loss in place of validations."""
    parts = np.array_split(np.arange(len(curve.loss)), min(BINS, len(curve.loss)))
    loss = np.array([curve.loss[part].mean() for part in parts])
    steps = np.array([curve.steps[part[-1]] for part in parts])
    return replace(curve, val_steps=steps, val=loss, gap=np.full(len(loss), np.nan))


def end_of_schedule(
    recipe: DictConfig, config: DictConfig, decided: Mapping[str, Any], done: int, whole: int
) -> tuple[float, float | None]:
    """What is still to come by the area under the learning rate, and the rate at the end as a share of its peak.

    The rate is None where the schedule has been stretched to fewer steps, or follows what validations say.
    """
    own = build_schedule(config.schedule, decided["total_steps"], decided["steps_per_epoch"])
    full = build_schedule(recipe.schedule, whole, decided["steps_per_epoch"])
    if full.state_dict():
        return whole / done, None
    past = np.array([own.factor(step) for step in range(done)])
    factors = np.array([full.factor(step) for step in range(whole)])
    if not np.array_equal(past, factors[:done]):
        return whole / done, None
    return float(factors.sum() / past.sum()), float(factors[-1] / past.max())
