"""Models come to the same numbers where kernels cannot be compiled, and take them where they can."""

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from tests.native.test_native import BOTH, INF, normal, pytestmark  # noqa: F401
from torch import Tensor, nn

from lmlab import native
from lmlab.models import cross_entropy, kernels
from lmlab.models.cross_entropy import linear_nll
from lmlab.models.dropout import drop
from lmlab.models.layers import LayerNorm, RMSNorm, gelu, silu_times, squared_relu
from lmlab.models.lstm_layer import lstm_layer
from lmlab.models.products import attend

# Each path rounds what lies between its steps: bf16 to 2^-9, and sums of some tens of such numbers.
TOLERANCES = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.bfloat16: {"rtol": 2e-2, "atol": 3e-2}}


def outcome(f: Callable[..., Tensor | tuple[Tensor, ...]], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Outputs, and the gradients of an arbitrary mixture of them."""
    leaves = [t.detach().clone().requires_grad_(t.is_floating_point()) for t in inputs]
    outputs = f(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    total = sum((y.float() * normal(y.shape, torch.float32, seed=11)).sum() for y in outputs)
    wanted = [t for t in leaves if t.requires_grad]
    gradients = torch.autograd.grad(total, wanted)
    assert [g.dtype for g in gradients] == [t.dtype for t in wanted]
    return [*(y.detach() for y in outputs), *gradients]


@pytest.fixture(autouse=True)
def _small_ones_too(monkeypatch):
    monkeypatch.setattr(kernels, "SMALLEST", 0)


@pytest.fixture
def agree(monkeypatch):
    """That a function does so with kernels, which it must call, and without, when it must not."""
    called, run = [], native.run

    def noted(name, *rest):
        called.append(name.removesuffix("_bf16").removesuffix("_fp32"))
        return run(name, *rest)

    monkeypatch.setattr(native, "run", noted)

    def do(f, *inputs: Tensor, kernels: set[str]) -> None:
        ours = outcome(f, inputs)
        assert set(called) == kernels
        called.clear()
        with monkeypatch.context() as without:
            without.setattr(native, "library", lambda: None)
            without.setattr(native, "has_tiles", lambda: False)
            plain = outcome(f, inputs)
        assert not called
        for a, b in zip(ours, plain, strict=True):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            torch.testing.assert_close(a, b, **TOLERANCES[inputs[0].dtype])

    return do


@pytest.fixture(params=[True, False], ids=["tiles", "no tiles"])
def tiles(request, monkeypatch) -> bool:
    """Whether kernels for AMX's tiles are there: in turn, where the processor has them."""
    if not request.param:
        monkeypatch.setattr(native, "has_tiles", lambda: False)
    elif not native.has_tiles():
        pytest.skip("the processor has no tiles, or nobody may use them")
    return request.param


@BOTH
@pytest.mark.parametrize(
    ("f", "inputs", "name"),
    [(gelu, 1, "gelu"), (squared_relu, 1, "squared_relu"), (silu_times, 2, "swiglu")],
    ids=["gelu", "squared_relu", "silu_times"],
)
def test_activations(agree, f, inputs, name, dtype):
    agree(f, *(normal((3, 5, 47), dtype, seed) for seed in range(inputs)), kernels={name, f"{name}_backward"})


def test_numbers_so_few_that_a_call_costs_more_are_left_to_pytorch(agree, monkeypatch):
    monkeypatch.setattr(kernels, "SMALLEST", 100)
    agree(gelu, normal((99,), torch.float32), kernels=set())
    agree(gelu, normal((100,), torch.float32), kernels={"gelu", "gelu_backward"})


@BOTH
def test_dropout_goes_back_through_the_mask_that_it_drew(dtype):
    x = torch.ones(9, 34, dtype=dtype)
    turned = x.t().requires_grad_()
    y = drop(turned, 0.4)
    assert 0.4 < (y != 0).float().mean() < 0.8
    assert not torch.equal(drop(turned, 0.4), y)
    (dx,) = torch.autograd.grad(y.t().sum(), turned)
    assert torch.equal(dx, y.detach())


@BOTH
def test_what_lies_apart_is_copied(agree, dtype):
    agree(lambda x: gelu(x[:, ::2]), normal((9, 34), dtype), kernels={"gelu", "gelu_backward"})
    agree(lambda x: squared_relu(x.t()), normal((9, 34), dtype), kernels={"squared_relu", "squared_relu_backward"})
    agree(lambda x: silu_times(*x.chunk(2, -1)), normal((9, 34), dtype), kernels={"swiglu", "swiglu_backward"})
    for norm, parameters in ((RMSNorm(9, eps=1e-5), 1), (LayerNorm(9), 2)):
        given = [normal((9,), dtype, 1 + i) for i in range(parameters)]

        def f(x, *given, norm=norm):
            names = [name for name, _ in norm.named_parameters()]
            return torch.func.functional_call(norm, dict(zip(names, given, strict=True)), x.t())

        agree(f, normal((9, 34), dtype), *given, kernels={"norm", "norm_backward"})


@BOTH
@pytest.mark.parametrize("module", [RMSNorm, LayerNorm])
def test_norms(agree, module, dtype):
    norm = module(33, eps=1e-5).to(dtype)
    names = [name for name, _ in norm.named_parameters()]

    def f(x, *parameters):
        return torch.func.functional_call(norm, dict(zip(names, parameters, strict=True)), x)

    inputs = [normal((2, 3, 33), dtype), *(normal((33,), dtype, 1 + i) for i in range(len(names)))]
    # Few rows: PyTorch adds bf16 gradients of LayerNorm's weights in bf16, and over 70 rows errs by some units.
    agree(f, *inputs, kernels={"norm", "norm_backward"})


@BOTH
@pytest.mark.parametrize("kind", ["causal", "seen", "seen, of each head", "added"])
def test_attention(agree, kind, dtype):
    B, H, T, d = 2, 3, 21, 8
    seen = (torch.rand(H, T, T, generator=torch.Generator().manual_seed(1)) < 0.5) | torch.eye(T, dtype=torch.bool)
    mask = {"causal": None, "seen": seen[0], "seen, of each head": seen[None]}.get(
        kind, normal((1, H, T, T), dtype, 7).masked_fill(~seen, -INF)
    )
    q, k, v = (normal((B, H, T, d), dtype, seed) for seed in range(3))
    names = {"attention_softmax", "attention_softmax_backward"}
    agree(lambda q, k, v: attend(q, k, v, mask), q, k, v, kernels=names)


@BOTH
def test_attention_to_strided_queries_as_heads_are_split(agree, dtype):
    def f(x):
        q, k, v = x.unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        return attend(q, k, v, None)

    agree(f, normal((2, 19, 48), dtype), kernels={"attention_softmax", "attention_softmax_backward"})


def layer(T: int, dtype: torch.dtype) -> list[Tensor]:
    B, D, H = 3, 5, 7
    weights = [normal(p.shape, dtype, 20 + i, by=0.4) for i, p in enumerate(nn.LSTM(D, H).parameters())]
    return [normal((T, B, D), dtype), normal((1, B, H), dtype, 1), normal((1, B, H), dtype, 2), *weights]


def of_a_layer(tiles: bool, dtype: torch.dtype) -> set[str]:
    if tiles and dtype is torch.bfloat16:
        return {"lstm_tiles", "lstm_backward_tiles", "weight_gradient_tiles"}
    return {"lstm_step", "lstm_step_backward"}


@BOTH
@pytest.mark.parametrize("T", [1, 6])
def test_the_lstms_layer(agree, tiles, T, dtype):
    agree(lstm_layer, *layer(T, dtype), kernels=of_a_layer(tiles, dtype))


@BOTH
def test_the_lstms_layer_of_turned_matrices(agree, tiles, dtype):
    """And of an x that is turned, as where a batch comes first."""
    x, h, c, w_ih, w_hh, *biases = layer(4, dtype)

    def f(x, h, c, w_ih, w_hh, *biases):
        return lstm_layer(x.transpose(0, 1), h, c, w_ih.t(), w_hh.t(), *biases)

    turned = x.transpose(0, 1).contiguous(), h, c, w_ih.t().contiguous(), w_hh.t().contiguous()
    agree(f, *turned, *biases, kernels=of_a_layer(tiles, dtype))


@BOTH
def test_the_lstms_layer_of_a_turned_gradient_of_the_last_c(tiles, dtype):
    leaves = [t.requires_grad_() for t in layer(4, dtype)]
    _, c = lstm_layer(*leaves)
    g = normal((1, 7, 3), c.dtype, 9).transpose(1, 2)
    turned, expected = (torch.autograd.grad(c, leaves, d, retain_graph=True) for d in (g, g.contiguous()))
    assert all(torch.equal(a, b) for a, b in zip(turned, expected, strict=True))


@pytest.fixture
def blocks(monkeypatch):
    """Several, the last of one word, and rows in two lots."""
    for name, value in {"SMALL": 0, "BLOCK": 16 * 20, "WIDTHS": (16, 16), "ALIGN": 8, "ROWS": 20}.items():
        monkeypatch.setattr(cross_entropy, name, value)


def problem(dtype: torch.dtype) -> tuple[Tensor, ...]:
    hidden, weight, bias = normal((37, 6), dtype), normal((97, 6), dtype, 1), normal((97,), dtype, 2)
    targets = torch.arange(37) * 13 % 97
    targets[:5] = torch.tensor([0, 96, 96, 15, 16])
    return hidden, weight, bias, targets


def of_a_loss(tiles: bool, dtype: torch.dtype) -> set[str]:
    if tiles and dtype is torch.bfloat16:
        return {"head_tiles", "head_backward_tiles"}
    return {"softmax_block", "add_scaled_rows"}


@BOTH
@pytest.mark.parametrize("kept_bytes", [2**29, 0], ids=["kept", "recomputed"])
@pytest.mark.parametrize("parts", [1, 2])
def test_the_loss_in_blocks(agree, tiles, blocks, monkeypatch, parts, kept_bytes, dtype):
    monkeypatch.setattr(cross_entropy, "KEPT_BYTES", kept_bytes)
    monkeypatch.setattr(cross_entropy, "_parts", lambda h: parts)
    names = of_a_loss(tiles and kept_bytes > 0, dtype)
    agree(linear_nll, *problem(dtype), kernels=names)


@BOTH
def test_the_loss_in_blocks_under_a_cap(agree, tiles, blocks, dtype):
    agree(lambda *p: linear_nll(*p, softcap=3.0), *problem(dtype), kernels=of_a_loss(False, dtype))


@BOTH
@pytest.mark.parametrize("frozen", [{1}, {2}, {1, 2}, {0}], ids=["weight", "bias", "weight and bias", "hidden"])
def test_the_loss_where_some_parameters_are_frozen(agree, tiles, blocks, frozen, dtype):
    *parameters, targets = problem(dtype)
    moving = [p for i, p in enumerate(parameters) if i not in frozen]

    def f(*given):
        rest = iter(given)
        return linear_nll(*(p if i in frozen else next(rest) for i, p in enumerate(parameters)), targets)

    agree(f, *moving, kernels=of_a_loss(tiles, dtype))


@BOTH
def test_the_loss_without_a_bias(agree, tiles, blocks, dtype):
    hidden, weight, _, targets = problem(dtype)
    agree(lambda h, w: linear_nll(h, w, None, targets), hidden, weight, kernels=of_a_loss(tiles, dtype))


def test_the_loss_under_autocast(tiles, blocks):
    """Of fp32 in bf16, where nothing is copied that is fp32 already: it may not lie side by side."""
    hidden, weight, bias, targets = problem(torch.bfloat16)
    inputs = hidden.float(), weight.float(), bias.float()

    def f(hidden, weight, bias):
        apart = hidden.t().contiguous().t(), weight.t().contiguous().t(), torch.stack([bias, bias + 9], 1)[:, 0]
        with torch.autocast("cpu", torch.bfloat16):
            return linear_nll(*apart, targets)

    expected, found = outcome(lambda *p: linear_nll(*p, targets), inputs), outcome(f, inputs)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, **TOLERANCES[torch.bfloat16])


