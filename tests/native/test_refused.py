"""Kernels are not pointed to what has no memory of its own, or another shape; and an error is raised where memory ends.

While something is traced, transformed or only pretended, PyTorch's operations are taken.
"""

import pytest
import torch
import torch.nn.functional as F
from tests.native.test_native import normal, pytestmark  # noqa: F401
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from lmlab import native
from lmlab.models import kernels
from lmlab.models.layers import LayerNorm, RMSNorm, gelu, silu_times

WIDTH = 1024
# A row of it is as much as kernels are called for.
X = normal((3, kernels.SMALLEST // WIDTH, WIDTH), torch.float32)
EACH = pytest.mark.parametrize("f", [gelu, RMSNorm(WIDTH, eps=1e-5)], ids=["gelu", "RMSNorm"])


@pytest.fixture(autouse=True)
def _nothing_is_called(monkeypatch):
    def called(name, *rest):
        raise AssertionError(f"{name} was called")

    monkeypatch.setattr(native, "run", called)


@pytest.fixture(scope="module", autouse=True)
def _the_compiler_is_there():
    """Where it is deferred: what checks shapes here stands between its stand-in and who imports a part of it."""
    assert torch._dynamo.config


def plain(f, *inputs: Tensor) -> Tensor:
    with kernels.using("plain"):
        return f(*inputs)


@EACH
def test_otherwise_a_kernel_is_called(f):
    with pytest.raises(AssertionError, match="was called"):
        f(X[0])


@EACH
def test_tensors_that_are_only_pretended(f):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for x in (X, mode.from_tensor(X)):
            y = f(x)
            assert isinstance(y, FakeTensor)
            assert (y.shape, y.dtype) == (X.shape, X.dtype)


# It is deprecated, and tells that sizes become constants.
@pytest.mark.filterwarnings("ignore")
@EACH
def test_traced_by_jit(f):
    traced = torch.jit.trace(f, X, check_trace=False)  # or it would be called, not traced, once more
    assert torch.equal(traced(-X), plain(f, -X))


@EACH
def test_traced_by_fx(f):
    traced = make_fx(f)(X)
    assert torch.equal(traced(-X), plain(f, -X))
    if f is gelu:
        assert torch.ops.aten.gelu.default in [node.target for node in traced.graph.nodes]


# What jvp takes of torch.jit is deprecated.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@EACH
def test_transformed(f):
    assert torch.equal(torch.func.vmap(f)(X), plain(f, X))
    tangent = normal(X.shape, X.dtype, 1)
    found = torch.func.jvp(f, (X,), (tangent,))
    expected = plain(lambda x: torch.func.jvp(f, (x,), (tangent,)), X)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    gradient = torch.func.grad(lambda x: f(x).sum())
    assert torch.equal(gradient(X), plain(gradient, X))


@pytest.mark.parametrize("name", ["RMSNorm", "LayerNorm"])
def test_a_norm_of_another_width_is_refused_as_by_torch(name):
    x = normal((128, WIDTH // 2), torch.float32)
    with pytest.raises(RuntimeError) as expected:
        getattr(nn, name)(WIDTH, eps=1e-5)(x)
    with pytest.raises(RuntimeError) as found:
        {"RMSNorm": RMSNorm, "LayerNorm": LayerNorm}[name](WIDTH, eps=1e-5)(x)
    assert str(found.value) == str(expected.value)


def test_a_gate_and_what_it_opens_may_be_of_two_shapes():
    row = normal((WIDTH,), torch.float32, 1)
    for pair in ((X, row), (row, X)):
        leaves = [t.clone().requires_grad_() for t in pair]
        y, expected = silu_times(*leaves), F.silu(leaves[0]) * leaves[1]
        assert torch.equal(y, expected)
        found, theirs = (torch.autograd.grad(out.sum(), leaves) for out in (y, expected))
        assert all(torch.equal(a, b) for a, b in zip(found, theirs, strict=True))


def half(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.bfloat16)


NO_ROOM = {
    "weight_gradient_tiles": lambda: native.weight_gradient_tiles(half(3, 4), half(3, 5)),
    "head_tiles": lambda: native.head_tiles(
        half(3, 4), torch.zeros(5, 4), None, torch.zeros(3, dtype=torch.long), half(1024)
    ),
    "head_backward_tiles": lambda: native.head_tiles_backward(
        half(3, 4), torch.zeros(5, 4), half(1024), torch.zeros(1, 32), torch.zeros(3), torch.zeros(3), None, None
    ),
    "lstm_tiles": lambda: native.lstm_tiles(
        half(2, 3, 16), half(16, 4), half(3, 3, 4), torch.zeros(3, 3, 4), torch.zeros(2, 3, 16)
    ),
    "lstm_backward_tiles": lambda: native.lstm_tiles_backward(
        half(2, 3, 4), half(16, 4), torch.zeros(3, 3, 4), torch.zeros(2, 3, 16), torch.zeros(3, 4), half(2, 3, 16)
    ),
}


@pytest.mark.parametrize("name", NO_ROOM)
def test_where_there_is_no_memory_it_is_told(name, monkeypatch):
    called = []
    monkeypatch.setattr(native, "run", lambda name, *rest: called.append(name) or 1)
    with pytest.raises(MemoryError, match=f"not enough memory for {name}$"):
        NO_ROOM[name]()
    assert called == [name]
