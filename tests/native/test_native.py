"""Kernels of C are PyTorch's operations, in each type, at awkward sizes and values, on however many threads."""

import math
import os
import shlex
import shutil
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmlab import native

COMPILER = shlex.split(os.environ.get("CC", "")) or ["gcc"]
NOWHERE = sys.platform != "linux" or os.environ.get("LMLAB_NATIVE") == "0" or shutil.which(COMPILER[0]) is None
pytestmark = pytest.mark.skipif(NOWHERE, reason="kernels are compiled by gcc, on Linux, unless LMLAB_NATIVE=0")

BOTH = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
INF, NAN = math.inf, math.nan
# One number, one column, one row, and more than a thread's stretch; but for the first no multiple of 16.
SHAPES = [(1,), (5, 1), (1, 33), (3, 5, 47), (20011,)]
POINTWISE = {
    "gelu": (native.gelu, native.gelu_backward, lambda x: F.gelu(x, approximate="tanh"), 1),
    "squared_relu": (native.squared_relu, native.squared_relu_backward, lambda x: F.relu(x).square(), 1),
    "swiglu": (native.swiglu, native.swiglu_backward, lambda gate, up: F.silu(gate) * up, 2),
}


def normal(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0, by: float = 1.0) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * by).to(dtype)


def check(found: Tensor, exact: Tensor, absolute: float = 1e-6) -> None:
    """Arithmetic is fp32: a few roundings of 6e-8 each, of what is about 1 before differences cancel (`absolute`).

    So an fp32 result is exact to 1e-6; one in bf16 falls into the exact number's interval or, at its edge, the next.
    """
    exact = exact.detach()
    assert torch.equal(found.isnan(), exact.isnan())
    if found.dtype is torch.float32:
        torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=absolute, equal_nan=True)
        return
    rounded = exact.to(found.dtype).double().nan_to_num(nan=0.0)
    ulp = torch.ldexp((rounded != 0).double(), torch.frexp(rounded).exponent - 8)
    off = (found.double().nan_to_num(nan=0.0) - rounded).abs()
    assert (off <= ulp + absolute).all(), f"{(off / (ulp + absolute)).max():.2f} of what is allowed"


def as_tuple(x: Tensor | tuple) -> tuple:
    return x if isinstance(x, tuple) else (x,)


@BOTH
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", POINTWISE)
def test_a_function_of_single_numbers_and_its_gradient_are_pytorchs(name, shape, dtype):
    ours, back, theirs, n = POINTWISE[name]
    inputs = [normal(shape, dtype, seed, by=4.0) for seed in range(n)]
    for x in inputs:
        x.view(-1)[:5] = torch.tensor([50.0, -50.0, 0.0, -0.0, 1e-3])[: x.numel()]
    dy = normal(shape, dtype, seed=9)
    exact = [x.double().requires_grad_() for x in inputs]
    y = theirs(*exact)
    check(ours(*inputs), y)
    # 1 - sigmoid cancels, and what that errs is multiplied by up to 20: GELU's inner slope.
    for found, expected in zip(as_tuple(back(*inputs, dy)), torch.autograd.grad(y, exact, dy.double()), strict=True):
        check(found, expected, absolute=1e-5)


@BOTH
@pytest.mark.parametrize("name", POINTWISE)
def test_nan_stays_and_infinity_does_not_become_a_number(name, dtype):
    ours, back, _, n = POINTWISE[name]
    x = normal((37,), dtype)
    x[[3, 20, 36]], x[5] = NAN, INF
    one = torch.ones_like(x)
    outputs = [ours(x, *[one] * (n - 1)), *as_tuple(back(x, *[one] * (n - 1), one))]
    assert all(y[[3, 20, 36]].isnan().all() for y in outputs)
    assert all(y.isnan().sum() <= 4 for y in outputs)  # back, what PyTorch makes of infinity is NaN too
    assert outputs[0][5] == INF
    bad = one.clone()
    bad[7] = NAN
    assert all(y[7].isnan() and y.isnan().sum() == 1 for y in as_tuple(back(one, *[one] * (n - 1), bad)))


