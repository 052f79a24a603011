import copy
import math

import pytest
import torch

from lmlab.models import attention as attention_module
from lmlab.models.attention import (
    PRODUCTS,
    Attention,
    Placement,
    alibi_slopes,
    rotary_angles,
    rotate,
)

CPU = torch.device("cpu")


def test_angles_of_far_positions_are_exact():
    position = 12_345_678
    cos, sin = rotary_angles(torch.tensor([position]), d_head=6, base=10000.0)
    for i in range(3):
        angle = position * 10000.0 ** (-2 * i / 6)
        for j in (i, i + 3):
            assert cos[0, 0, j].item() == pytest.approx(math.cos(angle), abs=1e-6)
        assert sin[0, 0, i].item() == pytest.approx(-math.sin(angle), abs=1e-6)
        assert sin[0, 0, i + 3].item() == pytest.approx(math.sin(angle), abs=1e-6)


def test_rotated_scores_depend_on_distance_alone():
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    scores = []
    for start in (0, 17, 100_000):
        at = rotary_angles(torch.tensor([start + 5, start]), d_head=8, base=10000.0)
        scores.append((rotate(q, *(t[0] for t in at)) * rotate(k, *(t[1] for t in at))).sum())
    torch.testing.assert_close(scores[0], scores[1], atol=1e-6, rtol=0)
    torch.testing.assert_close(scores[0], scores[2], atol=1e-6, rtol=0)


def test_alibi_slopes_are_the_published_ones():
    assert alibi_slopes(8) == [2.0**-i for i in range(1, 9)]
    assert alibi_slopes(4) == [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8]
    # Twelve heads: the eight above, then every other slope of sixteen heads.
    assert alibi_slopes(12) == [2.0**-i for i in range(1, 9)] + [2.0**-0.5, 2.0**-1.5, 2.0**-2.5, 2.0**-3.5]


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("alibi", [False, True])
@pytest.mark.parametrize("band", [1, 3, 11, 30])
def test_attention_is_softmax_over_the_band(band, alibi, n_kv_heads):
    torch.manual_seed(0)
    T, H, d = 11, 4, 6
    attention = Attention(
        8, H, n_kv_heads, d, bias=True, qk_norm=False, norm="rms", norm_eps=1e-6, dropout=0.0, kernel="auto"
    )
    x = torch.randn(2, T, 8)
    slopes = torch.tensor(alibi_slopes(H)) if alibi else None
    place = Placement.of(T, band, count=None, in_place=False, rotary=None, slopes=slopes, device=CPU)
    y, _ = attention(x, place, None)

    q, k, v = attention.qkv(x).split([H * d, n_kv_heads * d, n_kv_heads * d], -1)
    heads = []
    for h in range(H):
        kv = h // (H // n_kv_heads)
        qh, kh, vh = q[..., h * d : (h + 1) * d], k[..., kv * d : (kv + 1) * d], v[..., kv * d : (kv + 1) * d]
        out = torch.zeros(2, T, d)
        for t in range(T):
            seen = range(max(0, t - band + 1), t + 1)
            score = torch.stack([(qh[:, t] * kh[:, s]).sum(-1) / d**0.5 for s in seen], -1)
            if alibi:
                score = score - torch.tensor([(t - s) * alibi_slopes(H)[h] for s in seen])
            out[:, t] = (score.softmax(-1)[..., None] * vh[:, list(seen)]).sum(1)
        heads.append(out)
    torch.testing.assert_close(y, attention.out(torch.cat(heads, -1)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("band", [12, 5])
@pytest.mark.parametrize("positions", ["alibi", "rotary"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_what_torchs_attention_is_forward_and_backward(positions, band, dtype):
    torch.manual_seed(0)
    T, H, d = 12, 4, 6
    ours, torchs = (
        Attention(24, H, H, d, bias=False, qk_norm=True, norm="layer", norm_eps=1e-6, dropout=0.0, kernel=kernel)
        for kernel in ("products", "sdpa")
    )
    torchs.load_state_dict(ours.state_dict())
    slopes = torch.tensor(alibi_slopes(H)) if positions == "alibi" else None
    rotary = rotary_angles(torch.arange(T), d, 100.0) if positions == "rotary" else None
    place = Placement.of(T, band, count=None, in_place=False, rotary=rotary, slopes=slopes, device=CPU)
    x, seed = torch.randn(3, T, 24), torch.randn(3, T, 24)

    def run(attention, kind):
        attention = copy.deepcopy(attention).to(kind)
        given = x.to(kind).requires_grad_()
        y, _ = attention(given, place, None)
        y.backward(seed.to(kind))
        weights = torch.cat([p.grad.flatten() for p in attention.parameters()])
        return [t.float() for t in (y, given.grad, weights)]

    for ours_t, torchs_t, exact in zip(run(ours, dtype), run(torchs, dtype), run(torchs, torch.float32), strict=True):
        if dtype is torch.float32:
            torch.testing.assert_close(ours_t, exact, atol=1e-5, rtol=1e-5)
        else:
            # bf16: no further from fp32 than torch's own, give or take the luck of rounding.
            assert (ours_t - exact).norm() < 1.5 * (torchs_t - exact).norm()


def test_the_kernel_is_chosen_by_shape_and_device(monkeypatch):
    calls = []
    attend = attention_module.attend
    monkeypatch.setattr(attention_module, "attend", lambda *given: calls.append(given[0].shape[2]) or attend(*given))

    def run(T, kernel="auto", n_kv_heads=2, dropout=0.0):
        attention = Attention(8, 2, n_kv_heads, 4, False, False, "rms", 1e-6, dropout, kernel)
        place = Placement.of(T, T, count=None, in_place=False, rotary=None, slopes=None, device=CPU)
        attention(torch.randn(1, T, 8), place, None)

    for given in ({"T": PRODUCTS}, {"T": PRODUCTS + 1}, {"T": 1}, {"T": 8, "dropout": 0.1}, {"T": 8, "kernel": "sdpa"}):
        run(**given)
    run(T=8, n_kv_heads=1, kernel="products")
    run(T=PRODUCTS + 1, kernel="products")
    assert calls == [PRODUCTS, PRODUCTS + 1]
    with pytest.raises(ValueError, match="attention=flash is not an option: choose auto, sdpa, products"):
        run(T=8, kernel="flash")


def test_the_cache_of_a_long_text_is_a_ring():
    attention = Attention(8, 2, 2, 4, bias=False, qk_norm=False, norm="rms", norm_eps=1e-6, dropout=0.0, kernel="auto")
    x = torch.randn(1, 10, 8)
    place = Placement.of(10, 4, count=None, in_place=False, rotary=None, slopes=None, device=CPU)
    _, (k, _) = attention(x, place, None)
    every = attention.qkv(x)[0, :, 8:16].view(10, 2, 4)
    # Of positions 6 7 8 9, position p lies in slot p mod 4.
    for slot, position in enumerate((8, 9, 6, 7)):
        torch.testing.assert_close(k[0, :, slot], every[position])
