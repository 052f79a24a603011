"""Memory is used again, and never while somebody still needs what is in it."""

import platform
import resource

import pytest
import torch

from lmlab.models import cross_entropy, workspace
from lmlab.models.cross_entropy import linear_nll
from lmlab.models.workspace import clear, kept, room

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch):
    monkeypatch.setattr(workspace, "LARGE_BYTES", 1)
    clear()
    yield
    clear()


def test_what_nobody_holds_is_used_again_and_what_somebody_holds_is_not():
    first = room("a", (4, 8), torch.float32, CPU)
    address = first.data_ptr()
    assert room("a", (4, 8), torch.float32, CPU).data_ptr() != address, "still held"
    del first
    second = room("a", (4, 8), torch.float32, CPU)
    address, view = second.data_ptr(), second[1:]
    del second
    third = room("a", (4, 8), torch.float32, CPU)
    assert third.data_ptr() != address, "a view of it is still held"
    address = third.data_ptr()
    del third, view
    assert room("a", (4, 8), torch.float32, CPU).data_ptr() == address


def test_another_shape_type_or_name_has_memory_of_its_own():
    held = room("a", (4, 8), torch.float32, CPU)
    for name, shape, dtype in (("b", (4, 8), torch.float32), ("a", (8, 4), torch.float32), ("a", (4, 8), torch.half)):
        other = room(name, shape, dtype, CPU)
        assert (other.shape, other.dtype) == (shape, dtype)
        assert other.data_ptr() != held.data_ptr()


def test_small_pieces_and_cleared_ones_are_not_kept(monkeypatch):
    room("a", (4, 8), torch.float32, CPU)
    assert workspace._kept
    clear()
    monkeypatch.setattr(workspace, "LARGE_BYTES", 2**20)
    room("a", (4, 8), torch.float32, CPU)
    assert not workspace._kept


@pytest.fixture
def problem(monkeypatch):
    monkeypatch.setattr(cross_entropy, "SMALL", 0)
    torch.manual_seed(0)
    weight, bias = torch.randn(90, 6, requires_grad=True), torch.randn(90, requires_grad=True)
    return weight, bias, torch.randn(3, 20, 6), torch.randint(90, (3, 20))


def plain(weight, bias, hidden, targets):
    return torch.nn.functional.cross_entropy(torch.nn.functional.linear(hidden, weight, bias), targets, reduction="sum")


def test_gradients_are_right_step_after_step_and_use_one_piece_of_memory(problem):
    weight, bias, hidden, targets = problem
    addresses = set()
    for h, t in zip(hidden, targets, strict=True):
        weight.grad = None
        linear_nll(h, weight, bias, t).sum().backward()
        (expected,) = torch.autograd.grad(plain(weight, bias, h, t), weight)
        torch.testing.assert_close(weight.grad, expected, rtol=1e-5, atol=1e-5)
        addresses.add(weight.grad.data_ptr())
    assert len(addresses) == 1, "autograd took it as it is, and the next step wrote into the same"


@pytest.mark.parametrize("together", [True, False], ids=["one backward pass", "one each"])
def test_several_losses_of_one_matrix_add_up(problem, together):
    weight, bias, hidden, targets = problem
    losses = [linear_nll(h, weight, bias, t).sum() for h, t in zip(hidden, targets, strict=True)]
    for loss in [sum(losses)] if together else losses:
        loss.backward()
    (expected,) = torch.autograd.grad(
        sum(plain(weight, bias, h, t) for h, t in zip(hidden, targets, strict=True)), weight
    )
    torch.testing.assert_close(weight.grad, expected, rtol=1e-5, atol=1e-5)


def test_a_gradient_that_somebody_keeps_stays_as_it_was(problem):
    weight, bias, hidden, targets = problem
    linear_nll(hidden[0], weight, bias, targets[0]).sum().backward()
    kept, before, weight.grad = weight.grad, weight.grad.clone(), None
    linear_nll(hidden[1], weight, bias, targets[1]).sum().backward()
    assert torch.equal(kept, before)


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def freed_and_allocated() -> int:
    """Pages fetched while 8 blocks of 16 MB are written to twice, freed in between."""
    before = faults()
    for _ in range(2):
        blocks = [torch.ones(2**22) for _ in range(8)]
        del blocks
    return faults() - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are left as they are")
def test_what_is_freed_within_is_there_for_the_next_step_and_is_given_back_at_the_end(monkeypatch):
    pages = 8 * 2**24 // resource.getpagesize()
    for name in ("GLIBC_TUNABLES", *(n for n in workspace.os.environ if n.startswith("MALLOC_"))):
        monkeypatch.delenv(name, raising=False)
    with kept():
        room("a", (2**11, 2**11), torch.float32, CPU)
        freed_and_allocated()
        # Of twice `pages`. One of the blocks may not fit between what earlier tests left on the heap.
        assert freed_and_allocated() < pages // 4
        with kept():
            pass
        assert "a" in workspace._kept
        assert freed_and_allocated() < pages // 4, "one within gives nothing back"
    assert not workspace._kept
    assert freed_and_allocated() > pages // 8, "given back"


def test_what_the_user_chose_for_the_allocator_stays(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "100000")
    assert workspace._glibc() is None