@BOTH
def test_the_loss_of_a_bias_and_targets_that_lie_apart(agree, tiles, blocks, dtype):
    *parameters, targets = problem(dtype)
    apart = torch.stack([targets, targets.flip(0)], 1)[:, 0]

    def f(hidden, weight, bias):
        return linear_nll(hidden.t().contiguous().t(), weight, torch.stack([bias, bias + 9], 1)[:, 0], apart)

    agree(f, *parameters, kernels=of_a_loss(tiles, dtype))


def test_a_second_way_back_is_as_the_first_or_refused(tiles, blocks):
    """Tiles leave nothing to go back from again."""
    hidden, weight, bias, targets = problem(torch.bfloat16)
    loss = linear_nll(hidden, weight.requires_grad_(), bias, targets).sum()
    (first,) = torch.autograd.grad(loss, weight, retain_graph=True)
    if tiles:
        with pytest.raises(RuntimeError, match="this loss went back once"):
            torch.autograd.grad(loss, weight)
    else:
        assert torch.equal(torch.autograd.grad(loss, weight)[0], first)


def moved(t: Tensor) -> Tensor:
    """A copy whose address is no multiple of 64, as tensors have that come from elsewhere."""
    at = t.new_empty(t.numel() + 1)[1:].view(t.shape).copy_(t)
    assert at.data_ptr() % 64
    return at


