"""Weights laid out for products with few rows, while a text is written: twice as fast where a matrix is large."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmlab.models.head import LinearHead
from lmlab.models.lstm_layer import LSTMWeights

# Rows of a step, and numbers in a matrix, from which the packed product is quicker than F.linear (two cores with
# AVX-512, fp32, microseconds plain and packed). One row: 768 x 256 19 and 27, 768 x 768 180 and 124, 3072 x 768 766 and
# 319, 50257 x 768 20,762 and 8,952. More: 256 x 256 16 and 31, 768 x 256 44 and 31 (16 rows: 62 and 50), 3072 x 768
# 1,400 and 546. 3072 x 768 with 64 rows: 2,176 and 1,497, with 256: 7,476 and 9,432; so prompts are read as before.
MOST_ROWS = 64
SMALLEST_ONE, SMALLEST = 2**19, 3 * 2**16
# Packing takes about as long as four steps.
FEWEST_STEPS = 16


def can_pack(weight: Tensor) -> bool:
    """Whether this machine has the packed product, and was found to gain by it: AVX-512, fp32, weights at rest."""
    return (
        weight.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
    )


def pays(weight: Tensor, rows: int) -> bool:
    """Whether the packed product of this many rows is the quicker one."""
    return rows <= MOST_ROWS and weight.numel() >= (SMALLEST_ONE if rows == 1 else SMALLEST)


def product(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """F.linear with this weight (N, K), whose packed copy it holds."""
    kept = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    pointwise, width = torch.ops.mkldnn._linear_pointwise, weight.shape[1]

    def multiply(x: Tensor) -> Tensor:
        if not pays(weight, x.numel() // width):
            return F.linear(x, weight, bias)
        return pointwise(x, kept, bias, "none", [], "")

    return multiply


@contextmanager
def packed(model: nn.Module, rows: int, steps: int) -> Iterator[None]:
    """Within, `model` takes packed products wherever they pay for steps of up to `rows` rows.

    Weights must not change within. The copies, of at most the model's size, are freed at the end.
    """
    changed: list[tuple[nn.Module, str]] = []
    try:
        for part in model.modules() if steps >= FEWEST_STEPS else ():
            for name, weight, bias in _matrices(part):
                if can_pack(weight) and pays(weight, rows):
                    # An attribute of the object goes before the method of its class.
                    part.__dict__[name] = product(weight.detach(), None if bias is None else bias.detach())
                    changed.append((part, name))
        yield
    finally:
        for part, name in changed:
            del part.__dict__[name]


def _matrices(part: nn.Module) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """Each method of `part` that only multiplies by a matrix and adds a bias, with these two."""
    if type(part) is nn.Linear:
        yield "forward", part.weight, part.bias
    elif isinstance(part, LinearHead):
        yield "multiply", part.weight, part.bias
    elif isinstance(part, LSTMWeights):
        yield "from_input", part.weight_ih_l0, part.bias_ih_l0
        yield "from_hidden", part.weight_hh_l0, part.bias_hh_l0
