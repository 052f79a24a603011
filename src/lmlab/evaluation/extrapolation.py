"""Where a loss curve is going: a power law in the area under the learning rate, and what cooling down gains.

L = c + a S^-b - d (1 - r), S being the sum of the learning rates up to a step and r the rate there as a share of its
peak: the law of Tissue et al. 2024 (Scaling Law with Learning Rate Annealing, equation 1), whose annealing area is
taken at the moment. A schedule that is stretched to twice the steps has twice the area and the same r at its end.
"""

import math
from dataclasses import dataclass

import numpy as np

from lmlab.evaluation.curve import Curve

# Exponents that are tried. A fit needs two points more than it has coefficients.
EXPONENTS = np.linspace(0.05, 2.0, 40)
FEWEST = 6
# Shares of the loss that a rate which falls to nothing may gain: Hägele et al. 2024 found up to some five per cent.
# More would take for cooling what is plain learning, as the two go together in a cosine.
COOLING = np.linspace(0, 0.05, 6)
# Fits to resampled residuals, for the interval.
N_RESAMPLED = 200


@dataclass(frozen=True)
class Forecast:
    """What more training would bring, and the loss that it would end with, in nats a token.

    final: where the fitted curve leads; the last validation less the gain would keep the luck of that validation for
    good. low, high: of the gain, and lowest, highest: of final, 90 % of the fits to resampled residuals.
    """

    gain: float
    low: float
    high: float
    final: float
    lowest: float
    highest: float


def more_training(curve: Curve, times: float) -> Forecast | None:
    """Of `times` the area under a run's learning rate; the first quarter, where the law does not hold yet, is left out.

    None where there are too few validations.
    """
    if not len(curve.val):
        return None
    area, rate = curve.areas
    late = curve.val_steps > 0.25 * curve.val_steps[-1]
    # A law with a falling exponent never gains more from a doubling than the one before it brought.
    half = np.interp(area[-1] / 2, area, curve.val)
    most = max(0.0, float((half - curve.val[-1]) * np.log2(times)))
    return forecast(area[late], rate[late], curve.val[late], times, most=most)


def forecast(
    area: np.ndarray,
    rate: np.ndarray,
    loss: np.ndarray,
    times: float,
    end_rate: float | None = None,
    most: float = math.inf,
) -> Forecast | None:
    """After `times` the training, the schedule stretched to it. None where there are too few points.

    area: (n,) sums of learning rates at each validation; rate: (n,) as shares of the peak; loss: (n,) nats.
    end_rate: where the schedule is not stretched but goes on, the share of the peak at which it ends; `times` is then
    the area at its end by that of now. most: that can be gained.
    """
    if len(loss) < FEWEST:
        return None
    area, cooled = area / area[-1], 1 - rate
    # A rate that never falls says nothing of what cooling down gains.
    cooling = COOLING * loss[-1] if cooled.max() > 0.05 else np.zeros(1)
    powers = area[:, None] ** -EXPONENTS
    colder = 0.0 if end_rate is None else float(rate[-1] - end_rate)
    fitted, gain = _fit(powers, cooled, loss, cooling, times, colder)
    gain = min(gain, most)
    final = float(fitted[-1] - gain)
    residuals = loss - fitted
    # As large as the errors would be that the fit has taken up.
    residuals = (residuals - residuals.mean()) * np.sqrt(len(loss) / max(len(loss) - 4, 1))
    random = np.random.default_rng(0)
    fits = [
        _fit(powers, cooled, fitted + random.choice(residuals, len(loss)), cooling, times, colder)
        for _ in range(N_RESAMPLED)
    ]
    ends, gains = np.array([again[-1] for again, _ in fits]), np.array([gained for _, gained in fits])
    low, high = np.quantile(gains, [0.05, 0.95])
    lowest, highest = np.quantile(ends - np.minimum(gains, most), [0.05, 0.95])
    # What the rest of the schedule gains by cooling down may not have been seen: it may be as much as was ever found.
    unseen = COOLING[-1] * loss[-1] * max(0.0, colder) if len(cooling) == 1 else 0.0
    low, high = min(low, gain), max(min(high + unseen, most), gain)
    return Forecast(gain, *map(float, (low, high, final, min(lowest - unseen, final), max(highest, final))))


def _fit(
    powers: np.ndarray, cooled: np.ndarray, loss: np.ndarray, cooling: np.ndarray, times: float, colder: float
) -> tuple[np.ndarray, float]:
    """Least squares over all exponents and coolings at once: the fitted curve (n,), and the gain of `times` as much.

    powers: (n, exponents). colder: by how much the rate is still to fall, as a share of its peak. c and a from 0 on are
    in closed form, as of a straight line through (S^-b, L + d (1 - r)).
    """
    raised = loss[:, None] + cooled[:, None] * cooling  # (n, coolings)
    centred = powers - powers.mean(0)
    slope = np.maximum(0, centred.T @ (raised - raised.mean(0)) / (centred**2).sum(0)[:, None])
    errors = raised[:, None] - raised.mean(0) - centred[:, :, None] * slope
    b, d = np.unravel_index(int((errors**2).sum(0).argmin()), slope.shape)
    fitted = raised[:, d].mean() + centred[:, b] * slope[b, d] - cooling[d] * cooled
    return fitted, float(slope[b, d] * (1 - times ** -EXPONENTS[b]) + cooling[d] * colder)
