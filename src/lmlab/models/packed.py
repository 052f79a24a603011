"""Weights laid out for products with few rows, while a text is written: twice as fast where a matrix is large."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmlab import native
from lmlab.models import kernels
from lmlab.models.head import LinearHead
from lmlab.models.layers import Linear
from lmlab.models.lstm_layer import LSTMWeights, onednn_computes_in
from lmlab.models.step import Step, can_step
from lmlab.native import step as compiled

# Weights that lie in the processor's caches are multiplied fast as they are; others are read at 28 GB/s when packed,
# at 12 by F.linear. Microseconds a product, plain and packed by oneDNN, over the matrices of a model (two cores with
# AVX-512, fp32), for 1 row and 16: 0.8M numbers 8 and 20, 30 and 32; 4.7M 82 and 65, 115 and 79; 11M 163 and 128, 470
# and 140; 42M 595 and 340, 3,551 and 1,613. A head of 50,257 x 768 alone, 1 row: 20,762 and 8,952. On two threads of
# AVX2 the head takes 16,781 and 13,060 for 1 row, 54,097 and 18,792 for 16; 3072 x 768 1,072 and 907, 3,192 and 1,322.
LARGE = 2**22
# Single matrices in a cache: 256 x 256 7 and 21, 16 and 31 of 4 rows; 1024 x 256 27 and 29, 58 and 36.
SMALLEST = 3 * 2**16
# Processors with AMX are Intel's, whose own library multiplies one or two rows faster than that: 50,257 x 768, 1 row
# 5,738 and 6,098, 4 rows 12,308 and 7,098; 3072 x 768, 1 row 232 and 321, 4 rows 403 and 307.
FEWEST_WITH_TILES = 3
# 3072 x 768, 64 rows: 2,176 and 1,497; 256 rows: 7,476 and 9,432. So prompts are read as before.
MOST_ROWS = 64
# All blocks of a Transformer in one call, and an operation at a time with the same products, tokens a second (two cores
# with AVX-512): 6 layers of 256, 1 row 1,860 and 797, 16 rows 7,564 and 4,278, 64 rows 8,173 and 5,764; in bf16 beside
# oneDNN's 2,272 and 642, 10,013 and 3,655, 10,643 and 4,935. GPT-2 small, a step of 1 row 5.6 ms and 6.9, of 16 rows
# 11.9 and 16.5; in bf16, tokens a second, of 64 rows 1,014 and 988. AMX multiplies bf16 faster than that: not measured.
MOST_BF16_ROWS_WITH_TILES = 16
CAPABLE = ("AVX2", "AVX512")
# Packing takes about as long as four steps.
FEWEST_STEPS = 16


def can_pack(weight: Tensor) -> bool:
    """Whether this machine has a packed product in autocast's type, and its kind was found to gain by it; fp32
    weights, at rest."""
    return weight.dtype is torch.float32 and kernels.may_be_ours(weight.device) and (is_ours(weight) or _onednn_can())


def is_ours(weight: Tensor) -> bool:
    """Whether it is packed for a kernel of our own: no slower than oneDNN's but where that has units for bf16."""
    half = _type() is torch.bfloat16
    return _type() in native.SUFFIXES and native.serves(weight) and not (half and onednn_computes_in(torch.bfloat16))


def _onednn_can() -> bool:
    dtype = _type()
    return (
        (dtype is torch.float32 or (dtype is torch.bfloat16 and onednn_computes_in(dtype)))
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() in CAPABLE
    )


def pays(weight: Tensor, rows: int, dtype: torch.dtype, ours: bool) -> bool:
    """Whether the packed product of this many rows, made in `dtype`, is the quicker one."""
    if ours:
        return rows <= MOST_ROWS and weight.numel() >= SMALLEST
    if dtype is torch.bfloat16:
        # Autocast would keep a copy of its own, too.
        return weight.numel() >= SMALLEST
    # One thread reads a matrix for one row as fast as it is: 487 and 511 at 42M.
    fewest = 1 if torch.get_num_threads() > 1 else 2
    if kernels.have_tiles(weight.device):
        fewest = FEWEST_WITH_TILES
    return fewest <= rows <= MOST_ROWS and weight.numel() >= SMALLEST


