"""Dropout as language models use it: on units, on whole sequences, on whole words, on recurrent weights."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lmlab import native
from lmlab.models import kernels


def check_rate(name: str, p: float) -> float:
    """`p` itself, or a ValueError where it is no probability of dropping."""
    if not 0.0 <= p < 1.0:
        raise ValueError(f"{name}={p} must be at least 0 and below 1")
    return p


class _Dropout(torch.autograd.Function):
    """With a mask that follows from a seed: it is made again on the way back, and never kept."""

    @staticmethod
    def forward(ctx, x, p):
        ctx.p, ctx.seed = p, int(torch.randint(2**63 - 1, (), device="cpu"))
        return native.dropout(x.contiguous(), p, ctx.seed)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return native.dropout(grad.contiguous(), ctx.p, ctx.seed), None


def drop(x: Float[Tensor, "*N"], p: float) -> Float[Tensor, "*N"]:
    """F.dropout in training, in a tenth of its time or, without compiled kernels, a fifth: there `p` is rounded to a
    multiple of 2**-16, and the scale with it, so that each random word serves four numbers."""
    if not kernels.may_be_ours(x.device) or p == 1:
        return F.dropout(x, p)
    if kernels.are_compiled(x):
        return _Dropout.apply(x, p)
    # 64 bits each: from the smallest to, as None says, the largest.
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device="cpu").random_(-(2**63), None)
    dropped = min(round(p * 2**16), 2**16 - 1)
    kept = words.view(torch.int16)[: x.numel()] >= dropped - 2**15
    return x * kept.view(x.shape).to(x.dtype).mul_(2**16 / (2**16 - dropped))


class Dropout(nn.Dropout):
    """A new mask at every position."""

    def forward(self, x: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
        return drop(x, self.p) if self.training and self.p else x


class LockedDropout(nn.Module):
    """One mask per row, the same at every position ("variational" dropout, Gal & Ghahramani 2016, eq. 4).

    time_dim: which dimension is time, over which the mask is shared. A new mask is drawn at each call.
    """

    def __init__(self, p: float, time_dim: int = 1):
        super().__init__()
        self.p = check_rate("dropout", p)
        self.time_dim = time_dim

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        if not self.training or self.p == 0.0:
            return x
        shape = list(x.shape)
        shape[self.time_dim] = 1
        return x * drop(x.new_ones(shape), self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}, time_dim={self.time_dim}"


def drop_words(embedded: Float[Tensor, "*N D"], tokens: Tensor, vocab_size: int, p: float) -> Float[Tensor, "*N D"]:
    """Drop every occurrence of a share `p` of the vocabulary's words (embedding dropout, Merity 2017, section 4.3).

    Equal to dropping rows of the embedding matrix, without a copy of the matrix.
    """
    kept = drop(embedded.new_ones(vocab_size), check_rate("dropout", p))
    return embedded * kept[tokens].unsqueeze(-1)


def drop_weights(weight: Float[Tensor, "..."], p: float) -> Float[Tensor, "..."]:
    """A copy of a recurrent matrix with a share `p` of its entries dropped (DropConnect, Merity 2017, section 2).

    Drawn once per forward, so that one mask serves every position.
    """
    return drop(weight, check_rate("weight_drop", p))
