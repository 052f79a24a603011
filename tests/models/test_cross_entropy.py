import math

import pytest
import torch
import torch.nn.functional as F

from lmlab.models import cross_entropy
from lmlab.models.cross_entropy import linear_nll

N, D, V = 37, 6, 101


@pytest.fixture
def blocks(monkeypatch):
    """Tiny sizes that take the path of large vocabularies: several blocks, a last one that is narrower, two parts."""
    for name, value in {"SMALL": 0, "BLOCK": 16 * 20, "WIDTHS": (16, 16), "ALIGN": 8, "ROWS": 20}.items():
        monkeypatch.setattr(cross_entropy, name, value)


@pytest.fixture(params=[1, 2], ids=["whole", "halves"])
def parts(request, monkeypatch):
    """As AMX is given its products, and as others are."""
    monkeypatch.setattr(cross_entropy, "_parts", lambda h: request.param)


def problem(bias=True):
    torch.manual_seed(0)
    hidden = torch.randn(N, D, requires_grad=True)
    weight = torch.randn(V, D, requires_grad=True)
    b = torch.randn(V, requires_grad=True) if bias else None
    # Repeated targets, and the ends of the vocabulary.
    targets = torch.randint(V, (N,))
    targets[:6] = torch.tensor([0, V - 1, 15, 16, 16, 16])
    return hidden, weight, b, targets


def gradients(nll, parameters):
    # Arbitrary weights, some of them zero, as a mask gives.
    w = torch.rand(len(nll), generator=torch.Generator().manual_seed(3))
    w[::5] = 0
    return torch.autograd.grad((nll * w).sum(), [p for p in parameters if p is not None])