def most_step_rows() -> int:
    """Up to how many rows a Transformer's step is quicker in one call."""
    tiles = _type() is torch.bfloat16 and kernels.have_tiles(torch.device("cpu"))
    return 0 if _type() not in native.SUFFIXES else MOST_BF16_ROWS_WITH_TILES if tiles else MOST_ROWS


def product(
    weight: Tensor, bias: Tensor | None, strips: Tensor | None = None, most: int = MOST_ROWS
) -> Callable[[Tensor], Tensor]:
    """F.linear with this weight (N, K), in autocast's type, of which it holds a packed copy.

    strips: where there is such a copy for a kernel of our own already, which then takes up to `most` rows.
    """
    dtype, width, ours = _type(), weight.shape[1], strips is not None or is_ours(weight)
    if ours:
        (strips,) = compiled.in_strips([weight], dtype) if strips is None else (strips,)
    multiply = _in_strips(strips, bias, len(weight)) if ours else _by_onednn(weight, bias)

    def product(x: Tensor) -> Tensor:
        rows = x.numel() // width
        quick = rows <= most if ours else pays(weight, rows, dtype, ours)
        return multiply(x) if quick else F.linear(x, weight, bias)

    return product


def _in_strips(strips: Tensor, bias: Tensor | None, outputs: int) -> Callable[[Tensor], Tensor]:
    return lambda x: compiled.product(x.float(), strips, bias, outputs).to(strips.dtype)


def _by_onednn(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    dtype, pointwise = _type(), torch.ops.mkldnn._linear_pointwise
    kept = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype), None)
    shift = None if bias is None else bias.to(dtype)
    return lambda x: pointwise(x.to(dtype), kept, shift, "none", [], "")


def _type() -> torch.dtype:
    """In which products of fp32 numbers are made."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32


@contextmanager
def packed(model: nn.Module, rows: int, steps: int) -> Iterator[None]:
    """Within, `model` takes packed products wherever they pay for steps of up to `rows` rows.

    Weights must not change within. The copies, of at most the model's size, are freed at the end. What is packed again
    within goes on unpacked afterwards.
    """
    changed: list[tuple[nn.Module, str, Callable]] = []
    try:
        if steps >= FEWEST_STEPS:
            for part, name, how in _quicker(model, rows):
                # An attribute of the object goes before the method of its class.
                part.__dict__[name] = how
                changed.append((part, name, how))
        yield
    finally:
        for part, name, how in changed:
            # Who packed the same model in between, within or in another thread, has put something else there.
            if part.__dict__.get(name) is how:
                del part.__dict__[name]


def _quicker(model: nn.Module, rows: int) -> Iterator[tuple[nn.Module, str, Callable]]:
    """Methods of modules, and what does the same faster."""
    parts = list(model.modules())
    if rows <= most_step_rows() and can_step(model):
        yield model, "through", (step := Step(model, _type()))
        # Short prompts take the same copies.
        for part, strips in step.strips.items():
            yield part, "forward", product(part.weight.detach(), _detached(part.bias), strips, most_step_rows())
        within = set(model.blocks.modules())
        parts = [part for part in parts if part not in within]
    matrices = [(*m, is_ours(m[2])) for part in parts for m in _matrices(part) if can_pack(m[2])]
    large = sum(weight.numel() for _, _, weight, _, ours in matrices if not ours) >= LARGE
    for part, name, weight, bias, ours in matrices:
        if (ours or large) and pays(weight, rows, _type(), ours):
            yield part, name, product(weight.detach(), _detached(bias))


def _detached(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach()


def _matrices(part: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor, Tensor | None]]:
    """Each method of `part` that only multiplies by a matrix and adds a bias, with these two."""
    if type(part) in (nn.Linear, Linear):
        yield part, "forward", part.weight, part.bias
    elif isinstance(part, LinearHead):
        yield part, "multiply", part.weight, part.bias
    elif isinstance(part, LSTMWeights):
        yield part, "from_input", part.weight_ih_l0, part.bias_ih_l0
        yield part, "from_hidden", part.weight_hh_l0, part.bias_hh_l0
