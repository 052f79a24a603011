"""Large pieces of memory that a step leaves to the next one."""

import torch
from torch import Tensor

# From this size on a processor's allocator gives memory back to the system: every page of it is then fetched and
# cleared anew at each step. Smaller pieces it keeps by itself.
LARGE_BYTES = 2**24

_kept: dict[str, Tensor] = {}


def room(name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised tensor, in the memory that the last one of this name had if nobody holds that any more.

    One piece is kept for each name until `clear`. On a GPU, whose allocator keeps all memory, and under a compiler
    this is torch.empty.
    """
    small = torch.Size(shape).numel() * dtype.itemsize < LARGE_BYTES
    if device.type != "cpu" or small or torch.compiler.is_compiling():
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


def _idle_count() -> int:
    alone = torch.empty(1)
    return torch._C._storage_Use_Count(alone.untyped_storage()._cdata)


# What _storage_Use_Count says of a tensor that has its memory for itself.
IDLE = _idle_count()
