"""Reading text through any model a stretch at a time: the carried state, also past the end of learned positions."""

from collections.abc import Callable
from itertools import chain

import torch
from jaxtyping import Int
from torch import Tensor, nn

from lmlab.types import State, Tokens, expand, select


def device_of(model: nn.Module) -> torch.device:
    """Where the model's tensors are; an n-gram model has buffers only."""
    return next(chain(model.parameters(), model.buffers())).device


class Carry:
    """Rows of text being read in step: all start together and are given equally many tokens each time.

    Recurrent models and those whose context slides just carry their state. A model with learned positions
    (`slides` False) has no position past `max_context`: there the last half window is read again as if the text
    began with it, which is sliding with a stride of half the context.
    The windows depend on the number of tokens read alone, never on how they were cut into stretches.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.state: State = None
        # Learned positions; None: the model needs no help.
        self.window: int | None = None if getattr(model, "slides", True) else model.max_context
        self._used = 0
        self._recent: Tokens | None = None

    def read(self, tokens: Tokens) -> Tensor:
        """The hidden vectors (B, T, D) of (B, T) more tokens, T of at least one; integers from an n-gram model."""
        if self.window is None:
            hidden, self.state = self.model(tokens, self.state)
            return hidden
        hidden = []
        while tokens.shape[1]:
            stretch, tokens = self._fit(tokens)
            hidden.append(stretch)
        return torch.cat(hidden, 1)

    def _fit(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Read what fits the window; its hidden vectors, and the tokens that are left."""
        again = 0
        if self._used == self.window:
            again = self.window // 2
            self.state, self._used = None, again
        part, rest = tokens[:, : self.window - self._used], tokens[:, self.window - self._used :]
        past = tokens[:, :0] if self._recent is None else self._recent
        hidden, self.state = self.model(torch.cat([past[:, past.shape[1] - again :], part], 1), self.state)
        self._used += part.shape[1]
        self._recent = torch.cat([past, part], 1)[:, -max(1, self.window // 2) :]
        return hidden[:, again:], rest

    def keep(self, rows: Int[Tensor, " N"]) -> None:
        """Go on with these rows, in this order and with repeats."""
        self._each(lambda t: select(t, rows))

    def expand(self, n: int) -> None:
        """Go on with `n` of each row, neighbours together."""
        if n > 1:
            self._each(lambda t: expand(t, n))

    def _each(self, f: Callable[[State], State]) -> None:
        self.state = f(self.state)
        if self._recent is not None:
            self._recent = f(self._recent)
