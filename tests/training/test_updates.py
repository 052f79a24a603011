"""How far a step moves the weights."""

import pytest
import torch
from torch import nn

from lmlab.training.updates import SAMPLED, sampled, update_ratio


def test_the_ratio_is_of_the_matrix_that_moved_furthest_for_its_size():
    """By hand: a change of 0.1 in each entry of a matrix of ones is a tenth of it, in one of tens a hundredth."""
    weights = [nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.full((5, 2), 10.0)), nn.Parameter(torch.zeros(7))]
    before = sampled(weights)
    with torch.no_grad():
        for weight in weights:
            weight += 0.1
    assert update_ratio(before, weights).item() == pytest.approx(0.1)


def test_large_matrices_are_sampled_and_the_ratio_is_about_that_of_the_whole():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(300, 500))
    before = sampled([weight])
    assert SAMPLED <= before[0].numel() <= 2 * SAMPLED
    change = 0.05 * torch.randn(300, 500)
    whole = (change.norm() / weight.norm()).item()
    with torch.no_grad():
        weight += change
    assert update_ratio(before, [weight]).item() == pytest.approx(whole, rel=0.1)


@pytest.mark.parametrize("shape", [(1024, 1024), (256, 1024), (768, 256), (2048, 512)])
def test_all_columns_are_looked_at(shape):
    weight = nn.Parameter(torch.ones(shape))
    before = sampled([weight])
    assert SAMPLED <= before[0].numel() <= 2 * SAMPLED
    with torch.no_grad():
        weight[:, shape[1] // 2 :] += 0.1
    # Half of the entries moved by a tenth.
    assert update_ratio(before, [weight]).item() == pytest.approx(0.1 / 2**0.5, rel=0.1)


def test_vectors_alone_have_no_ratio():
    vector = [nn.Parameter(torch.ones(4))]
    assert update_ratio(sampled(vector), vector).isnan()
