"""Heads: from a hidden vector to a distribution over the vocabulary, and to the nll of a target."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lmlab.models.cross_entropy import cap, linear, linear_nll
from lmlab.models.dropout import LockedDropout, check_rate
from lmlab.types import NLL, Hidden, Logits, Tokens


class Head(nn.Module):
    """What every head offers. `hidden` (B, T, d_model) arrives undropped: `drop` belongs to the head.

    dropout: the module that drops hidden in training, or None. A kind of head defines `logits_of` and `nll_of`, which
    take what `drop` made; whoever needs the dropped hidden too (activation regularisation) drops once and calls those.
    """

    def __init__(self, d_model: int, vocab_size: int, dropout: nn.Module | None = None):
        super().__init__()
        self.d_model, self.vocab_size = d_model, vocab_size
        self.dropout = dropout

    def drop(self, hidden: Hidden) -> Hidden:
        """hidden after output dropout, a new mask at each call."""
        return hidden if self.dropout is None else self.dropout(hidden)

    def logits(self, hidden: Hidden) -> Logits:
        """Unnormalised log-probabilities, in autocast's type; their log_softmax is `log_probs`."""
        return self.logits_of(self.drop(hidden))

    def log_probs(self, hidden: Hidden) -> Logits:
        """Normalised, fp32, in nats."""
        return F.log_softmax(self.logits(hidden).float(), -1)

    def nll(self, hidden: Hidden, targets: Tokens) -> NLL:
        """-log P(target) in nats, fp32, unreduced."""
        return self.nll_of(self.drop(hidden), targets)

    def logits_of(self, dropped: Hidden) -> Logits:
        raise NotImplementedError

    def nll_of(self, dropped: Hidden, targets: Tokens) -> NLL:
        raise NotImplementedError

    def tables(self) -> list[nn.Parameter]:
        """The matrices that have rows for entries of the vocabulary; a shared one, too."""
        return [p for p in self.parameters() if p.ndim == 2 and p.shape[0] >= self.vocab_size]

    def multiplied(self) -> float:
        """Parameters that the nll of one target multiplies by, each as often as it does: a mean over the text."""
        return sum(p.numel() for p in self.parameters())


class LinearHead(Head):
    """softmax(W h + b).

    embedding: the matrix (V, d_embed) to share (Press & Wolf 2017; Inan et al. 2017), or None for one of its own.
        Where d_embed differs from d_model, a projection without bias brings hidden to d_embed first.
    softcap: logits become softcap * tanh(logits / softcap) (Gemma 2); None leaves them as they are.
    """

    def __init__(
        self,
        d_model: int,
        vocab_size: int,
        bias: bool,
        softcap: float | None,
        embedding: nn.Parameter | None = None,
        token_counts: Tensor | None = None,
        dropout: nn.Module | None = None,
    ):
        super().__init__(d_model, vocab_size, dropout)
        if softcap is not None and softcap <= 0:
            raise ValueError(f"softcap={softcap} must be positive, or null for none")
        self.softcap = softcap
        self.weight, self.project = _output_matrix(d_model, vocab_size, embedding)
        self.bias = nn.Parameter(torch.zeros(vocab_size)) if bias else None

    def logits_of(self, dropped: Hidden) -> Logits:
        return cap(self.multiply(self.project(dropped)), self.softcap)

    def multiply(self, projected: Tensor) -> Tensor:
        """What the head's matrix makes of vectors of its width."""
        return linear(projected, self.weight, self.bias)

    def tables(self) -> list[nn.Parameter]:
        return [self.weight]

    def nll_of(self, dropped: Hidden, targets: Tokens) -> NLL:
        h = self.project(dropped).flatten(0, 1)
        return linear_nll(h, self.weight, self.bias, targets.flatten(), self.softcap).view_as(targets)


