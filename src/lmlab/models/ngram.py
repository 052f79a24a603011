"""The n-gram language model: interpolated modified Kneser-Ney behind the contract of the neural models."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lmlab.models.kneser_ney import UNSEEN, estimate
from lmlab.types import NLL, Logits, State, Tokens, leaves_float64

Context = Int[Tensor, "*batch N"]


class NGramHead(nn.Module):
    """P(w | context) by interpolation from the uniform distribution up to the highest order (Chen and Goodman 1999):

        P_k(w | c) = max(count(c w) - D, 0) / count(c) + backoff(c) P_{k-1}(w | c without its oldest word).

    `hidden` is the context itself: the last words as id + 1, oldest first, 0 where there is none.
    Until it is fitted or loaded, every word is equally likely. Computes in float64, returns float32; where the device
    has no float64, the tables stay on the CPU.
    """

    def __init__(self, vocab_size: int, order: int):
        super().__init__()
        self.vocab_size, self.order = vocab_size, order
        self.base = vocab_size + 1
        self.register_buffer("unigram", torch.full((vocab_size,), 1 / vocab_size, dtype=torch.float64))
        n_nodes = self.base
        for k in range(2, order + 1):
            self.register_buffer(f"keys{k}", torch.tensor([UNSEEN]))
            self.register_buffer(f"kept{k}", torch.zeros(1, dtype=torch.float64))
            self.register_buffer(f"backoff{k}", torch.ones(n_nodes, dtype=torch.float64))
            n_nodes = 1

    def fit(self, ids: np.ndarray, start_id: int, many: bool = False) -> None:
        """Replace what is stored by the estimates from `ids` (N,), on the device where it is. many: as `estimate`."""
        device = self.unigram.device
        unigram, tables = estimate(ids, start_id, self.vocab_size, self.order, many)
        self.unigram = torch.from_numpy(unigram).to(device)
        for k, table in enumerate(tables, 2):
            for name, array in vars(table).items():
                setattr(self, f"{name}{k}", torch.from_numpy(array).to(device))

    def probs(self, hidden: Context, targets: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """P(target | context), float64, where the tables are."""
        hidden, targets = hidden.to(self.unigram.device), targets.to(self.unigram.device)
        p = self.unigram[targets]
        for k, node in self._contexts(hidden):
            gram = self._find(k, node, targets + 1)
            p = self._get("kept", k)[gram] + self._get("backoff", k)[node] * p
        return p

    def nll(self, hidden: Int[Tensor, "B T N"], targets: Tokens) -> NLL:
        """Nats."""
        return (-self.probs(hidden, targets).log().float()).to(hidden.device)

    def log_probs(self, hidden: Int[Tensor, "B T N"]) -> Logits:
        """Normalised: all words that followed each context are looked up, order by order."""
        rows = hidden.flatten(0, 1).to(self.unigram.device)
        p = self.unigram.repeat(len(rows), 1)
        for k, node in self._contexts(rows):
            keys = self._get("keys", k)
            # The words that follow a node lie side by side.
            first = torch.searchsorted(keys, node * self.base)
            n = torch.searchsorted(keys, (node + 1) * self.base) - first
            row = torch.arange(len(rows), device=n.device).repeat_interleave(n)
            gram = torch.arange(len(row), device=n.device) + (first - n.cumsum(0) + n)[row]
            p *= self._get("backoff", k)[node, None]
            p[row, keys[gram] % self.base - 1] += self._get("kept", k)[gram]
        return p.log().float().unflatten(0, hidden.shape[:2]).to(hidden.device)

    # Unnormalised scores and log-probabilities are the same thing here.
    logits = log_probs

    def _contexts(self, hidden: Context) -> Iterator[tuple[int, Tensor]]:
        """For k = 2 to the order: k, and the node of the last k - 1 words at every position."""
        for k in range(2, self.order + 1):
            node = hidden[..., 1 - k].contiguous()
            for j in range(2, k):
                node = self._find(j, node, hidden[..., j - k])
            yield k, node

    def _find(self, k: int, node: Tensor, word: Tensor) -> Tensor:
        """The place of (node, word) among the n-grams of order k; the last place when it was never seen."""
        keys = self._get("keys", k)
        key = (node * self.base + word).contiguous()  # searchsorted warns about anything else
        place = torch.searchsorted(keys, key)
        return torch.where(keys[place] == key, place, len(keys) - 1)

    def _get(self, name: str, k: int) -> Tensor:
        return getattr(self, f"{name}{k}")

    def _apply(self, fn: Callable, *more: Any, **named: Any) -> "NGramHead":
        return self if leaves_float64(fn) else super()._apply(fn, *more, **named)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors):
        # How many n-grams there are is in the data: take their number from what is loaded.
        n_nodes = self.base
        for k in range(2, self.order + 1):
            tables = {name: state_dict.get(f"{prefix}{name}{k}") for name in ("keys", "kept", "backoff")}
            if any(t is None for t in tables.values()):
                break  # reported as missing below
            n_keys = len(tables["keys"])
            if (len(tables["kept"]), len(tables["backoff"])) != (n_keys, n_nodes):
                sizes = {name: len(t) for name, t in tables.items()}
                errors.append(f"the tables of order {k} do not fit vocab_size={self.vocab_size} or each other: {sizes}")
                return
            for name, t in tables.items():
                setattr(self, f"{name}{k}", torch.empty_like(t, device=self.unigram.device))
            n_nodes = n_keys
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)


class NGramLM(nn.Module):
    """Counts instead of gradients: `fit` once, then score and generate as with any model.

    order 1 is the unigram model. The state is the last `order - 1` words read, (B, N) of id + 1, 0 for none.
    token_counts is accepted, as by every model, and not needed.
    """

    recurrent = True

    def __init__(self, vocab_size: int, order: int, token_counts: Int[Tensor, " V"] | None = None):
        super().__init__()
        if order < 1:
            raise ValueError(f"order={order} must be at least 1 (1 is a unigram model, 5 the usual choice)")
        self.vocab_size, self.order = vocab_size, order
        # A unigram model reads nothing, but tensors of no width are a trap for everybody else.
        self.max_context = self.d_model = max(order - 1, 1)
        self.head = NGramHead(vocab_size, order)

    def fit(self, ids: np.ndarray, start_id: int, many: bool = False) -> "NGramLM":
        """Count `ids` (N,), one stream that is predicted from `start_id` on; <eos> in it is a word like any other.

        many: it is many texts, each ended by `start_id` and read by itself.
        """
        self.head.fit(ids, start_id, many)
        return self

    def forward(self, tokens: Tokens, state: State = None) -> tuple[Int[Tensor, "B T N"], State]:
        """hidden: for each position the last N = d_model words, its own included, as id + 1."""
        if state is None:
            state = tokens.new_zeros(len(tokens), self.d_model)
        words = torch.cat([state, tokens + 1], 1)
        return words.unfold(1, self.d_model, 1)[:, 1:], words[:, -self.d_model :]