def test_what_is_given_back_elsewhere_in_memory_is_read_alike(tiles, blocks):
    """As hooks do that keep what the way back needs on a disk, or compressed."""
    for f, inputs in ((linear_nll, problem(torch.bfloat16)), (lstm_layer, layer(4, torch.bfloat16))):
        expected = outcome(f, inputs)
        with torch.autograd.graph.saved_tensors_hooks(torch.clone, moved):
            found = outcome(f, inputs)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def masked(possible: slice) -> tuple[list[Tensor], list[Tensor]]:
    """linear_nll and its gradients where a bias rules the other words out, and PyTorch's."""
    hidden, weight, _, targets = problem(torch.float32)
    bias = torch.full((97,), -INF)
    bias[possible] = 0
    targets = targets % len(bias[possible]) + possible.start
    ours = outcome(lambda h, w: linear_nll(h, w, bias, targets), (hidden, weight))
    theirs = outcome(lambda h, w: F.cross_entropy(F.linear(h, w, bias), targets, reduction="none"), (hidden, weight))
    return ours, theirs


def test_the_loss_where_whole_blocks_are_ruled_out(blocks):
    """Without kernels it is NaN."""
    torch.testing.assert_close(*masked(slice(40, 60)))


def test_the_loss_where_no_other_word_is_possible(blocks):
    (nll, *_), (expected, *_) = masked(slice(40, 41))
    torch.testing.assert_close(nll, expected)


