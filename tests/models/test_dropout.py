import pytest
import torch
import torch.nn.functional as F

from lmlab.models.dropout import LockedDropout, drop_weights, drop_words


@pytest.mark.parametrize("time_dim", [0, 1])
def test_locked_dropout_has_one_mask_for_all_positions_of_a_row(time_dim):
    torch.manual_seed(0)
    out = LockedDropout(0.5, time_dim)(torch.ones(6, 6, 50))
    masks = out.unbind(time_dim)
    assert all(torch.equal(mask, masks[0]) for mask in masks)
    rows = out.select(time_dim, 0)
    assert not torch.equal(rows[0], rows[1])


def test_locked_dropout_keeps_the_mean_and_draws_anew_at_each_call():
    torch.manual_seed(0)
    drop = LockedDropout(0.25)
    x = torch.ones(100, 2, 100)
    assert sorted(drop(x).unique().tolist()) == pytest.approx([0, 1 / 0.75])
    assert drop(x).mean() == pytest.approx(1, abs=0.02)
    assert not torch.equal(drop(x), drop(x))


def test_nothing_is_dropped_in_evaluation():
    x = torch.randn(2, 3, 4)
    assert LockedDropout(0.5).eval()(x) is x


def test_dropping_words_equals_dropping_rows_of_the_matrix():
    torch.manual_seed(0)
    weight, tokens = torch.randn(30, 4), torch.randint(30, (5, 40))
    out = drop_words(F.embedding(tokens, weight), tokens, 30, 0.5)
    # By hand: a word is zero wherever it occurs, or doubled wherever it occurs.
    for word in tokens.unique():
        found = out[tokens == word]
        assert torch.equal(found, torch.zeros_like(found)) or torch.equal(found, (2 * weight[word]).expand_as(found))
    assert 0 < (out == 0).float().mean() < 1


def test_dropped_weights_are_a_new_matrix_through_which_gradients_flow():
    weight = torch.ones(50, 50, requires_grad=True)
    dropped = drop_weights(weight, 0.5)
    dropped.sum().backward()
    assert torch.equal(weight.grad, dropped)  # 0 where dropped, 2 where kept
    assert 0.4 < (dropped == 0).float().mean() < 0.6
    assert torch.equal(weight, torch.ones(50, 50))


@pytest.mark.parametrize("p", [-0.1, 1.0])
def test_a_rate_that_is_no_probability_is_refused(p):
    with pytest.raises(ValueError, match=f"dropout={p} must be at least 0 and below 1"):
        LockedDropout(p)
