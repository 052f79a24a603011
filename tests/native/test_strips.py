"""Weights in strips: the layout, and products with them, at sizes that fill no strip."""

import pytest
import torch
from tests.native.test_native import BOTH, check, normal, pytestmark  # noqa: F401

from lmlab.native.build import library
from lmlab.native.step import in_strips, product

SIZES = [(1, 1), (3, 17), (16, 5), (64, 16), (65, 33), (200, 100), (129, 1)]


@BOTH
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_strips_are_the_matrix_in_another_order(size, dtype):
    weight, width = normal(size, torch.float32), library().strip_width()
    (strips,) = in_strips([weight], dtype)
    outputs, inputs = size
    assert strips.shape == (-(-outputs // width), inputs, width)
    back = strips.transpose(1, 2).flatten(0, 1)
    assert torch.equal(back[:outputs], weight.to(dtype))
    assert not back[outputs:].any()
    assert torch.equal(in_strips([weight.t().contiguous().t()], dtype)[0], strips)


@BOTH
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 11])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_product_with_strips_is_a_linear_layer(size, rows, dtype):
    weight, x = normal(size, torch.float32), normal((rows, 1, size[1]), torch.float32, 1)
    for bias in (None, normal(size[:1], torch.float32, 2)):
        found = product(x, *in_strips([weight], dtype), bias, size[0])
        exact = x.double() @ weight.to(dtype).double().t()
        check(found, exact if bias is None else exact + bias.double(), absolute=1e-5)


def test_the_same_numbers_come_out_on_two_threads():
    weight, x = normal((300, 50), torch.float32), normal((7, 50), torch.float32, 1)
    one = product(x, *in_strips([weight], torch.float32), None, 300)
    try:
        torch.set_num_threads(2)
        assert torch.equal(product(x, *in_strips([weight], torch.float32), None, 300), one)
    finally:
        torch.set_num_threads(1)


def test_what_does_not_fit_is_refused():
    (strips,) = in_strips([normal((10, 8), torch.float32)], torch.float32)
    for x, outputs in ((torch.ones(2, 9), 10), (torch.ones(2, 8).bfloat16(), 10), (torch.ones(2, 8), 1000)):
        with pytest.raises(ValueError, match="does not fit strips"):
            product(x, strips, None, outputs)


def test_several_matrices_lie_one_after_another():
    weights = [normal(size, torch.float32) for size in SIZES]
    together = in_strips(weights, torch.float32)
    for weight, strips in zip(weights, together, strict=True):
        assert torch.equal(strips, *in_strips([weight], torch.float32))
    assert together[1].data_ptr() == together[0].data_ptr() + together[0].nbytes
