"""A step of a Transformer's blocks, `step.h`: what it is given, and the call."""

import ctypes
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lmlab import native
from lmlab.native.build import library

ACTIVATIONS = ("gelu", "relu2", "swiglu")
SIZES = (*("rows", "width", "heads", "kv_heads", "d_head", "d_ff", "activation", "centred"), "slots", "used", "slot")
POINTERS = ("cos", "sin", "mask", "scratch")


class Step(ctypes.Structure):
    """What all blocks have in common: `Step` of step.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in SIZES),
        ("eps", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in POINTERS),
    )


class Block(ctypes.Structure):
    """Where a block's weights and cache lie: `Block` of step_blocks.h. None for what it lacks."""

    _fields_ = tuple(
        (name, ctypes.c_void_p)
        for name in (
            *("attention_norm", "attention_norm_bias", "qkv", "qkv_bias", "q_norm", "k_norm", "out", "out_bias"),
            *("mlp_norm", "mlp_norm_bias", "gate", "gate_bias", "up", "up_bias", "down", "down_bias"),
            *("keys", "values"),
        )
    )


def in_strips(weights: Sequence[Float[Tensor, "_ _"]], dtype: torch.dtype) -> list[Float[Tensor, "S I W"]]:
    """Linear layers' fp32 weights (O, I) as a step takes them: strips of W outputs next to each other, the last one
    filled up. They lie one after another in one piece of memory."""
    width = library().strip_width()
    shapes = [(math.ceil(len(weight) / width), weight.shape[1], width) for weight in weights]
    sizes = [math.prod(shape) for shape in shapes]
    memory = torch.empty(sum(sizes), dtype=dtype, device="cpu")
    native.run("want_large_pages", memory, memory.nbytes)
    made = [part.view(shape) for part, shape in zip(memory.split(sizes), shapes, strict=True)]
    for weight, strips in zip(weights, made, strict=True):
        native.call("into_strips", dtype, weight.contiguous(), strips, *weight.shape)
    return made


def product(
    x: Float[Tensor, "*B J"], strips: Float[Tensor, "S I W"], bias: Float[Tensor, " O"] | None, outputs: int
) -> Float[Tensor, "*B O"]:
    """F.linear of x, fp32, with weights `in_strips`."""
    inputs, most = strips.shape[1], strips.shape[0] * strips.shape[2]
    if x.dtype is not torch.float32 or x.shape[-1] != inputs or not 0 < outputs <= most:
        raise ValueError(f"{tuple(x.shape)} {x.dtype} to {outputs} outputs does not fit strips {tuple(strips.shape)}")
    y = x.new_empty(*x.shape[:-1], outputs)
    rows = y.numel() // outputs
    native.call("strips_product", strips.dtype, x.contiguous(), strips, bias, y, rows, inputs, outputs)
    return y


def scratch_size(step: Step) -> int:
    """Numbers of fp32 that a step needs room for."""
    qkv, all_heads = (step.heads + 2 * step.kv_heads) * step.d_head, step.heads * step.d_head
    return step.rows * (step.width + qkv + all_heads + step.d_ff + step.heads * step.used)


def run(blocks: ctypes.Array, step: Step, x: Float[Tensor, "B *T D"], dtype: torch.dtype) -> None:
    """x, fp32, becomes what the blocks make of it. dtype: of matrices and caches."""
    native.call("transformer_step", dtype, blocks, len(blocks), ctypes.byref(step), x)
