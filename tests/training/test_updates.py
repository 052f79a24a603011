"""Norms of a step."""

import pytest
import torch
from torch import nn

from lmlab.training.updates import SAMPLED, sampled, total_norm, update_ratio


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


def test_the_gradients_norm_is_that_of_one_vector():
    """By hand: 3, 4 and 12, in matrices of any layout."""
    gradients = [torch.tensor([[3.0, 0.0], [0.0, 4.0]]).t(), torch.zeros(5), torch.tensor([12.0])]
    assert total_norm(gradients).item() == pytest.approx(13)
    assert total_norm([g.to(torch.bfloat16) for g in gradients]).item() == pytest.approx(13)
    assert total_norm([]).item() == 0
    assert total_norm([torch.tensor([float("nan")])]).isnan()


def test_the_norm_of_many_numbers_is_exact():
    torch.manual_seed(0)
    gradient = torch.rand(10_000, 200)
    assert total_norm([gradient]).item() == pytest.approx(gradient.double().norm().item(), rel=1e-4)
