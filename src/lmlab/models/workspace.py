"""Memory that a step leaves to the next one, instead of giving it back to the system."""

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lmlab.models import kernels

# From this size on a processor's allocator gives memory back to the system: every page of it is then fetched and
# cleared anew at each step. Smaller pieces it keeps by itself.
LARGE_BYTES = 2**24

_kept: dict[str, Tensor] = {}
# Whether `kept` holds, of the whole process as glibc's settings are.
_within = False


def room(name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised tensor, in the memory that the last one of this name had if nobody holds that any more.

    One piece is kept for each name until `clear`. On a GPU, whose allocator keeps all memory, and under a compiler
    this is torch.empty.
    """
    small = torch.Size(shape).numel() * dtype.itemsize < LARGE_BYTES
    if small or not kernels.may_be_ours(device):
        return torch.empty(shape, dtype=dtype, device=device)
    # Taken out while it is looked at: another thread finds none.
    held = _kept.pop(name, None)
    if held is None or held.shape != shape or held.dtype != dtype or not _is_free(held):
        held = torch.empty(shape, dtype=dtype, device=device)
    _kept[name] = held
    # A tensor of its own over the same memory: autograd takes a gradient for the parameter's as it is, without a copy,
    # only if nobody else has that tensor.
    return held.detach()


def _is_free(held: Tensor) -> bool:
    """Whether no other tensor uses its memory: ours counts once, and the storage asked about once more."""
    return torch._C._storage_Use_Count(held.untyped_storage()._cdata) <= IDLE


def clear() -> None:
    """Give all of it back."""
    _kept.clear()


@contextmanager
def kept() -> Iterator[None]:
    """Within, glibc keeps what is freed for what is allocated next; afterwards it and `room` give it back.

    By itself it returns the free end of its heap whenever that exceeds twice the largest block: a training step does
    so many times, and fetching and clearing those pages anew took 7 % of it (10M Transformer, 2 cores). Peak memory
    stays what it was. Other allocators have their own ways, and settings of the user's are left alone, as is all with
    kernels=plain. One within another changes nothing: a training run that writes a text goes on as it was.
    """
    global _within
    if _within:
        yield
        return
    _within = True
    libc = None if kernels.are_plain() else _glibc()
    if libc is not None:
        # Larger blocks have pages of their own either way; these are the largest that its own rule puts on the heap.
        libc.mallopt(M_MMAP_THRESHOLD, HEAP_BLOCK)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        _within = False
        clear()
        if libc is not None:
            libc.mallopt(M_TRIM_THRESHOLD, 2 * HEAP_BLOCK)
            libc.malloc_trim(0)


# mallopt(3); DEFAULT_MMAP_THRESHOLD_MAX of 64 bits.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, HEAP_BLOCK = -1, -3, 2**25


def _glibc() -> ctypes.CDLL | None:
    chosen = any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if chosen or platform.libc_ver()[0] != "glibc":
        return None
    return ctypes.CDLL(None)


def _idle_count() -> int:
    alone = torch.empty(1)
    return torch._C._storage_Use_Count(alone.untyped_storage()._cdata)


# What _storage_Use_Count says of a tensor that has its memory for itself.
IDLE = _idle_count()
