"""Sums of likelihood: by hand, and the same whichever way they are added."""

import math

import torch

from lmlab.metrics import TokenNLL


def batches():
    random = torch.Generator().manual_seed(0)
    for masked in (False, True, False):
        nll = torch.rand(3, 4, generator=random)
        mask = torch.rand(3, 4, generator=random) > 0.5 if masked else None
        yield nll, mask, torch.randint(1, 9, (3, 3), generator=random)


def test_adding_is_updating():
    added, updated = TokenNLL(), TokenNLL()
    for batch in batches():
        added.add(*batch)
        updated.update(*batch)
    assert added.likelihood() == updated.likelihood()
    assert added.update_count == updated.update_count == 3


def test_what_was_added_after_a_reading_counts_too():
    metric = TokenNLL()
    metric.add(torch.tensor([[1.0, 2.0]]))
    assert metric.likelihood().nats == 3
    metric.add(torch.tensor([[4.0]]), torch.tensor([[True]]), torch.tensor([[5, 4, 1]]))
    likelihood = metric.likelihood()
    assert (likelihood.nats, likelihood.tokens, likelihood.bytes) == (7, 3, 5)
    assert math.isclose(likelihood.nll, 7 / 3)


def test_a_reset_starts_from_nothing_again():
    """Sums are added in place, and must not be added to what a reset copies."""
    metric = TokenNLL()
    for _ in range(2):
        metric.add(torch.tensor([[1.0, 2.0]]))
        assert metric.likelihood().nats == 3
        metric.reset()