def _output_matrix(d_model: int, vocab_size: int, embedding: nn.Parameter | None) -> tuple[nn.Parameter, nn.Module]:
    """(V, d) and what brings hidden to width d."""
    if embedding is None:
        weight = nn.Parameter(torch.empty(vocab_size, d_model))
        nn.init.uniform_(weight, -(d_model**-0.5), d_model**-0.5)  # as nn.Linear does
        return weight, nn.Identity()
    d_embed = embedding.shape[1]
    return embedding, nn.Identity() if d_embed == d_model else nn.Linear(d_model, d_embed, bias=False)


class AdaptiveHead(Head):
    """Adaptive softmax (Grave et al. 2017): frequent words in a short list, rare ones in ever narrower clusters.

    cutoffs: increasing ranks by frequency at which a new cluster begins, e.g. [2000, 10000].
    div_value: each cluster's width is the one before divided by this.
    token_counts: (V,), how often each id occurs in the training text; ids are ranked by it inside.
    The parameters and the arithmetic are those of nn.AdaptiveLogSoftmaxWithLoss, but every cluster takes part in
    the graph even when the batch holds none of its words: data parallel training needs each gradient.
    """

    def __init__(
        self,
        d_model: int,
        vocab_size: int,
        cutoffs: Sequence[int],
        div_value: float,
        embedding: nn.Parameter | None = None,
        token_counts: Int[Tensor, " V"] | None = None,
        dropout: nn.Module | None = None,
    ):
        super().__init__(d_model, vocab_size, dropout)
        cutoffs = list(cutoffs)
        if embedding is not None:
            raise ValueError("the adaptive head cannot share the embedding's matrix: set model.tie_embeddings=false")
        if token_counts is None or len(token_counts) != vocab_size:
            found = "none" if token_counts is None else len(token_counts)
            raise ValueError(f"the adaptive head needs token_counts for vocab_size={vocab_size} ids, found {found}")
        if not cutoffs or sorted({*cutoffs, 0, vocab_size}) != [0, *cutoffs, vocab_size]:
            raise ValueError(f"model.head.cutoffs={cutoffs} must increase, above 0 and below vocab_size={vocab_size}")
        self.cutoffs = [*cutoffs, vocab_size]
        rank = torch.empty(vocab_size, dtype=torch.long)
        ranked = torch.argsort(token_counts.cpu(), descending=True, stable=True)
        rank[ranked] = torch.arange(vocab_size)
        self.register_buffer("rank", rank)
        # Of the text's tokens, the share that each cluster holds: the others do not multiply by its matrices.
        held = [part.sum().item() for part in token_counts.cpu()[ranked].tensor_split(cutoffs)]
        self.shares = [n / max(sum(held), 1) for n in held[1:]]
        self.short = nn.Linear(d_model, cutoffs[0] + len(cutoffs), bias=False)
        self.clusters = nn.ModuleList()
        for i, (start, stop) in enumerate(zip(self.cutoffs, self.cutoffs[1:], strict=False)):
            width = int(d_model // div_value ** (i + 1))
            if width < 1:
                raise ValueError(
                    f"model.head.div_value={div_value} leaves cluster {i + 1} no width at model.d_model={d_model}"
                )
            self.clusters.append(
                nn.Sequential(nn.Linear(d_model, width, bias=False), nn.Linear(width, stop - start, bias=False))
            )

    def logits_of(self, dropped: Hidden) -> Logits:
        """Log-probabilities already: a product of two softmaxes has no logits of its own."""
        short = F.log_softmax(self.short(dropped).float(), -1)
        n = self.cutoffs[0]
        tails = [
            F.log_softmax(cluster(dropped).float(), -1) + short[..., n + i, None]
            for i, cluster in enumerate(self.clusters)
        ]
        return torch.cat([short[..., :n], *tails], -1)[..., self.rank]

    def tables(self) -> list[nn.Parameter]:
        return [self.short.weight, *(wide.weight for _, wide in self.clusters)]

    def multiplied(self) -> float:
        clusters = (
            share * (a.weight.numel() + b.weight.numel())
            for share, (a, b) in zip(self.shares, self.clusters, strict=True)
        )
        return self.short.weight.numel() + sum(clusters)

    def log_probs(self, hidden: Hidden) -> Logits:
        return self.logits(hidden)

    def nll_of(self, dropped: Hidden, targets: Tokens) -> NLL:
        h = dropped.flatten(0, 1)
        rank = self.rank[targets.flatten()]
        cluster = torch.bucketize(rank, torch.tensor(self.cutoffs[:-1], device=rank.device), right=True)
        n = self.cutoffs[0]
        nll = linear_nll(h, self.short.weight, None, torch.where(cluster == 0, rank, n + cluster - 1))
        for i, (narrow, wide) in enumerate(self.clusters):
            rows = (cluster == i + 1).nonzero()[:, 0]
            tail = linear_nll(narrow(h[rows]), wide.weight, None, rank[rows] - self.cutoffs[i])
            nll = nll.index_add(0, rows, tail)
        return nll.view_as(targets)


class MixtureHead(Head):
    """Mixture of softmaxes (Yang et al. 2018, eq. 2): sum_k pi_k(h) softmax(W tanh(L_k h + l_k) + b).

    n_experts: K. d_latent: width of each expert's vector; with a shared matrix it must be that matrix's width.
    dropout_latent: locked dropout on the experts' vectors.
    """

    def __init__(
        self,
        d_model: int,
        vocab_size: int,
        n_experts: int,
        d_latent: int | None,
        dropout_latent: float,
        embedding: nn.Parameter | None = None,
        token_counts: Tensor | None = None,
        dropout: nn.Module | None = None,
    ):
        super().__init__(d_model, vocab_size, dropout)
        if n_experts < 1:
            raise ValueError(f"n_experts={n_experts} must be at least 1")
        if d_latent is None:
            d_latent = d_model if embedding is None else embedding.shape[1]
        if embedding is not None and embedding.shape[1] != d_latent:
            raise ValueError(
                f"model.head.d_latent={d_latent} must be the shared embedding's width {embedding.shape[1]}, "
                "or null to take it"
            )
        self.n_experts = n_experts
        self.prior = nn.Linear(d_model, n_experts, bias=False)
        self.latent = nn.Linear(d_model, n_experts * d_latent)
        self.drop_latent = LockedDropout(check_rate("dropout_latent", dropout_latent))
        self.weight, _ = _output_matrix(d_latent, vocab_size, embedding)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def tables(self) -> list[nn.Parameter]:
        return [self.weight]

    def multiplied(self) -> float:
        return super().multiplied() + (self.n_experts - 1) * (self.weight.numel() + self.bias.numel())

    def _experts(self, dropped: Hidden) -> tuple[Float[Tensor, "B T K"], Float[Tensor, "B T K L"]]:
        """Log of the weights and the experts' vectors."""
        vectors = self.drop_latent(torch.tanh(self.latent(dropped)))
        return F.log_softmax(self.prior(dropped).float(), -1), vectors.unflatten(-1, (self.n_experts, -1))

    def logits_of(self, dropped: Hidden) -> Logits:
        """Log-probabilities already: a sum of softmaxes has no logits of its own."""
        weights, vectors = self._experts(dropped)
        mixed = None
        for k in range(self.n_experts):
            one = F.log_softmax(linear(vectors[..., k, :], self.weight, self.bias).float(), -1)
            one = one + weights[..., k, None]
            mixed = one if mixed is None else torch.logaddexp(mixed, one)
        return mixed

    def log_probs(self, hidden: Hidden) -> Logits:
        return self.logits(hidden)

    def nll_of(self, dropped: Hidden, targets: Tokens) -> NLL:
        weights, vectors = self._experts(dropped)
        repeated = targets.flatten().repeat_interleave(self.n_experts)
        each = linear_nll(vectors.flatten(0, 2), self.weight, self.bias, repeated)
        return -torch.logsumexp(weights - each.view_as(weights), -1)
