"""Dropout as language models use it: on units, on whole sequences, on whole words, on recurrent weights."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def check_rate(name: str, p: float) -> float:
    """`p` itself, or a ValueError where it is no probability of dropping."""
    if not 0.0 <= p < 1.0:
        raise ValueError(f"{name}={p} must be at least 0 and below 1")
    return p


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
        return x * F.dropout(x.new_ones(shape), self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}, time_dim={self.time_dim}"


def drop_words(embedded: Float[Tensor, "*N D"], tokens: Tensor, vocab_size: int, p: float) -> Float[Tensor, "*N D"]:
    """Drop every occurrence of a share `p` of the vocabulary's words (embedding dropout, Merity 2017, section 4.3).

    Equal to dropping rows of the embedding matrix, without a copy of the matrix.
    """
    kept = F.dropout(embedded.new_ones(vocab_size), check_rate("dropout", p))
    return embedded * kept[tokens].unsqueeze(-1)


def drop_weights(weight: Float[Tensor, "..."], p: float) -> Float[Tensor, "..."]:
    """A copy of a recurrent matrix with a share `p` of its entries dropped (DropConnect, Merity 2017, section 2).

    Drawn once per forward, so that one mask serves every position.
    """
    return F.dropout(weight, check_rate("weight_drop", p))