@BOTH
@pytest.mark.parametrize("name", POINTWISE)
def test_a_number_does_not_depend_on_its_place(name, dtype):
    """Whole vectors and what is left over are reckoned alike, wherever memory begins."""
    ours, _, _, n = POINTWISE[name]
    inputs = [normal((67,), dtype, seed, by=3.0) for seed in range(n)]
    whole = ours(*inputs)
    assert torch.equal(ours(*(x[1:] for x in inputs)), whole[1:])
    assert torch.equal(torch.cat([ours(*(x[i : i + 1] for x in inputs)) for i in range(67)]), whole)


SCORES = [(1, 1, 1, 1), (2, 3, 5, 5), (1, 2, 3, 37), (2, 1, 1, 70), (1, 2, 40, 43)]


def masks(kind: str, shape: tuple[int, ...]) -> tuple[Tensor | None, Tensor]:
    """What the kernel is given, and what is to be added."""
    _, H, Q, K = shape
    if kind == "causal":
        return None, torch.zeros(Q, K).masked_fill(~torch.ones(Q, K, dtype=torch.bool).tril(K - Q), -INF)
    mask = normal((1 if kind == "one mask" else H, Q, K), torch.float32, seed=5)
    hidden = torch.rand(mask.shape, generator=torch.Generator().manual_seed(6)) < 0.3
    hidden[..., 0] = False
    mask = mask.masked_fill(hidden, -INF)
    return mask, mask


@BOTH
# A power of two: rounding scale * score would be an error in the exponent as large as the score.
@pytest.mark.parametrize("by", [2.0, 1e4])
@pytest.mark.parametrize("shape", SCORES, ids=str)
@pytest.mark.parametrize("kind", ["causal", "one mask", "a mask for each head"])
def test_softmax_of_attention_is_pytorchs(kind, shape, by, dtype):
    scores = normal(shape, dtype, by=by)
    mask, added = masks(kind, shape)
    exact = torch.softmax(scores.double() * 0.5 + added.double(), -1)
    found = native.attention_softmax_(scores, 0.5, mask)
    assert found is scores
    # A mask is added to a score of up to 2e4 in fp32: half a unit in the last place of that is 1e-3.
    check(found, exact, absolute=1e-6 if by == 2.0 or mask is None else 2e-3)
    assert (found[(added == -INF).expand(shape)] == 0).all()


@BOTH
def test_a_softmax_is_nan_where_a_score_that_is_seen_is(dtype):
    scores = normal((1, 1, 4, 40), dtype)
    scores[0, 0, 1, 2] = NAN
    scores[0, 0, 2, 39] = NAN  # which the third of four queries does not see
    rows = native.attention_softmax_(scores.clone(), 1.0, None)[0, 0].isnan()
    assert rows[1, :38].all()
    assert not rows[[0, 2, 3]].any()
    nowhere = torch.zeros(1, 4, 40)
    nowhere[0, 3] = -INF
    found = native.attention_softmax_(scores, 1.0, nowhere)[0, 0].isnan()
    assert found[1:].all()
    assert not found[0].any()


def test_a_mask_of_another_shape_or_type_is_refused():
    scores = torch.zeros(1, 3, 2, 4)
    for mask in (torch.zeros(2, 2, 4), torch.zeros(1, 2, 4, dtype=torch.bfloat16)):
        with pytest.raises(ValueError, match="must be fp32 of"):
            native.attention_softmax_(scores, 1.0, mask)


def test_rows_without_keys_and_too_long_ones_are_refused():
    with pytest.raises(ValueError, match="3 queries and 2 keys"):
        native.attention_softmax_(torch.zeros(1, 1, 3, 2), 1.0, None)
    with pytest.raises(ValueError, match="3 queries and 2 keys"):
        native.attention_softmax_backward_(torch.zeros(1, 3, 2), torch.zeros(1, 3, 2), 1.0, True)
    for mask in (None, torch.zeros(1, 1, 4097)):
        with pytest.raises(ValueError, match="at most 4096"):
            native.attention_softmax_(torch.zeros(1, 1, 1, 4097), 1.0, mask)
    assert (native.attention_softmax_(torch.zeros(1, 1, 1, 4096), 1.0, None) == 1 / 4096).all()


