"""Held-out likelihood: the one piece of code that training's validation and `lmlab evaluate` share."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from lmlab.metrics import Likelihood, TokenNLL
from lmlab.types import NLL, Batch, State, reset


def score_batch(model: nn.Module, batch: Batch, state: State, precision: str) -> tuple[NLL, State]:
    """Negative log-likelihood of each target, (B, T) nats, and the state to carry to the next batch.

    precision: the protocol's, whatever training uses.
    """
    # reset=None: every row starts new text. Marked rows start anew, the others carry on.
    carried = None if batch.reset is None else reset(state, batch.reset)
    with torch.autocast(batch.inputs.device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
        hidden, state = model(batch.inputs, carried)
        nll = _nll(model, hidden, batch)
    return nll, state if batch.reset is not None else None


def _nll(model: nn.Module, hidden: Tensor, batch: Batch) -> NLL:
    """Of the targets that count; 0 where they do not.

    Windows that slide have as much context as targets, and a large vocabulary's head costs more than the model.
    """
    scored = batch.n_targets
    if scored == batch.targets.numel():
        return model.head.nll(hidden, batch.targets)
    nll = hidden.new_zeros(batch.targets.shape, dtype=torch.float32)
    if scored:
        nll[batch.mask] = model.head.nll(hidden[batch.mask][None], batch.targets[batch.mask][None])[0]
    return nll


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    precision: str,
    device: torch.device | str = "cpu",
    on_batch: Callable[[int], None] | None = None,
) -> Likelihood:
    """Summed likelihood of all counted targets. The model is put in evaluation mode and back.

    on_batch: called with the number of targets that were just scored.
    """
    metric, state, was_training = TokenNLL().to(device), None, model.training
    model.eval()
    try:
        for batch in batches:
            scored = batch.n_targets
            batch = batch.to(device)
            nll, state = score_batch(model, batch, state, precision)
            metric.update(nll, batch.mask, batch.counts)
            if on_batch:
                on_batch(scored)
    finally:
        model.train(was_training)
    return metric.likelihood()
