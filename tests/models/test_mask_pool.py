import pytest
import torch

from lmlab.models import mask_pool
from lmlab.models.mask_pool import PooledDropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_right_share_is_dropped_and_the_mean_is_kept(dtype):
    dropout, x = PooledDropout(0.2).train(), torch.ones(40, 50, 64, dtype=dtype)
    y = dropout(x)
    assert y.dtype is dtype
    assert sorted(set(y.flatten().tolist())) == pytest.approx([0.0, 1.25])
    # 128,000 units: five standard deviations of the share are 0.0056.
    assert y.eq(0).float().mean().item() == pytest.approx(0.2, abs=0.0056)


def test_a_seed_repeats_the_masks_and_calls_differ():
    dropout, x = PooledDropout(0.5).train(), torch.ones(1000)
    torch.manual_seed(3)
    first, second = dropout(x), dropout(x)
    torch.manual_seed(3)
    assert torch.equal(dropout(x), first)
    assert torch.equal(dropout(x), second)
    # Of independent masks half the units agree.
    assert first.eq(second).float().mean().item() == pytest.approx(0.5, abs=0.1)


def test_gradients_pass_where_units_are_kept():
    dropout, x = PooledDropout(0.5).train(), torch.randn(8, 32, requires_grad=True)
    y = dropout(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.where(y == 0, 0.0, 2.0))


def test_nothing_is_dropped_in_evaluation_or_at_rate_zero():
    x = torch.randn(4, 32)
    assert PooledDropout(0.5).eval()(x) is x
    assert PooledDropout(0.0).train()(x) is x
    with pytest.raises(ValueError, match=r"dropout=1\.0 must be at least 0 and below 1"):
        PooledDropout(1.0)


def test_what_the_pool_is_too_small_for_is_dropped_as_usual(monkeypatch):
    monkeypatch.setattr(mask_pool, "SIZE", 64)
    torch.manual_seed(0)
    y = PooledDropout(0.5).train()(torch.ones(10_000))
    assert y.eq(0).float().mean().item() == pytest.approx(0.5, abs=0.03)