@BOTH
@pytest.mark.parametrize("shape", SCORES, ids=str)
@pytest.mark.parametrize("kind", ["causal", "a mask for each head"])
def test_the_softmaxs_gradient_is_pytorchs(kind, shape, dtype):
    scores = normal(shape, torch.float64).requires_grad_()
    mask, added = masks(kind, shape)
    p = torch.softmax(scores * 0.3 + added.double(), -1)
    d = normal(shape, dtype, seed=3)
    kept = p.detach().to(dtype)
    flat = (-1, *shape[2:])
    if dtype is torch.float32:
        (exact,) = torch.autograd.grad(p, scores, d.double())
    else:  # of p as it was rounded
        exact = torch._softmax_backward_data(d.double(), kept.double(), -1, torch.float64) * 0.3
    found = native.attention_softmax_backward_(kept.view(flat), d.view(flat), 0.3, mask is None)
    check(found.view(shape), exact)
    assert (found.view(shape)[(added == -INF).expand(shape)] == 0).all()


@BOTH
@pytest.mark.parametrize("by", [1e-2, 1.0, 50.0, 1e4])
@pytest.mark.parametrize(("B", "H"), [(1, 1), (3, 5), (2, 35)])
def test_a_step_of_an_lstm_and_its_gradients_are_pytorchs(B, H, by, dtype):
    z, before = normal((B, 4 * H), dtype, by=by), normal((B, H), torch.float32, seed=1)
    gates, after, h = torch.empty(B, 4 * H), torch.empty(B, H), torch.empty(B, H, dtype=dtype)
    native.lstm_step(z, before, gates, after, h)
    cell = nn.LSTMCell(4 * H, H, bias=False).double()
    cell.weight_ih.data, cell.weight_hh.data = torch.eye(4 * H).double(), torch.zeros(4 * H, H).double()
    exact = [z.double().requires_grad_(), before.double().requires_grad_()]
    their_h, their_c = cell(exact[0], (torch.zeros(B, H).double(), exact[1]))
    i, f, g, o = exact[0].chunk(4, -1)
    check(gates, torch.cat([i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()], -1))
    check(after, their_c)
    check(h, their_h)
    dy, dh, dc = normal((B, H), dtype, 2), normal((B, H), dtype, 3), normal((B, H), torch.float32, 4)
    for later in (None, dh):
        d_h = dy.double() + (0 if later is None else later.double())
        d_z, d_c = torch.autograd.grad((their_h, their_c), exact, (d_h, dc.double()), retain_graph=True)
        carried, found = dc.clone(), torch.empty_like(z)
        native.lstm_step_backward(dy, later, carried, gates, before, after, found)
        # Of 1 - tanh^2, times gradients of up to 4 and a c of as much.
        check(found, d_z, absolute=4e-6)
        check(carried, d_c, absolute=4e-6)


def test_small_numbers_go_through_tanh_unrounded():
    z = torch.zeros(1, 4 * 21)
    z[0, 42:63] = torch.logspace(-30, 0, 21)
    gates, after, h = torch.empty(1, 84), torch.empty(1, 21), torch.empty(1, 21)
    native.lstm_step(z, torch.zeros(1, 21), gates, after, h)
    # From 0.1 on 1 - 2 sigmoid cancels, a tenth of its digits.
    torch.testing.assert_close(gates[:, 42:63], z[:, 42:63].tanh(), rtol=2e-6, atol=0)


@BOTH
def test_nan_goes_through_a_step_of_an_lstm(dtype):
    z, c = torch.zeros(3, 4, dtype=dtype), torch.zeros(3, 1)
    z[0, 2], c[1] = NAN, NAN
    gates, after, h = torch.empty(3, 4), torch.empty(3, 1), torch.empty(3, 1, dtype=dtype)
    native.lstm_step(z, c, gates, after, h)
    assert h.isnan().flatten().tolist() == after.isnan().flatten().tolist() == [True, True, False]


WIDTHS = (16, 32, 2, 20)


def in_blocks(logits: Tensor, targets: Tensor, parts: int, widths=WIDTHS) -> tuple[Tensor, Tensor, list[Tensor]]:
    """nll by softmax_block_, the others' mass, and what becomes of the logits: those of each block, times e^top."""
    n = len(logits)
    peak, total, picked = torch.full((n,), -INF), torch.zeros(n), torch.zeros(n)
    first, masses = 0, []
    for block in logits.split(widths, 1):
        z = block.unflatten(1, (parts, -1)).transpose(0, 1).contiguous()
        top = native.softmax_block_(z, targets, first, peak, total, picked)
        masses.append((z.double() * top.double().exp()[..., None]).transpose(0, 1).flatten(1))
        first += block.shape[1]
    nll = F.softplus(peak - picked + total.log(), threshold=60)
    return nll, total.double() * peak.double().exp(), masses


