"""Mixtures: weights of probabilities that are found by maximum likelihood on text that is not tested on."""

import numpy as np


def interpolate(ours: np.ndarray, theirs: np.ndarray, weight: float) -> np.ndarray:
    """-ln((1 - weight) exp(-ours) + weight exp(-theirs)): nats of a mixture, theirs having `weight`."""
    if weight in (0.0, 1.0):
        return (theirs if weight else ours).astype(np.float64)
    return -np.logaddexp(np.log1p(-weight) - ours.astype(np.float64), np.log(weight) - theirs.astype(np.float64))


def best_weight(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The weight of theirs by which the mixture of the two costs least, from (n,) nats of each of the same tokens.

    The log-likelihood is concave in the weight (Jelinek and Mercer 1980), so the one root of its slope, found by
    bisection, is the best; 0 or 1 where one of the two alone is.
    """
    # P_theirs / P_ours, bounded so that an impossible token of one side makes no inf.
    ratio = np.exp(np.clip(ours.astype(np.float64) - theirs, -500, 500))
    if ratio.mean() <= 1:
        return 0.0
    if (1 / ratio).mean() <= 1:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        # The derivative of the log-likelihood, which falls with the weight.
        slope = ((ratio - 1) / (1 + middle * (ratio - 1))).mean()
        low, high = (middle, high) if slope > 0 else (low, middle)
    return (low + high) / 2
