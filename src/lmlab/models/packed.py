"""Weights laid out for products with few rows, while a text is written: twice as fast where a matrix is large."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmlab.models import kernels
from lmlab.models.head import LinearHead
from lmlab.models.layers import Linear
from lmlab.models.lstm_layer import LSTMWeights, onednn_computes_in

# Weights that lie in the processor's caches are multiplied fast as they are; others are read at 28 GB/s when packed,
# at 12 by F.linear. Microseconds a product, plain and packed, over the matrices of a model (two cores with AVX-512,
# fp32), for 1 row and 16: 0.8M numbers 8 and 20, 30 and 32; 4.7M 82 and 65, 115 and 79; 11M 163 and 128, 470 and 140;
# 42M 595 and 340, 3,551 and 1,613. A head of 50,257 x 768 alone, 1 row: 20,762 and 8,952. On two threads of AVX2 the
# head takes 16,781 and 13,060 for 1 row, 54,097 and 18,792 for 16; 3072 x 768 1,072 and 907, 3,192 and 1,322.
LARGE = 2**22
# Single matrices in a cache: 256 x 256 7 and 21, 16 and 31 of 4 rows; 1024 x 256 27 and 29, 58 and 36.
SMALLEST = 3 * 2**16
# Processors with AMX are Intel's, whose own library multiplies one or two rows faster than that: 50,257 x 768, 1 row
# 5,738 and 6,098, 4 rows 12,308 and 7,098; 3072 x 768, 1 row 232 and 321, 4 rows 403 and 307.
FEWEST_WITH_TILES = 3
# 3072 x 768, 64 rows: 2,176 and 1,497; 256 rows: 7,476 and 9,432. So prompts are read as before.
MOST_ROWS = 64
CAPABLE = ("AVX2", "AVX512")
# Packing takes about as long as four steps.
FEWEST_STEPS = 16


def can_pack(weight: Tensor) -> bool:
    """Whether this machine has the packed product in autocast's type, and its kind was found to gain by it; fp32
    weights, at rest."""
    dtype = _type()
    return (
        kernels.may_be_ours(weight.device)
        and (dtype is torch.float32 or (dtype is torch.bfloat16 and onednn_computes_in(dtype)))
        and weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() in CAPABLE
    )


def pays(weight: Tensor, rows: int, dtype: torch.dtype) -> bool:
    """Whether the packed product of this many rows, made in `dtype`, is the quicker one."""
    if dtype is torch.bfloat16:
        # Autocast would keep a copy of its own, too.
        return weight.numel() >= SMALLEST
    # One thread reads a matrix for one row as fast as it is: 487 and 511 at 42M.
    fewest = 1 if torch.get_num_threads() > 1 else 2
    if kernels.have_tiles(weight.device):
        fewest = FEWEST_WITH_TILES
    return fewest <= rows <= MOST_ROWS and weight.numel() >= SMALLEST


def product(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """F.linear with this weight (N, K), in autocast's type, of which it holds a packed copy."""
    dtype, pointwise, width = _type(), torch.ops.mkldnn._linear_pointwise, weight.shape[1]
    kept = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype), None)
    shift = None if bias is None else bias.to(dtype)

    def multiply(x: Tensor) -> Tensor:
        if not pays(weight, x.numel() // width, dtype):
            return F.linear(x, weight, bias)
        return pointwise(x.to(dtype), kept, shift, "none", [], "")

    return multiply


def _type() -> torch.dtype:
    """In which products of fp32 numbers are made."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32


@contextmanager
def packed(model: nn.Module, rows: int, steps: int) -> Iterator[None]:
    """Within, `model` takes packed products wherever they pay for steps of up to `rows` rows.

    Weights must not change within. The copies, of at most the model's size, are freed at the end.
    """
    changed: list[tuple[nn.Module, str]] = []
    try:
        matrices = [m for part in model.modules() for m in _matrices(part) if can_pack(m[2])]
        if steps < FEWEST_STEPS or sum(weight.numel() for _, _, weight, _ in matrices) < LARGE:
            matrices = []
        for part, name, weight, bias in matrices:
            if pays(weight, rows, _type()):
                # An attribute of the object goes before the method of its class.
                part.__dict__[name] = product(weight.detach(), None if bias is None else bias.detach())
                changed.append((part, name))
        yield
    finally:
        for part, name in changed:
            del part.__dict__[name]


def _matrices(part: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor, Tensor | None]]:
    """Each method of `part` that only multiplies by a matrix and adds a bias, with these two."""
    if type(part) in (nn.Linear, Linear):
        yield part, "forward", part.weight, part.bias
    elif isinstance(part, LinearHead):
        yield part, "multiply", part.weight, part.bias
    elif isinstance(part, LSTMWeights):
        yield part, "from_input", part.weight_ih_l0, part.bias_ih_l0
        yield part, "from_hidden", part.weight_hh_l0, part.bias_hh_l0
