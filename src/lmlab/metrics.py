"""Likelihood as sums, and everything that is derived from it: nll, ppl, bpb, bpc, word perplexity."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

import lmlab.deferred  # noqa: F401  before torchmetrics is imported: it takes a tenth of the time
from lmlab.types import NLL, WITHOUT_FLOAT64, Mask, leaves_float64

# isort: split
from torchmetrics import Metric


@dataclass(frozen=True)
class Likelihood:
    """Summed negative log-likelihood of a text, and the text's size in every unit that it can be divided by.

    nats: sum of -ln P(token | context). tokens: how many were scored.
    bytes, chars, words: the stretch of source text that those tokens cover; words are separated by white space.
    """

    nats: float
    tokens: int
    bytes: int
    chars: int
    words: int

    def __add__(self, other: "Likelihood") -> "Likelihood":
        return Likelihood(**{k: v + getattr(other, k) for k, v in asdict(self).items()})

    @property
    def nll(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def ppl(self) -> float:
        """Perplexity per token, exp(nll); infinite past the largest float rather than clipped."""
        return _exp(self.nll)

    @property
    def bpb(self) -> float:
        """Bits per UTF-8 byte of the source: comparable between tokenizers."""
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan

    @property
    def bpc(self) -> float:
        """Bits per character (Unicode code point) of the source."""
        return self.nats / math.log(2) / self.chars if self.chars else math.nan

    @property
    def word_ppl(self) -> float:
        """Perplexity per white-space separated word of the source."""
        return _exp(self.nats / self.words) if self.words else math.nan

    def as_dict(self) -> dict[str, float]:
        """Sums first, then what is derived from them, in the order of results.json."""
        derived = {k: getattr(self, k) for k in ("nll", "ppl", "bpb", "bpc", "word_ppl")}
        return asdict(self) | derived


def _exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


class TokenNLL(Metric):
    """Accumulates a `Likelihood` on the device (where that has no float64, on the CPU), in float64, over all ranks."""

    full_state_update = False
    higher_is_better = False

    def __init__(self):
        super().__init__()
        self.add_state("nats", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(3, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, nll: NLL, mask: Mask | None = None, counts: Int[Tensor, "B 3"] | None = None) -> None:
        """nll: (B, T) nats, unreduced; mask: which positions count; counts: per row, as in `Batch`."""
        self._add(nll, mask, counts)

    def add(self, nll: NLL, mask: Mask | None = None, counts: Int[Tensor, "B 3"] | None = None) -> None:
        """The same without what torchmetrics wraps an update in, and in place: it runs at every training step."""
        attributes = vars(self)
        attributes["_computed"] = None
        attributes["_update_count"] += 1
        self._add(nll, mask, counts)

    def _apply(self, fn: Callable, *more: Any, **named: Any) -> "TokenNLL":
        # Moved with the model that it is part of.
        return self if leaves_float64(fn) else super()._apply(fn, *more, **named)

    def _add(self, nll: NLL, mask: Mask | None, counts: Int[Tensor, "B 3"] | None) -> None:
        if nll.device.type in WITHOUT_FLOAT64:
            nll, mask, counts = (None if t is None else t.cpu() for t in (nll, mask, counts))
        if mask is not None:
            # where, not a product: a padded position may hold nan or inf.
            nll = torch.where(mask, nll, 0.0)
        self.nats.add_(nll.sum(dtype=torch.float64))
        self.tokens.add_(nll.numel() if mask is None else mask.sum())
        if counts is not None:
            self.counts.add_(counts.sum(0))

    def compute(self) -> Float[Tensor, " 5"]:
        """nats, tokens, bytes, characters, words: summed over all ranks, in float64, exact up to 2**53."""
        return torch.cat((self.nats[None], self.tokens[None].double(), self.counts.double()))

    def likelihood(self) -> Likelihood:
        """The sums, with all that is derived from them. The one place that waits for the device."""
        # Nothing scored is zero nats: no reason for torchmetrics to warn.
        self._update_count = max(1, self._update_count)
        nats, *counts = self.compute().tolist()
        return Likelihood(nats, *map(int, counts))