def test_the_losss_gradient_where_no_other_word_is_possible(blocks):
    torch.testing.assert_close(*masked(slice(40, 41)))


@pytest.mark.parametrize("sizes", [(3, 7), (7, 3)], ids=str)
def test_attention_to_another_number_of_keys_than_queries(agree, sizes):
    q, k, v = (normal((1, 2, n, 4), torch.float32, n) for n in (*sizes, sizes[1]))
    agree(lambda q, k, v: attend(q, k, v, None), q, k, v, kernels=set())
    # Query t sees the keys up to t.
    given = torch.ones(sizes, dtype=torch.bool).tril()
    agree(lambda q, k, v: attend(q, k, v, given), q, k, v, kernels={"attention_softmax", "attention_softmax_backward"})
    torch.testing.assert_close(attend(q, k, v, None), attend(q, k, v, given))


def test_attention_to_more_keys_than_a_kernel_takes(agree):
    q, k, v = (normal((1, 1, n, 4), torch.float32, n) for n in (2, 4097, 4097))
    mask = torch.ones(2, 4097, dtype=torch.bool)
    agree(lambda q, k, v: attend(q, k, v, mask), q, k, v, kernels=set())


def test_a_norm_with_the_usual_eps(agree):
    agree(RMSNorm(9), normal((4, 9), torch.float32), kernels=set())


def test_a_norm_without_weights(agree):
    agree(LayerNorm(9, elementwise_affine=False), normal((4, 9), torch.float32), kernels=set())
