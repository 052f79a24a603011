"""The parts of a Transformer block that look at one position at a time: norms, MLPs, and the input embedding."""

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lmlab import native
from lmlab.models import kernels
from lmlab.models.tied import embed_tied
from lmlab.types import Hidden, Tokens


def one_of(name: str, value: str, options: tuple[str, ...]) -> str:
    """`value`, if it is one of the options; ValueError naming them all if it is not."""
    if value not in options:
        raise ValueError(f"{name}={value} is not an option: choose {', '.join(options)}")
    return value


class _Linear(torch.autograd.Function):
    """A linear layer whose weight's gradient comes from AMX's tiles: PyTorch's turns one factor in memory before."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad, rows = grad.reshape(-1, grad.shape[-1]).contiguous(), x.reshape(-1, x.shape[-1]).contiguous()
        d_x = (grad @ weight).view_as(x) if ctx.needs_input_grad[0] else None
        d_weight = d_bias = None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            d_weight, d_bias = native.weight_gradient_tiles(grad, rows)
        return d_x, d_weight, d_bias if ctx.has_bias else None


class Linear(nn.Linear):
    """x weight' + bias."""

    def forward(self, x: Tensor) -> Tensor:
        known = x.dtype is torch.bfloat16 and torch.is_grad_enabled() and kernels.are_compiled(x, self.weight)
        if known and kernels.are_tiled(x):
            return _Linear.apply(x, self.weight, self.bias)
        return super().forward(x)


