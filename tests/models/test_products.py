import pytest
import torch
import torch.nn.functional as F

from lmlab.models.products import attend

B, H, T, d = 2, 3, 7, 4


@pytest.fixture
def qkv():
    torch.manual_seed(0)
    return torch.randn(3, B, H, T, d, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("kind", ["causal", "seen", "added for all rows", "added for each row"])
def test_it_is_torchs_attention_under_every_kind_of_mask(kind, qkv):
    masks = {
        "causal": None,
        "seen": (torch.rand(B, 1, T, T) < 0.5) | torch.eye(T, dtype=torch.bool),
        "added for all rows": torch.randn(1, H, T, T, dtype=torch.float64),
        "added for each row": torch.randn(B, 1, T, T, dtype=torch.float64),
    }
    expected = F.scaled_dot_product_attention(*qkv, attn_mask=masks[kind], is_causal=masks[kind] is None)
    torch.testing.assert_close(attend(*qkv, masks[kind]), expected)


def test_its_gradient_is_the_numerical_one(qkv):
    mask = (
        torch.randn(1, H, T, T, dtype=torch.float64).triu(1).masked_fill_(torch.ones(T, T).triu(2) > 0, float("-inf"))
    )
    assert torch.autograd.gradcheck(lambda qkv: attend(*qkv, mask), qkv)


def test_what_is_masked_does_not_matter_however_large_it_is(qkv):
    with torch.no_grad():
        before = attend(*qkv, None)
        qkv[1:, :, :, -1] = 1e4
        after = attend(*qkv, None)
    torch.testing.assert_close(after[:, :, :-1], before[:, :, :-1])
