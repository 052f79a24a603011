"""Kernels of C: passes over memory that PyTorch makes one operator at a time, joined. Each states what it equals.

Tensors lie on a processor, contiguous, and hold bf16 or fp32; arithmetic is fp32. `serves` says whether there are
kernels; without, callers take PyTorch's operations.
"""

import ctypes
import math
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from lmlab.native.build import library

SUFFIXES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
# Rows whose part of a norm's gradient is added at once, and keys of a row of attention: kernels.c's.
STRETCH_ROWS, MOST_KEYS = 64, 4096

# And what ctypes makes: arrays and references.
Argument = Tensor | int | float | Any | None


def are_ordinary(*tensors: Tensor) -> bool:
    """Whether these have memory of a processor's that a kernel may be pointed to: not while something is traced,
    transformed (torch.func) or only pretended (FakeTensorMode)."""
    return (
        all(type(t) in (Tensor, nn.Parameter) and t.device.type == "cpu" for t in tensors)
        and not torch.jit.is_tracing()
        and _get_current_dispatch_mode() is None
        and torch._C._functorch.peek_interpreter_stack() is None
    )


def serves(*tensors: Tensor) -> bool:
    """Whether kernels are there for tensors like these, once they are contiguous."""
    first = tensors[0].dtype
    alike = first in SUFFIXES and all(t.dtype is first for t in tensors)
    return alike and are_ordinary(*tensors) and library() is not None


@cache
def has_tiles() -> bool:
    """Whether there are kernels for AMX: the processor has it, the compiler knew it, and the system lets us use it."""
    return library() is not None and library().tiles_are_there() != 0


def call(name: str, dtype: torch.dtype, *arguments: Argument) -> None:
    """A kernel that is there for both types."""
    run(f"{name}_{SUFFIXES[dtype]}", *arguments)


def run(name: str, *arguments: Argument) -> int:
    # Asked for, it becomes that of this Python thread, whose number is else OpenMP's own.
    torch.get_num_threads()
    return getattr(library(), name)(*(_argument(argument) for argument in arguments))


def _run_tiles(name: str, *arguments: Argument) -> None:
    if run(name, *arguments):
        raise MemoryError(f"not enough memory for {name}")


def _argument(value: Argument) -> Any:
    if isinstance(value, Tensor):
        if not value.is_contiguous():
            raise ValueError(f"a kernel was given {tuple(value.shape)} with strides {value.stride()}")
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, float):
        return ctypes.c_float(value)
    return ctypes.c_int64(value) if isinstance(value, int) else value


def _pointwise(name: str, *given: Tensor) -> Tensor:
    """A number for each number of tensors that are alike."""
    y = torch.empty_like(given[0])
    call(name, y.dtype, *given, y, y.numel())
    return y


