import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lmlab import native
from lmlab.models import kernels
from lmlab.models.layers import Linear, RMSNorm, TokenEmbedding, init_linears, make_mlp, make_norm


def test_swiglu_is_what_its_formula_says():
    mlp = make_mlp("swiglu", d_model=3, d_ff=5, bias=False)
    x = torch.randn(2, 4, 3)
    gate = x @ mlp.gate.weight.T
    expected = (gate / (1 + (-gate).exp()) * (x @ mlp.up.weight.T)) @ mlp.down.weight.T
    torch.testing.assert_close(mlp(x), expected)


@pytest.mark.parametrize(
    ("mlp", "f"),
    [
        ("relu2", lambda x: x.clamp(min=0) ** 2),
        ("gelu", lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))),
    ],
)
def test_mlp_is_what_its_formula_says(mlp, f):
    module = make_mlp(mlp, d_model=3, d_ff=5, bias=True)
    x = torch.randn(2, 4, 3)
    expected = f(x @ module.up.weight.T + module.up.bias) @ module.down.weight.T + module.down.bias
    torch.testing.assert_close(module(x), expected)


def test_squared_relu_has_the_gradient_of_its_formula():
    mlp = make_mlp("relu2", d_model=3, d_ff=5, bias=True).double()
    x = torch.randn(1, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: mlp(x), x)


@pytest.mark.skipif(not native.has_tiles(), reason="a processor without AMX, or no compiler")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", [(), ("weight",), ("bias",), ("x",)])
def test_a_linear_layer_in_tiles_has_the_gradients_of_torchs(bias, frozen, monkeypatch):
    monkeypatch.setattr(kernels, "SMALLEST", 0)
    layer, x = Linear(37, 21, bias=bias, dtype=torch.bfloat16), torch.randn(3, 19, 37, dtype=torch.bfloat16)
    x.requires_grad_("x" not in frozen)
    for name, p in layer.named_parameters():
        p.requires_grad_(name not in frozen)
    dy = torch.randn(3, 19, 21, dtype=torch.bfloat16)
    y = layer(x)
    assert type(y.grad_fn).__name__ == "_LinearBackward"
    y.backward(dy)
    # A sum of 57 products, each exact, rounded to bf16 once.
    x64, w64, dy64 = x.detach().double(), layer.weight.detach().double(), dy.double()
    expected = {"weight": dy64.flatten(0, 1).T @ x64.flatten(0, 1), "bias": dy64.sum((0, 1)), "x": dy64 @ w64}
    torch.testing.assert_close(y, F.linear(x, layer.weight, layer.bias), atol=0, rtol=0)
    for name, p in {"x": x, **dict(layer.named_parameters())}.items():
        if name in frozen:
            assert p.grad is None
        else:
            torch.testing.assert_close(p.grad.double(), expected[name], atol=1e-4, rtol=2**-8)


def test_mlps_of_default_width_have_about_equally_many_parameters():
    sizes = {m: sum(p.numel() for p in make_mlp(m, 240, None, False).parameters()) for m in ("swiglu", "gelu", "relu2")}
    # 3 * 640 * 240 = 2 * 960 * 240
    assert sizes == {"swiglu": 460800, "gelu": 460800, "relu2": 460800}
    assert make_mlp("swiglu", 256, None, False).up.out_features == 688  # 682.67, to a multiple of 8


def test_rms_norm_divides_by_the_root_mean_square():
    norm = RMSNorm(4, eps=0.0)
    # rms of (1, 1, 1, 5) is sqrt(28 / 4)
    torch.testing.assert_close(norm(torch.tensor([1.0, 1.0, 1.0, 5.0])), torch.tensor([1.0, 1.0, 1.0, 5.0]) / 7**0.5)


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_norms_take_half_precision_without_warnings(norm):
    x = torch.randn(2, 3, 8)
    module = make_norm(norm, 8, 1e-6, bias=False)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(module(x.bfloat16()).float(), module(x), atol=0.05, rtol=0.02)


def test_unknown_parts_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="norm=batch is not an option: choose rms, layer"):
        make_norm("batch", 8, 1e-6, bias=False)
    with pytest.raises(ValueError, match="mlp=geglu is not an option: choose swiglu, gelu, relu2"):
        make_mlp("geglu", 8, None, bias=False)


def test_token_embedding_sums_the_last_tokens():
    embed = TokenEmbedding(7, 4, ngram=3)
    x, recent = embed(torch.tensor([[5, 2]]), None)
    first, second = (table.weight for table in embed.lags)
    # Ids are shifted by one in the tables of earlier tokens, whose row 0 is "before the text".
    torch.testing.assert_close(x[0, 0], embed.weight[5] + first[0] + second[0])
    torch.testing.assert_close(x[0, 1], embed.weight[2] + first[6] + second[0])
    assert recent.tolist() == [[6, 3]]
    x, recent = embed(torch.tensor([[0]]), recent)
    torch.testing.assert_close(x[0, 0], embed.weight[0] + first[3] + second[6])
    assert recent.tolist() == [[3, 1]]


def test_token_embedding_of_one_token_is_an_embedding():
    embed = TokenEmbedding(7, 4, ngram=1)
    x, recent = embed(torch.tensor([[5, 2]]), None)
    torch.testing.assert_close(x, nn.functional.embedding(torch.tensor([[5, 2]]), embed.weight))
    assert recent.shape == (1, 0)
    assert len(list(embed.parameters())) == 1


def test_token_embedding_of_no_token_is_refused():
    with pytest.raises(ValueError, match="embed_ngram=0 must be at least 1"):
        TokenEmbedding(7, 4, ngram=0)


def test_projections_out_get_their_own_scale():
    mlp = make_mlp("swiglu", 64, None, bias=True)
    init_linears(mlp, std=0.02, names_out=("down",), std_out=0.0)
    assert mlp.down.weight.abs().max() == 0
    assert mlp.up.bias.abs().max() == 0
    assert mlp.up.weight.std().item() == pytest.approx(0.02, rel=0.05)
