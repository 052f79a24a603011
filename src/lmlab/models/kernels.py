"""Whose arithmetic: paths of our own where they were measured to be quicker, or PyTorch's operations alone."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lmlab import native

KERNELS = ("auto", "plain")
# Numbers from which on a compiled kernel is quicker: calling one takes 20 us, an operation of PyTorch's 5 to 10. GELU
# of 16,384 numbers 34 us and 57, of 4,096 23 and 16 (two cores with AVX-512).
SMALLEST = 2**15

# Of the whole process, as torch's number of threads is: autograd and a compiler ask in threads of their own.
_plain = False


def check(wanted: str) -> str:
    """`wanted` itself, or a ValueError that names what there is."""
    if wanted not in KERNELS:
        raise ValueError(f"kernels={wanted} is not an option: choose {', '.join(KERNELS)}")
    return wanted


@contextmanager
def using(wanted: str) -> Iterator[None]:
    """Within, `plain` leaves every path of our own; `auto` changes nothing, so that it is as plain as around it.

    The two agree up to rounding, but for dropout: its masks are others, as they are on another device.
    """
    global _plain
    before = _plain
    _plain = check(wanted) == "plain" or before
    try:
        yield
    finally:
        _plain = before


def are_plain() -> bool:
    """Whether PyTorch's operations alone are asked for; who has a path of its own asks before taking it."""
    return _plain


def may_be_ours(device: torch.device) -> bool:
    """Whether a path that was written for a processor may be taken: not on a GPU, nor in what is compiled or traced."""
    return not _plain and device.type == "cpu" and not torch.compiler.is_compiling() and not torch.jit.is_tracing()


def are_compiled(*tensors: Tensor) -> bool:
    """Whether the kernels of C may be taken for tensors like these."""
    first = tensors[0]
    return may_be_ours(first.device) and first.numel() >= SMALLEST and native.serves(*tensors)


def are_tiled(*tensors: Tensor) -> bool:
    """Whether the kernels for AMX may be taken, whose products are of bf16, for tensors like these."""
    return may_be_ours(tensors[0].device) and native.are_ordinary(*tensors) and native.has_tiles()


def described(device: str) -> str:
    """Whose arithmetic it is: `plain`, `torch` (with paths of ours), on a processor `compiled` or `compiled, AMX`."""
    if _plain:
        return "plain"
    if device != "cpu" or native.library() is None:
        return "torch"
    return "compiled, AMX" if native.has_tiles() else "compiled"


def have_tiles(device: torch.device) -> bool:
    """Whether this is a processor that multiplies bf16 in tiles (AMX): so fast that what surrounds a product counts."""
    return device.type == "cpu" and getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
