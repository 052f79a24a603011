"""The loss of a step, worked out by hand, and the same however its rows are cut."""

import pytest
import torch
from torch import Tensor

from lmlab.training import loss
from lmlab.types import Batch


def padded() -> Batch:
    """Rows of 3, 1 and 0 targets."""
    lengths = torch.tensor([3, 1, 0])
    tokens = torch.zeros(3, 3, dtype=torch.int64)
    return Batch(tokens, tokens, mask=torch.arange(3) < lengths[:, None], lengths=lengths)


def share(batch: Batch, nll: Tensor, hidden: Tensor, dropped: Tensor, counts: tuple[float, float]) -> float:
    return loss.share(nll, hidden, dropped, batch.mask, *counts, ar=2.0, tar=3.0).item()


def test_targets_and_pairs_are_counted_without_padding():
    whole = Batch(torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 5, dtype=torch.int64))
    assert loss.denominators(whole, None) == (10.0, 8.0)
    assert loss.denominators(padded(), None) == (4.0, 2.0)
    # Of two processes the other has 2 targets and no pair: (4 + 2) / 2 and (2 + 0) / 2.
    assert loss.denominators(padded(), lambda counts: torch.stack([counts, torch.tensor([2, 0])])) == (3.0, 1.0)


def test_loss_and_regularisation_are_as_worked_out_by_hand():
    batch, nan = padded(), float("nan")
    nll = torch.tensor([[1.0, 2.0, 3.0], [4.0, nan, nan], [nan, nan, nan]])
    # Of width 1. Changes 1 and 2 in the first row; the second has no pair.
    hidden = torch.tensor([[0.0, 1.0, 3.0], [5.0, nan, nan], [nan, nan, nan]])[..., None]
    dropped = 2 * hidden
    # (1 + 2 + 3 + 4) / 4; 2 (0 + 4 + 36 + 100) / 4; 3 (1 + 4) / 2.
    expected = 2.5 + 70.0 + 7.5
    counts = loss.denominators(batch, None)
    assert share(batch, nll, hidden, dropped, counts) == pytest.approx(expected)
    parts = (
        share(batch.rows(i, i + 1), nll[i : i + 1], hidden[i : i + 1], dropped[i : i + 1], counts) for i in range(3)
    )
    assert sum(parts) == pytest.approx(expected)
