"""The continuous cache: a pointer to what followed similar hidden vectors earlier in the text (Grave et al. 2017)."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lmlab.evaluation.evaluate import read
from lmlab.types import NLL, Batch, Hidden, State

# Tried on val where theta is left open; the paper's best are 0.3 (WikiText-2) and 1 (its figure 2 is flat between).
THETAS = (0.0, 0.1, 0.3, 0.5, 0.8, 1.2)


class Memory(NamedTuple):
    """The last `size` positions read: hidden (B, size, D), the token after each (B, size), and whether there is one."""

    hidden: Tensor
    following: Tensor
    filled: Tensor


class Cache:
    """Scores a batch as `score_batch` does, with P(w) = (1 - weight) P_model(w) + weight P_cache(w) (eq. 3).

    P_cache(w) is the share of w among the last `size` positions' next tokens, each weighing exp(theta h_t . h_i) (eq.
    2). Where nothing has been read yet it is the model's. weight=0 is the model alone; theta=0 a unigram cache.
    Rows must carry their state: the memory is of the same text. temperature: of the model's part.
    """

    def __init__(self, size: int, theta: float, weight: float, temperature: float = 1.0):
        if size < 1:
            raise ValueError(f"cache.size={size} must be at least 1")
        if not 0 <= weight < 1:
            raise ValueError(f"cache.weight={weight} must be from 0 on and below 1")
        if theta < 0:
            raise ValueError(f"cache.theta={theta} must be 0 or more")
        self.size, self.theta, self.weight, self.temperature = size, theta, weight, temperature

    def __call__(self, model: nn.Module, batch: Batch, state: State, precision: str) -> tuple[NLL, State]:
        nll, hidden, state, memory = read_remembering(model, batch, state, precision, self.temperature)
        (pointed,), memory = self.point(hidden, batch, memory, (self.theta,))
        return interpolate(nll, pointed, self.weight), (state, memory)

    def point(
        self, hidden: Tensor, batch: Batch, memory: Memory | None, thetas: tuple[float, ...]
    ) -> tuple[list[NLL], Memory]:
        """ln P_cache of each target for each theta, nan where the cache is empty; and the memory after the batch."""
        if not hidden.is_floating_point():
            raise ValueError("cache.size=... needs hidden vectors, which a model that counts has none of")
        length = batch.targets.shape[1]
        # What is remembered is no parameter: weights that learn on learn through the model's part alone.
        h = hidden.detach().float()
        memory = memory or _empty(h)
        keys = torch.cat((memory.hidden, h), 1)
        following = torch.cat((memory.following, batch.targets), 1)
        filled = torch.cat((memory.filled, batch.counted), 1)
        # Position t sees the `size` pairs that end before it: their next tokens have been read.
        end = torch.arange(length, device=h.device)[:, None] + memory.filled.shape[1]
        place = torch.arange(filled.shape[1], device=h.device)
        seen = (place >= end - self.size) & (place < end) & filled[:, None]
        similar = torch.bmm(h, keys.mT)
        hit = seen & (following[:, None] == batch.targets[:, :, None])
        pointed = []
        for theta in thetas:
            scores = theta * similar
            among = scores.masked_fill(~seen, -math.inf).logsumexp(-1)
            log_p = scores.masked_fill(~hit, -math.inf).logsumexp(-1) - among
            pointed.append(torch.where(seen.any(-1), log_p, torch.nan))
        last = slice(-self.size, None)
        return pointed, Memory(keys[:, last], following[:, last], filled[:, last])


def read_remembering(
    model: nn.Module, batch: Batch, state: State, precision: str, temperature: float
) -> tuple[NLL, Tensor, State, Memory | None]:
    """As `read`, with a memory beside the model's state, which starts anew where that does."""
    if batch.reset is None:
        raise ValueError(
            "cache.size=... needs a state that is carried through the text: evaluation=carried, or for a model with "
            "learned positions none"
        )
    before, memory = state if state is not None and not bool(batch.reset.all()) else (None, None)
    # What maps a state makes plain tuples of it.
    memory = None if memory is None else Memory(*memory)
    nll, hidden, state = read(model, batch, before, precision, temperature)
    return nll, hidden, state, memory


def interpolate(nll: NLL, pointed: NLL, weight: float) -> NLL:
    """-ln((1 - weight) P_model + weight P_cache); the model's alone where the cache is empty."""
    if not weight:
        return nll
    empty = pointed.isnan()
    mixed = torch.logaddexp(math.log1p(-weight) - nll, math.log(weight) + pointed.masked_fill(empty, -math.inf))
    return torch.where(empty, nll, -mixed)


def _empty(hidden: Hidden) -> Memory:
    """It grows with the text, up to the cache's size."""
    n_rows, _, width = hidden.shape
    none = torch.zeros(n_rows, 0, dtype=torch.bool, device=hidden.device)
    return Memory(hidden.new_zeros(n_rows, 0, width), none.long(), none)
