"""Dropout with masks cut from one long random mask, where drawing them anew would cost more than the layer."""

from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lmlab.models import kernels
from lmlab.models.dropout import check_rate

# Entries of the long mask, 32 MB in bf16, and where in it a mask may begin: on a cache line.
SIZE = 2**24
ALIGNED = 32


class PooledDropout(nn.Module):
    """Dropout with probability p whose mask is a stretch of one fixed long mask, from an offset drawn at each call.

    The offset comes from torch's global generator, so a seeded step repeats its masks; the long mask is the same in
    every run. Two masks may share a stretch, shifted. Drawing fresh ones took a fifth of a 256-wide model's step
    (2 cores); a GPU draws them in the kernel that uses them, so there, under a compiler, with kernels=plain and for
    tensors above half of the long mask, this is plain dropout.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = check_rate("dropout", p)

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        if not self.training or self.p == 0.0:
            return x
        # A compiler fuses the drawing of fresh ones, and would draw the long mask anew at each call.
        if not kernels.may_be_ours(x.device) or x.numel() > SIZE // 2:
            return F.dropout(x, self.p)
        offset = int(torch.randint((SIZE - x.numel()) // ALIGNED + 1, ())) * ALIGNED
        return x * _pool(self.p, x.dtype)[offset : offset + x.numel()].view(x.shape)

    def extra_repr(self) -> str:
        return f"p={self.p}"


@cache
def _pool(p: float, dtype: torch.dtype) -> Tensor:
    """(SIZE,), 1 / (1 - p) where a unit is kept, else 0."""
    generator = torch.Generator().manual_seed(0)
    kept = torch.empty(SIZE, dtype=torch.float32).uniform_(generator=generator) >= p
    return kept.to(dtype).mul_(1 / (1 - p))