def gelu(x: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """F.gelu(x, approximate="tanh")."""
    return _pointwise("gelu", x)


def gelu_backward(x: Float[Tensor, "*N"], dy: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    return _pointwise("gelu_backward", x, dy)


def squared_relu(x: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """F.relu(x).square()."""
    return _pointwise("squared_relu", x)


def squared_relu_backward(x: Float[Tensor, "*N"], dy: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    return _pointwise("squared_relu_backward", x, dy)


def swiglu(gate: Float[Tensor, "*N"], up: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """F.silu(gate) * up."""
    return _pointwise("swiglu", gate, up)


def swiglu_backward(
    gate: Float[Tensor, "*N"], up: Float[Tensor, "*N"], dy: Float[Tensor, "*N"]
) -> tuple[Float[Tensor, "*N"], Float[Tensor, "*N"]]:
    """The gradients of gate and up."""
    d_gate, d_up = torch.empty_like(gate), torch.empty_like(up)
    call("swiglu_backward", gate.dtype, gate, up, dy, d_gate, d_up, gate.numel())
    return d_gate, d_up


def attention_softmax_(
    scores: Float[Tensor, "B H Q K"], scale: float, mask: Float[Tensor, "M Q K"] | None
) -> Float[Tensor, "B H Q K"]:
    """In place, torch.softmax(scores * scale + mask, -1). mask: fp32, M 1 or H; None: query t sees the keys up to
    t + K - Q."""
    B, H, Q, K = scores.shape
    if K > MOST_KEYS or (mask is None and K < Q):
        raise ValueError(
            f"{Q} queries and {K} keys: there must be at most {MOST_KEYS} keys, and without a mask Q or more"
        )
    if mask is not None and (mask.dtype is not torch.float32 or mask.shape not in ((1, Q, K), (H, Q, K))):
        raise ValueError(f"mask {tuple(mask.shape)} {mask.dtype} must be fp32 of (1 or {H}, {Q}, {K})")
    mask = None if mask is None else mask.contiguous()
    heads = 1 if mask is None else len(mask)
    call("attention_softmax", scores.dtype, scores, mask, B, H, Q, K, heads, float(scale))
    return scores


def attention_softmax_backward_(
    p: Float[Tensor, "N Q K"], d: Float[Tensor, "N Q K"], scale: float, causal: bool
) -> Float[Tensor, "N Q K"]:
    """In place of d, the gradient of p: that of the scores. causal: there was no mask."""
    N, Q, K = p.shape
    if causal and K < Q:
        raise ValueError(f"{Q} queries and {K} keys: without a mask there must be Q or more")
    call("attention_softmax_backward", p.dtype, p, d, N * Q, Q, K, int(causal), float(scale))
    return d


def lstm_step(
    z: Float[Tensor, "B G"],
    before: Float[Tensor, "B H"],
    gates: Float[Tensor, "B G"],
    after: Float[Tensor, "B H"],
    h: Float[Tensor, "B H"],
) -> None:
    """One position: from z, what goes into the gates, and c before it to the gates, c and h. All but z and h fp32."""
    call("lstm_step", z.dtype, z, before, gates, after, h, len(h), h.shape[1])


def lstm_step_backward(
    dy: Float[Tensor, "B H"],
    dh: Float[Tensor, "B H"] | None,
    dc: Float[Tensor, "B H"],
    gates: Float[Tensor, "B G"],
    before: Float[Tensor, "B H"],
    after: Float[Tensor, "B H"],
    dz: Float[Tensor, "B G"],
) -> None:
    """From h's gradient, dy + dh, and c's, dc, to z's; dc becomes that of c before."""
    call("lstm_step_backward", dy.dtype, dy, dh, dc, gates, before, after, dz, len(dy), dy.shape[1])


def lstm_tiles(
    z: Float[Tensor, "T B G"],
    w: Float[Tensor, "G H"],
    h: Float[Tensor, "N B H"],
    c: Float[Tensor, "N B H"],
    gates: Float[Tensor, "T B G"],
) -> None:
    """`lstm_step` over all positions, with their recurrent products.

    z, w and h are bf16, c and gates fp32; h and c have one position more, the first, which is given. Needs `has_tiles`.
    """
    _run_tiles("lstm_tiles", z, w, h, c, gates, len(z), z.shape[1], w.shape[1])


def lstm_tiles_backward(
    dy: Float[Tensor, "T B H"],
    w: Float[Tensor, "G H"],
    c: Float[Tensor, "N B H"],
    gates: Float[Tensor, "T B G"],
    dc: Float[Tensor, "B H"],
    dz: Float[Tensor, "T B G"],
) -> None:
    """From h's gradient from above, dy, and the last c's, dc, to z's, which is written; dc becomes the first c's."""
    _run_tiles("lstm_backward_tiles", dy, w, c, gates, dc, dz, len(dy), dy.shape[1], w.shape[1])


def weight_gradient_tiles(
    dy: Float[Tensor, "N O"], x: Float[Tensor, "N I"]
) -> tuple[Float[Tensor, "O I"], Float[Tensor, " O"]]:
    """dy.t() @ x and dy.sum(0), in bf16: a linear layer's gradients. Needs `has_tiles`."""
    (N, O), I = dy.shape, x.shape[1]  # noqa: E741
    dw, db = dy.new_empty(O, I), dy.new_empty(O)
    _run_tiles("weight_gradient_tiles", dy, x, dw, db, N, O, I)
    return dw, db


def softmax_block_(
    z: Float[Tensor, "K N V"],
    targets: Int[Tensor, " N"],
    first: int,
    peak: Float[Tensor, " N"],
    total: Float[Tensor, " N"],
    picked: Float[Tensor, " N"],
) -> Float[Tensor, "K N"]:
    """Logits of the ids from `first` on become e^(z - top), but zero for a row's target; returns top, (K, N).

    What was known of earlier blocks goes on: peak, the largest logit but for the target's; total, the sum of e^(logit -
    peak) of the same; picked, the target's.
    """
    K, N, V = z.shape
    top = peak.new_empty(K, N)
    call("softmax_block", z.dtype, z, targets.long().contiguous(), top, peak, total, picked, K, N, V, first)
    return top


def add_scaled_rows_(
    sums: Float[Tensor, "N D"], parts: Float[Tensor, "K N D"], factors: Float[Tensor, "K N"]
) -> Float[Tensor, "N D"]:
    """sums += (parts * factors[..., None]).sum(0)."""
    call("add_scaled_rows", parts.dtype, sums, parts, factors, *parts.shape)
    return sums


def norm(
    x: Float[Tensor, "*N D"], weight: Float[Tensor, " D"], bias: Float[Tensor, " D"] | None, eps: float, centred: bool
) -> tuple[Float[Tensor, "*N D"], Float[Tensor, " R"] | None, Float[Tensor, " R"]]:
    """F.layer_norm, or F.rms_norm where not centred; and means and inverse deviations of rows, for the way back."""
    rows, width = x.numel() // x.shape[-1], x.shape[-1]
    if any(t.shape != (width,) for t in (weight, bias) if t is not None):
        raise ValueError(f"a norm of {tuple(weight.shape)} was given rows of {width}")
    y, inverse = torch.empty_like(x), x.new_empty(rows, dtype=torch.float32)
    means = torch.empty_like(inverse) if centred else None
    call("norm", x.dtype, x, weight, bias, y, means, inverse, rows, width, float(eps))
    return y, means, inverse


def norm_backward(
    dy: Float[Tensor, "*N D"],
    x: Float[Tensor, "*N D"],
    weight: Float[Tensor, " D"],
    has_bias: bool,
    means: Float[Tensor, " R"] | None,
    inverse: Float[Tensor, " R"],
) -> tuple[Float[Tensor, "*N D"], Float[Tensor, " D"], Float[Tensor, " D"] | None]:
    """The gradients of x, weight and bias."""
    rows, width = len(inverse), x.shape[-1]
    dx = torch.empty_like(x)
    d_weight = inverse.new_zeros(math.ceil(rows / STRETCH_ROWS), width)
    d_bias = torch.zeros_like(d_weight) if has_bias else None
    call("norm_backward", x.dtype, dy, x, weight, means, inverse, dx, d_weight, d_bias, rows, width)
    return dx, d_weight.sum(0).to(x.dtype), None if d_bias is None else d_bias.sum(0).to(x.dtype)


def dropout(x: Float[Tensor, "*N"], p: float, seed: int) -> Float[Tensor, "*N"]:
    """x with each number zero with probability p, the others by 1 / (1 - p): the same ones for the same seed.

    p rounded to a multiple of 2^-32. seed: of 63 bits.
    """
    y = torch.empty_like(x)
    call("dropout", x.dtype, x, y, x.numel(), seed, min(round(p * 2**32), 2**32 - 1), 1 / (1 - p))
    return y


def _up(n: int) -> int:
    """To whole tiles."""
    return math.ceil(n / 32) * 32


def head_tiles(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    bias: Float[Tensor, " V"] | None,
    targets: Int[Tensor, " N"],
    p: Float[Tensor, " P"],
) -> tuple[Float[Tensor, "S M"], Float[Tensor, "S M"], Float[Tensor, " N"]]:
    """The logits of hidden (bf16) weight' + bias (fp32), S strips of 32 words at a time. Needs `has_tiles`.

    p (bf16, of `head_tiles_size` numbers) becomes e^(logit - top), in the kernels' own order; zero for a row's target.
    Returns top and sum of each strip and row, where M is N in whole tiles, and the targets' logits.
    """
    (N, D), V = hidden.shape, len(weight)
    tops = weight.new_empty(_up(V) // 32, _up(N))
    sums, picked = torch.empty_like(tops), weight.new_zeros(N)
    _run_tiles("head_tiles", hidden, weight, bias, targets.long().contiguous(), p, tops, sums, picked, N, V, D)
    return tops, sums, picked


def head_tiles_size(n: int, vocab_size: int) -> int:
    return _up(n) * _up(vocab_size)


def head_tiles_backward(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    p: Float[Tensor, " P"],
    tops: Float[Tensor, "S M"],
    peak: Float[Tensor, " N"],
    share: Float[Tensor, " N"],
    d_weight: Float[Tensor, "V D"] | None,
    d_bias: Float[Tensor, " V"] | None,
) -> Float[Tensor, "N D"]:
    """hidden's gradient where a logit's is share * e^(logit - peak), but zero for the targets; d_weight and d_bias are
    written. p is spoilt."""
    (N, D), V = hidden.shape, len(weight)
    turned = weight.new_zeros(_up(D), _up(N))
    _run_tiles("head_backward_tiles", hidden, weight, p, tops, peak, share, turned, d_weight, d_bias, N, V, D)
    return turned[:D, :N].t()