@BOTH
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("by", [1.0, 20.0])
def test_softmax_in_blocks_gives_the_negative_log_likelihood(by, parts, dtype):
    logits = normal((29, sum(WIDTHS)), dtype, by=by)
    targets = torch.arange(29) * 7 % sum(WIDTHS)
    targets[:6] = torch.tensor([0, 69, 15, 16, 48, 49])
    nll, mass, masses = in_blocks(logits, targets, parts)
    exact = F.cross_entropy(logits.double(), targets, reduction="none")
    # A difference of logits of 60 and more, each exact to half a unit in its last place.
    torch.testing.assert_close(nll.double(), exact, rtol=1e-6, atol=1e-5)
    others = logits.double().exp().scatter(1, targets[:, None], 0)
    torch.testing.assert_close(mass, others.sum(1), rtol=1e-5, atol=0)
    # What stands in a block is exact to half a unit in bf16's last place; below e^-87 of its largest it is zero.
    half, found = 1e-5 if dtype is torch.float32 else 2**-8, torch.cat(masses, 1)
    torch.testing.assert_close(found / mass[:, None], others / mass[:, None], rtol=half, atol=2e-38)
    assert (found.gather(1, targets[:, None]) == 0).all()


def test_the_exponential_is_exact_to_two_units_in_the_last_place():
    z = torch.linspace(-86.9, 0, 200_001)[None, None]
    exact = z.double().exp()
    state = torch.full((1,), -INF), torch.zeros(1), torch.zeros(1)
    assert native.softmax_block_(z, torch.tensor([-1]), 0, *state).item() == 0
    torch.testing.assert_close(z.double(), exact, rtol=2 * 2**-23, atol=0)