class _Norm(torch.autograd.Function):
    """A norm of each row in one pass over memory, and two back, where PyTorch makes up to eight."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps, centred):
        x = x.contiguous()
        y, means, inverse = native.norm(x, weight, bias, eps, centred)
        ctx.save_for_backward(x, weight, means, inverse)
        ctx.has_bias = bias is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, means, inverse = ctx.saved_tensors
        return *native.norm_backward(grad.contiguous(), x, weight, ctx.has_bias, means, inverse), None, None


class RMSNorm(nn.RMSNorm):
    """x / rms(x) * weight over the last dimension (Zhang and Sennrich 2019, eq. 4)."""

    def forward(self, x: Tensor) -> Tensor:
        # torch's fused kernel wants one dtype, and warns otherwise; under autocast x may be bf16.
        weight = self.weight.to(x.dtype)
        if self.eps is not None and weight.shape == x.shape[-1:] and kernels.are_compiled(x, weight):
            return _Norm.apply(x, weight, None, self.eps, False)
        return F.rms_norm(x, self.normalized_shape, weight, self.eps)


class LayerNorm(nn.LayerNorm):
    """(x - mean(x)) / deviation(x) * weight + bias over the last dimension (Ba, Kiros and Hinton 2016, eq. 4)."""

    def forward(self, x: Tensor) -> Tensor:
        given = [t for t in (self.weight, self.bias) if t is not None]
        known = self.weight is not None and self.weight.shape == x.shape[-1:]
        if known and kernels.are_compiled(x, *given):
            return _Norm.apply(x, self.weight, self.bias, self.eps, True)
        return super().forward(x)


def make_norm(norm: str, width: int, eps: float, bias: bool) -> nn.Module:
    """`rms` (which has no bias, whatever `bias` says) or `layer`."""
    if one_of("norm", norm, ("rms", "layer")) == "rms":
        return RMSNorm(width, eps=eps)
    return LayerNorm(width, eps=eps, bias=bias)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer 2020, eq. 6)."""

    def __init__(self, d_model: int, d_ff: int, bias: bool):
        super().__init__()
        # Two matrices: one of both is no faster here, since its halves have to be copied together going backward.
        self.gate = Linear(d_model, d_ff, bias=bias)
        self.up = Linear(d_model, d_ff, bias=bias)
        self.down = Linear(d_ff, d_model, bias=bias)

    def forward(self, x: Hidden) -> Hidden:
        return self.down(silu_times(self.gate(x), self.up(x)))


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up):
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        return native.swiglu(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return native.swiglu_backward(*ctx.saved_tensors, grad.contiguous())


def silu_times(gate: Tensor, up: Tensor) -> Tensor:
    if gate.shape == up.shape and kernels.are_compiled(gate, up):
        return _SwiGLU.apply(gate, up)
    return F.silu(gate) * up


class _GELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        x = x.contiguous()
        ctx.save_for_backward(x)
        return native.gelu(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return native.gelu_backward(*ctx.saved_tensors, grad.contiguous())


def gelu(x: Tensor) -> Tensor:
    return _GELU.apply(x) if kernels.are_compiled(x) else F.gelu(x, approximate="tanh")


class _SquaredReLU(torch.autograd.Function):
    """relu(x)^2 in one pass each way, or two: autograd's own takes three and four, a tenth of a small step."""

    @staticmethod
    def forward(ctx, x):
        ctx.compiled = kernels.are_compiled(x)
        if ctx.compiled:
            x = x.contiguous()
            ctx.save_for_backward(x)
            return native.squared_relu(x)
        y = F.relu(x)
        ctx.save_for_backward(y)
        return y * y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        return native.squared_relu_backward(y, grad.contiguous()) if ctx.compiled else (grad * y).mul_(2)


def squared_relu(x: Tensor) -> Tensor:
    return F.relu(x).square() if kernels.are_plain() else _SquaredReLU.apply(x)


class MLP(nn.Module):
    """down(f(up(x))), with f `gelu` (its tanh approximation, as in GPT-2) or `relu2` (So et al. 2021, squared ReLU)."""

    def __init__(self, activation: str, d_model: int, d_ff: int, bias: bool):
        super().__init__()
        self.activation = activation
        self.up = Linear(d_model, d_ff, bias=bias)
        self.down = Linear(d_ff, d_model, bias=bias)

    def forward(self, x: Hidden) -> Hidden:
        x = self.up(x)
        return self.down(gelu(x) if self.activation == "gelu" else squared_relu(x))


def make_mlp(mlp: str, d_model: int, d_ff: int | None, bias: bool) -> nn.Module:
    """`swiglu gelu relu2`. d_ff None: 4 * d_model, or for swiglu, whose third matrix costs half as much again,
    two thirds of that (Shazeer 2020, section 2), rounded up to a multiple of 8."""
    if one_of("mlp", mlp, ("swiglu", "gelu", "relu2")) == "swiglu":
        return SwiGLU(d_model, -(-d_model // 3) * 8 if d_ff is None else d_ff, bias)
    return MLP(mlp, d_model, 4 * d_model if d_ff is None else d_ff, bias)


class TokenEmbedding(nn.Embedding):
    """Sum of the embeddings of the last `ngram` tokens, one table for each lag; 1 is the usual embedding.

    Its state is the last ngram - 1 tokens as id + 1, so that 0 means "before the start of the text", which has a
    row of its own in the tables of lag 1 and more. Only lag 0's table is tied to a head.
    tied: whether it is the head's matrix, too.
    """

    def __init__(self, vocab_size: int, d_model: int, ngram: int, tied: bool = False):
        super().__init__(vocab_size, d_model)
        self.tied = tied
        if ngram < 1:
            raise ValueError(f"embed_ngram={ngram} must be at least 1: how many tokens the input embedding sees")
        self.lags = nn.ModuleList(nn.Embedding(vocab_size + 1, d_model) for _ in range(ngram - 1))

    def forward(self, tokens: Tokens, recent: Int[Tensor, "B N"] | None) -> tuple[Hidden, Int[Tensor, "B N"]]:
        x = (embed_tied if self.tied else F.embedding)(tokens, self.weight)
        n = len(self.lags)
        if recent is None:
            recent = tokens.new_zeros(len(tokens), n)
        if n == 0:
            return x, recent
        seen = torch.cat((recent.to(tokens.dtype), tokens + 1), dim=1)
        for lag, table in enumerate(self.lags, start=1):
            x = x + table(seen[:, n - lag : seen.shape[1] - lag])
        return x, seen[:, seen.shape[1] - n :]


def init_linears(module: nn.Module, std: float, names_out: tuple[str, ...], std_out: float) -> None:
    """Normal weights and zero biases; the projections named in `names_out`, which write to the residual stream,
    get `std_out` (0: they start as zeros)."""
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=std_out if name.rpartition(".")[2] in names_out else std)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