@pytest.mark.parametrize("kept_bytes", [2**29, 0], ids=["kept", "recomputed"])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("bias", [True, False])
def test_nll_in_blocks_equals_cross_entropy(blocks, parts, monkeypatch, kept_bytes, softcap, bias):
    monkeypatch.setattr(cross_entropy, "KEPT_BYTES", kept_bytes)
    hidden, weight, b, targets = problem(bias)
    logits = F.linear(hidden, weight, b)
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    expected = F.cross_entropy(logits, targets, reduction="none")
    found = linear_nll(hidden, weight, b, targets, softcap)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    parameters = (hidden, weight, b)
    for ours, theirs in zip(gradients(found, parameters), gradients(expected, parameters), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_frozen_matrix_costs_no_gradient(blocks):
    hidden, weight, _, targets = problem()
    expected = torch.autograd.grad(linear_nll(hidden, weight, None, targets).sum(), hidden)
    found = linear_nll(hidden, weight.detach(), None, targets)
    found.sum().backward()
    torch.testing.assert_close(hidden.grad, *expected)


def test_huge_logits_neither_overflow_nor_lose_gradients(blocks, parts):
    hidden, weight, b, targets = problem()
    found = linear_nll(hidden * 1e3, weight, b, targets)
    expected = F.cross_entropy(F.linear(hidden * 1e3, weight, b), targets, reduction="none")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(gradients(found, [weight, b]), gradients(expected, [weight, b]), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-5)


def test_nothing_is_kept_where_no_gradient_is_wanted(blocks):
    hidden, weight, b, targets = problem()
    with torch.no_grad():
        assert linear_nll(hidden, weight, b, targets).grad_fn is None
    torch.testing.assert_close(
        linear_nll(hidden, weight, b, targets).detach(), linear_nll(hidden.detach(), weight, b, targets).detach()
    )


def kept_for_backward(kept_bytes, monkeypatch):
    monkeypatch.setattr(cross_entropy, "KEPT_BYTES", kept_bytes)
    hidden, weight, b, targets = problem()
    sizes = []

    def pack(t):
        sizes.append(t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        linear_nll(hidden, weight, b, targets)
    return sum(sizes) - hidden.numel() - 2 * (weight.numel() + b.numel())


def test_the_backward_pass_holds_one_number_a_logit_or_none(blocks, monkeypatch):
    per_row = 20  # a few vectors of N, and one per block
    assert N * V <= kept_for_backward(2**29, monkeypatch) <= N * (V + per_row)
    assert kept_for_backward(0, monkeypatch) <= N * per_row


@pytest.mark.parametrize("size", ["small", "blocks"])
def test_nll_is_in_full_precision_under_autocast(size, request):
    if size == "blocks":
        request.getfixturevalue("blocks")
    hidden, weight, b, targets = problem()
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_nll(hidden, weight, b, targets)
    exact = linear_nll(hidden, weight, b, targets)
    assert found.dtype == torch.float32
    assert (found > 0).all()
    torch.testing.assert_close(found, exact, atol=0.1, rtol=0.05)
    for half, full in zip(gradients(found, [hidden, weight, b]), gradients(exact, [hidden, weight, b]), strict=True):
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, full, atol=0.05, rtol=0.05)


def test_a_confident_prediction_keeps_its_gradient_in_half_precision(blocks, parts):
    """p = 0.9995: softmax - 1 is -0.0005, which bf16 would round away next to 1."""
    hidden, weight = torch.ones(1, 1), torch.zeros(V, 1)
    weight[7] = 12.0
    weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_nll(hidden, weight, None, torch.tensor([7]))
    found.backward(torch.ones(1))
    p = 1 / (1 + 100 * torch.tensor(-12.0).exp())
    torch.testing.assert_close(weight.grad[7, 0], p - 1, rtol=0.01, atol=0)


def half(x):
    """Leaves the values, in bf16 and back: all sides start from the same numbers."""
    return x.detach().bfloat16().float().requires_grad_()


@pytest.mark.parametrize("kept_bytes", [2**29, 0], ids=["kept", "recomputed"])
def test_an_fp32_table_under_bf16_hidden_errs_no_more_than_plain_bf16(blocks, parts, monkeypatch, kept_bytes):
    monkeypatch.setattr(cross_entropy, "KEPT_BYTES", kept_bytes)
    torch.manual_seed(0)
    hidden, weight, b = half(torch.randn(300, 16)), half(torch.randn(V, 16)), half(torch.randn(V))
    targets = torch.randint(V, (300,))

    def plain(dtype):
        logits = F.linear(hidden.to(dtype), weight.to(dtype), b.to(dtype))
        return F.cross_entropy(logits.to(torch.promote_types(dtype, torch.float32)), targets, reduction="none")

    ours = linear_nll(hidden.bfloat16(), weight, b, targets)
    assert ours.dtype == torch.float32
    exact, theirs = plain(torch.float64), plain(torch.bfloat16)

    def error(found, true):
        return (found.double() - true.double()).norm() / true.double().norm()

    assert error(ours, exact) < 1.2 * error(theirs, exact)
    parameters = (hidden, weight, b)
    for found, rounded, true in zip(*(gradients(nll, parameters) for nll in (ours, theirs, exact)), strict=True):
        assert found.dtype == torch.float32
        assert error(found, true) < 1.2 * error(rounded, true)


def test_a_frequent_words_gradient_in_half_precision_is_summed_in_full(blocks, parts, monkeypatch):
    """All of 3,000 targets are one word: added one by one to a bf16 number, 1e-3 each, they would stop at about 0.5."""
    n = 3000
    monkeypatch.setattr(cross_entropy, "ROWS", n)
    weight, b = (torch.zeros(*size, dtype=torch.bfloat16, requires_grad=True) for size in ((V, 1), (V,)))
    linear_nll(torch.ones(n, 1, dtype=torch.bfloat16), weight, b, torch.full((n,), 7)).mean().backward()
    for grad in (weight.grad[7, 0], b.grad[7]):
        assert grad.item() == pytest.approx(1 / V - 1, rel=2**-8)


def test_a_probability_of_one_in_a_million_less_keeps_its_nll_in_half_precision(blocks, parts):
    """nll = 100 exp(-18) = 1.5e-6: a softmax rounded to bf16 says 0."""
    hidden, weight = torch.ones(1, 1, dtype=torch.bfloat16), torch.zeros(V, 1)
    weight[7] = 18.0
    found = linear_nll(hidden, weight, None, torch.tensor([7]))
    torch.testing.assert_close(found, (100 * torch.tensor([-18.0]).exp()).log1p(), rtol=0.01, atol=0)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_gradients_agree_with_finite_differences(blocks, parts, softcap):
    torch.manual_seed(0)
    hidden, weight, b = (torch.randn(*n, dtype=torch.float64, requires_grad=True) for n in ((5, 3), (23, 3), (23,)))
    targets = torch.randint(23, (5,))
    assert torch.autograd.gradcheck(lambda *x: linear_nll(*x, targets, softcap), (hidden, weight, b))


@pytest.mark.parametrize("kept_bytes", [2**29, 0], ids=["kept", "recomputed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_memory_held_before_does_not_matter(blocks, parts, monkeypatch, kept_bytes, dtype):
    """Between rows that are laid out wider than they are nothing uninitialised may lie: AMX kernels read it."""
    monkeypatch.setattr(cross_entropy, "KEPT_BYTES", kept_bytes)
    monkeypatch.setattr(cross_entropy, "ALIGN", 32)  # a row of AMX's tiles
    *parameters, targets = problem()
    parameters = [p.detach().to(dtype).requires_grad_() for p in parameters]
    expected = linear_nll(*parameters, targets)
    expected = [expected, *gradients(expected, parameters)]
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda like, *n, **k: like.new_full(_shape(n), math.nan, **k))
    monkeypatch.setattr(torch, "empty", lambda *n, **k: torch.full(_shape(n), math.nan, **k))
    found = linear_nll(*parameters, targets)
    found = [found, *gradients(found, parameters)]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=0, rtol=0)


def _shape(sizes):
    return sizes[0] if isinstance(sizes[0], tuple) else sizes
