import pytest
import torch
import torch.nn.functional as F

from lmlab.models.dropout import Dropout, LockedDropout, drop, drop_weights, drop_words


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_every_entry_is_dropped_with_the_same_probability_and_the_mean_is_kept(p, dtype):
    torch.manual_seed(0)
    # Four numbers share a random word: each of the four lanes is looked at, and the odd end.
    out = torch.stack([drop(torch.ones(31, dtype=dtype), p) for _ in range(4000)])
    share = (out == 0).double().mean(0)
    # 5 standard deviations of a mean of 4000.
    assert (share - p).abs().max() < 5 * (p * (1 - p) / 4000) ** 0.5
    rounding = 5e-3 if dtype is torch.bfloat16 else 2e-4
    assert out[out != 0].unique().tolist() == pytest.approx([1 / (1 - p)], rel=rounding)
    # Neighbours, and lanes of neighbouring words, are independent.
    for apart in (1, 4):
        both = ((out[:, apart:] == 0) & (out[:, :-apart] == 0)).double().mean()
        assert abs(both - p * p) < 0.01


def test_dropout_gives_the_same_mask_forward_and_backward_and_follows_the_seed():
    x = torch.ones(7, 9, requires_grad=True)
    torch.manual_seed(3)
    out = Dropout(0.5)(x)
    out.sum().backward()
    assert torch.equal(x.grad, out)
    torch.manual_seed(3)
    assert torch.equal(Dropout(0.5)(x), out)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x


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


@pytest.mark.parametrize("n", [7, 65_536])
def test_of_all_that_is_dropped_nothing_is_left(n):
    x = torch.ones(n, requires_grad=True)
    out = Dropout(1.0)(x)
    out.sum().backward()
    assert not out.any()
    assert not x.grad.any()


@pytest.mark.parametrize("n", [7, 65_536])
def test_numbers_are_dropped_where_they_lie_whatever_device_is_the_usual_one(n):
    x = torch.ones(n)
    before = torch.get_default_device()
    torch.set_default_device("meta")
    try:
        out = drop(x, 0.5)
    finally:
        torch.set_default_device(before)
    assert out.device == x.device
    assert set(out.tolist()) <= {0.0, 2.0}
