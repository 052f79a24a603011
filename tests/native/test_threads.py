"""Sums do not cross what one thread takes: the same bits come out however many there are."""

import torch
from tests.native.test_native import BOTH, in_blocks, normal, pytestmark  # noqa: F401
from torch import Tensor

from lmlab import native


def everything(dtype: torch.dtype) -> list[Tensor]:
    """What each kernel makes of more than one thread's share."""
    x, other, square = normal((40_003,), dtype), normal((40_003,), dtype, 1), normal((2, 3, 37, 41), dtype)
    rows, weight, stepped = normal((200, 33), dtype), normal((33,), dtype, 2), torch.empty(200, 8, dtype=dtype)
    found = [
        native.gelu(x),
        native.gelu_backward(x, other),
        native.dropout(x, 0.4, 77),
        *native.swiglu_backward(*[x] * 3),
    ]
    found += [native.squared_relu(x), native.squared_relu_backward(x, other), native.swiglu(x, other)]
    found += [native.attention_softmax_(square.clone(), 0.3, mask) for mask in (None, torch.zeros(3, 37, 41))]
    p = found[-1].flatten(0, 1)
    found += [
        native.attention_softmax_backward_(p, square.flatten(0, 1).clone(), 0.3, causal) for causal in (True, False)
    ]
    y, means, inverse = native.norm(rows, weight, weight, 1e-5, True)
    found += [y, means, inverse, *native.norm_backward(rows, rows, weight, True, means, inverse)]
    c, gates, after, dz = (
        torch.ones(200, 8),
        torch.empty(200, 32),
        torch.empty(200, 8),
        torch.empty(200, 32, dtype=dtype),
    )
    native.lstm_step(rows[:, :32].contiguous(), c, gates, after, stepped)
    native.lstm_step_backward(stepped, stepped, dc := c.clone(), gates, c, after, dz)
    nll = in_blocks(rows[:, :32].contiguous(), torch.arange(200) % 32, 2, (16, 16))
    added = native.add_scaled_rows_(torch.zeros(200, 33), rows[None], torch.ones(1, 200))
    return [*found, gates, after, stepped, dz, dc, nll[0], nll[1], *nll[2], added]


@BOTH
def test_the_numbers_do_not_depend_on_how_many_threads_there_are(dtype):
    try:
        torch.set_num_threads(2)
        two = everything(dtype)
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(everything(dtype), two, strict=True))