@BOTH
@pytest.mark.parametrize("first", [True, False])
def test_a_block_may_hold_the_target_alone(first, dtype):
    logits = normal((5, 9), dtype, by=3.0)
    targets = torch.full((5,), 0 if first else 8)
    nll, *_ = in_blocks(logits, targets, 1, (1, 8) if first else (8, 1))
    exact = F.cross_entropy(logits.double(), targets, reduction="none")
    torch.testing.assert_close(nll.double(), exact, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("first", [True, False])
def test_a_block_of_the_target_alone_does_not_hide_small_logits(first):
    logits = normal((5, 9), torch.float32) - 200
    targets = torch.full((5,), 0 if first else 8)
    nll, *_ = in_blocks(logits, targets, 1, (1, 8) if first else (8, 1))
    torch.testing.assert_close(nll, F.cross_entropy(logits, targets, reduction="none"))


@BOTH
def test_softmax_in_blocks_where_no_other_word_is_possible_and_where_one_is_nan(dtype):
    logits = torch.full((3, 12), -INF, dtype=dtype)
    logits[0, 5] = logits[1, 7] = -3.0
    logits[2] = 0.0
    logits[2, 3] = NAN
    nll, *_ = in_blocks(logits, torch.tensor([5, 7, 6]), 1, (6, 6))
    assert nll[:2].tolist() == [0.0, 0.0]
    assert nll[2].isnan()


@BOTH
@pytest.mark.parametrize(("K", "N", "D"), [(1, 1, 1), (2, 5, 33), (2, 1, 16), (1, 37, 7)])
def test_products_with_factors_are_pytorchs(K, N, D, dtype):
    parts, factors, sums = normal((K, N, D), dtype), normal((K, N), torch.float32, 1), normal((N, D), torch.float32, 2)
    exact = sums.double() + (parts.double() * factors.double()[..., None]).sum(0)
    assert native.add_scaled_rows_(sums, parts, factors) is sums
    check(sums, exact)


def test_every_nan_stays_one_in_bf16():
    """Rounding as a whole number would carry over from one whose bits are all set, into the sign."""
    bits = torch.tensor([[0x7FFFFFFF, -1, 0x7F800001, 0x7FC00000]], dtype=torch.int32)
    dz, half = torch.zeros(1, 16, dtype=torch.bfloat16), torch.full((1, 4), 0.5)
    native.lstm_step_backward(dz[:, :4].clone(), None, bits.view(torch.float32), half.repeat(1, 4), half, half, dz)
    assert dz[:, :12].isnan().all()


def test_numbers_that_lie_apart_are_refused():
    with pytest.raises(ValueError, match="strides"):
        native.gelu(torch.zeros(3, 4).t())


@BOTH
@pytest.mark.parametrize("shape", [(1, 7), (5, 1), (3, 37), (2, 70, 33)], ids=str)
@pytest.mark.parametrize("kind", ["rms", "layer", "layer without bias"])
def test_norms_and_their_gradients_are_pytorchs(kind, shape, dtype):
    x, dy = normal(shape, dtype, by=2.0) + 1, normal(shape, dtype, 1)
    weight, bias = normal(shape[-1:], dtype, 2), normal(shape[-1:], dtype, 3) if kind == "layer" else None
    centred, eps = kind != "rms", 1e-3
    exact = [t.double().requires_grad_() for t in (x, weight, bias) if t is not None]
    norm = F.layer_norm if centred else F.rms_norm
    their_y = norm(exact[0], shape[-1:], *exact[1:], eps=eps)
    y, means, inverse = native.norm(x, weight, bias, eps, centred)
    check(y, their_y, absolute=2e-6)
    found = native.norm_backward(dy, x, weight, bias is not None, means, inverse)
    dx, *d_weights = torch.autograd.grad(their_y, exact, dy.double())
    # dx is a difference times 1 / deviation, and the others are sums over up to 140 rows.
    check(found[0], dx, absolute=2e-6 * max(1.0, inverse.max().item()))
    for ours, theirs in zip([t for t in found[1:] if t is not None], d_weights, strict=True):
        check(ours, theirs, absolute=2e-5)


@BOTH
@pytest.mark.parametrize("centred", [True, False])
def test_a_norm_is_nan_in_the_row_where_a_number_is_and_in_no_other(centred, dtype):
    x = normal((4, 19), dtype)
    x[1, 18], x[2, 0] = NAN, INF
    weight = torch.ones(19, dtype=dtype)
    theirs = F.layer_norm(x, (19,), weight) if centred else F.rms_norm(x, (19,), weight, 1e-5)
    found, *_ = native.norm(x, weight, None, 1e-5, centred)
    assert torch.equal(found.isnan(), theirs.isnan())
    assert found[1].isnan().all()


PLACES = 2**17 + 5


def kept(seed: int, p: float = 0.3) -> Tensor:
    return native.dropout(torch.ones(PLACES), p, seed) != 0


def correlation(a: Tensor, b: Tensor) -> float:
    return torch.corrcoef(torch.stack([a, b]).double())[0, 1].item()


@BOTH
def test_dropout_keeps_its_share_scaled_exactly(dtype):
    for p in (0.0, 0.1, 0.5, 0.97):
        x = normal((PLACES,), dtype) + 8
        y = native.dropout(x, p, 2**62 + 17)
        share = (y != 0).double().mean().item()
        assert abs(share - (1 - p)) <= 5 * math.sqrt(p * (1 - p) / PLACES)
        scale = torch.tensor(1 / (1 - p), dtype=torch.float32)
        assert torch.equal(y, torch.where(y != 0, (x.float() * scale).to(dtype), 0))


def test_dropout_is_the_seeds_and_other_seeds_have_others():
    assert torch.equal(kept(5), kept(5))
    # That bf16 are dropped in the same places, and NaN too, is what lets the gradient take the same seed.
    assert torch.equal(native.dropout(torch.full((PLACES,), NAN).bfloat16(), 0.3, 5).isnan(), kept(5))
    for other in (6, 5 + 2**31, 5 + 2**32, 5 + 2**62, 2**63 - 1):
        differ = (kept(5) != kept(other)).double().mean().item()
        assert abs(differ - 2 * 0.3 * 0.7) <= 5 * math.sqrt(0.42 * 0.58 / PLACES)
        assert abs(correlation(kept(5), kept(other))) <= 5 / math.sqrt(PLACES)


def test_dropout_of_a_place_tells_nothing_of_its_neighbours():
    for seed in (0, 1, 2**40 + 3):
        mask = kept(seed)
        for lag in (1, 2, 3, 16, 64, 1024, 2**16):
            assert abs(correlation(mask[lag:], mask[:-lag])) <= 5 / math.sqrt(PLACES - lag)


def test_dropout_of_the_next_seed_is_not_this_ones_moved():
    assert abs(correlation(kept(5)[1:], kept(6)[:-1])) <= 5 / math.sqrt(PLACES)
