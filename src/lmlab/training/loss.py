"""The loss of a step: the mean nll of its targets, with activation regularisation where that is asked for.

AR is a mean over targets of the dropped output, TAR one over pairs of neighbours of the undropped (Merity et al. 2017,
section 4.2); padding counts in neither. Sums are divided by what counts in the whole step: the same gradient however
its batch is cut.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool
from torch import Tensor

from lmlab.types import NLL, Batch, Hidden, Mask


def denominators(batch: Batch, gather: Callable[[Tensor], Tensor] | None) -> tuple[float, float]:
    """Targets of the step, and pairs of neighbours among them.

    gather: of several processes, (2,) of this one -> (ranks, 2); the mean over them, as DDP averages gradients.
    """
    if batch.mask is None:
        n_rows, length = batch.targets.shape
        return float(n_rows * length), float(max(n_rows * (length - 1), 1))
    if batch.lengths is not None and gather is None:
        # Known without asking a GPU.
        counts = torch.stack((batch.lengths.sum(), (batch.lengths - 1).clamp(min=0).sum()))
    else:
        counts = torch.stack((batch.mask.sum(), _pairs(batch.mask).sum()))
    if gather is not None:
        of_ranks = gather(counts)
        counts = of_ranks.sum(0) / len(of_ranks)
    n_targets, n_pairs = counts.tolist()
    return float(n_targets), float(max(n_pairs, 1))


def share(
    nll: NLL,
    hidden: Hidden,
    dropped: Hidden,
    mask: Mask | None,
    n_targets: float,
    n_pairs: float,
    ar: float,
    tar: float,
) -> Tensor:
    """What some rows add to the step's loss, a scalar. dropped: hidden as the head reads it. ar, tar: weights."""
    loss = _sum(nll, mask) / n_targets
    if ar:
        loss = loss + ar * _sum(dropped.float().pow(2).mean(-1), mask) / n_targets
    if tar:
        change = (hidden[:, 1:] - hidden[:, :-1]).float().pow(2).mean(-1)
        loss = loss + tar * _sum(change, _pairs(mask)) / n_pairs
    return loss


def _sum(values: Tensor, mask: Mask | None) -> Tensor:
    """The sum of what counts. `where`, not a product: a padded position may hold nan or inf."""
    return values.sum() if mask is None else torch.where(mask, values, 0.0).sum()


def _pairs(mask: Mask | None) -> Bool[Tensor, "B T-1"] | None:
    """Where a target counts and the one before it too."""
    return None if mask is None else mask[:, 1:] & mask[:, :-1]
