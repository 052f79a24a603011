"""Held-out likelihood: the one piece of code that training's validation and `lmlab evaluate` share."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from lmlab.metrics import Likelihood, TokenNLL
from lmlab.models.precision import using
from lmlab.types import NLL, Batch, State, Tokens, reset


def score_batch(model: nn.Module, batch: Batch, state: State, precision: str) -> tuple[NLL, State]:
    """Negative log-likelihood of each target, (B, T) nats, and the state to carry to the next batch.

    precision: the protocol's, whatever training uses.
    """
    nll, _, state = read(model, batch, state, precision)
    return nll, state


def read(
    model: nn.Module, batch: Batch, state: State, precision: str, temperature: float = 1.0
) -> tuple[NLL, Tensor, State]:
    """As `score_batch`, with the hidden vectors. temperature: divides the logits."""
    # reset=None: every row starts new text. Marked rows start anew, the others carry on.
    carried = None if batch.reset is None else reset(state, batch.reset)
    with using(precision, batch.inputs.device):
        hidden, state = model(batch.inputs, carried)
        nll = _nll(model, hidden, batch, temperature)
    return nll, hidden, state if batch.reset is not None else None


def _nll(model: nn.Module, hidden: Tensor, batch: Batch, temperature: float) -> NLL:
    """Of the targets that count; 0 where they do not.

    Windows that slide have as much context as targets, and a large vocabulary's head costs more than the model.
    """
    scored = batch.n_targets
    if scored == batch.targets.numel():
        return _head(model, hidden, batch.targets, temperature)
    nll = hidden.new_zeros(batch.targets.shape, dtype=torch.float32)
    if scored:
        nll[batch.mask] = _head(model, hidden[batch.mask][None], batch.targets[batch.mask][None], temperature)[0]
    return nll


def _head(model: nn.Module, hidden: Tensor, targets: Tokens, temperature: float) -> NLL:
    if temperature == 1.0:
        return model.head.nll(hidden, targets)
    scaled = model.head.logits(hidden).float() / temperature
    return scaled.logsumexp(-1) - scaled.gather(-1, targets[..., None])[..., 0]


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    precision: str,
    device: torch.device | str = "cpu",
    on_batch: Callable[[int], None] | None = None,
    score: Callable[..., tuple[NLL, State]] = score_batch,
    keep: Callable[[Batch, NLL], None] | None = None,
    dropout: bool = False,
) -> Likelihood:
    """Summed likelihood of all counted targets. The model is put in evaluation mode and back.

    on_batch: called with the number of targets that were just scored. score: called as `score_batch` is, where tokens
    are not scored by the model alone. keep: called with each batch and its nll, without charges. dropout: leave it on.
    """
    metric, state, was_training = TokenNLL().to(device), None, model.training
    model.train(dropout)
    try:
        with torch.inference_mode(not getattr(score, "learns", False)):
            for batch in batches:
                scored = batch.n_targets
                batch = batch.to(device)
                nll, state = score(model, batch, state, precision)
                if keep:
                    keep(batch, nll)
                metric.update(charged(nll, batch), batch.mask, batch.counts)
                if on_batch:
                    on_batch(scored)
    finally:
        model.train(was_training)
    return metric.likelihood()


def charged(nll: NLL, batch: Batch) -> NLL:
    """What each target costs in all: its nll, and the charge that no model can avoid."""
    return nll if batch.charges is None else nll + batch.charges
