"""Dynamic evaluation: the weights go on learning from the text that has just been scored (Krause et al. 2018)."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from lmlab.evaluation.evaluate import score_batch
from lmlab.types import NLL, Batch, State, detach


class Dynamic:
    """Scores a batch as `score` does, `segment` tokens at a time, and learns from each segment after it was scored:

        w <- w - lr g / (rms + epsilon) + decay (w_0 - w) rms / mean(rms)            (eq. 5 to 7)

    g is the gradient of the segment's mean nll, w_0 the trained weights, and rms the root mean square of each
    weight's gradient on training text; a decay times its factor above 1 counts as 1. lr=0 is the model as it was.
    epsilon: keeps a weight that training hardly moved from being moved far.
    One row only, in the order of the text: else a token were predicted by what follows it.
    """

    learns = True

    def __init__(
        self,
        rms: dict[str, Tensor],
        lr: float,
        decay: float,
        segment: int,
        epsilon: float,
        score: Callable[..., tuple[NLL, State]] = score_batch,
    ):
        if segment < 1:
            raise ValueError(f"dynamic.segment={segment} must be at least 1")
        if lr < 0 or decay < 0 or epsilon <= 0:
            raise ValueError(
                f"dynamic.lr={lr} and dynamic.decay={decay} must be 0 or more, dynamic.epsilon={epsilon} more"
            )
        self.rms, self.lr, self.decay, self.segment, self.epsilon = rms, lr, decay, segment, epsilon
        self.score = score
        self._mean = float(torch.stack([r.mean() for r in rms.values()]).mean()) or 1.0
        self.trained: dict[str, Tensor] = {}

    @contextmanager
    def learning(self, model: nn.Module) -> Iterator[None]:
        """Within, the model's weights may move; after it they are the trained ones again."""
        self.trained = {name: p.detach().clone() for name, p in model.named_parameters()}
        try:
            yield
        finally:
            with torch.no_grad():
                for name, p in model.named_parameters():
                    p.copy_(self.trained[name])
                    p.grad = None
            self.trained = {}

    def __call__(self, model: nn.Module, batch: Batch, state: State, precision: str) -> tuple[NLL, State]:
        if len(batch.inputs) != 1 or batch.reset is None:
            raise ValueError(
                "dynamic.lr=... reads one row in the order of the text: evaluation=carried evaluation.lanes=1"
            )
        parts = []
        for segment in segments(batch, self.segment):
            with torch.enable_grad(), _differentiable():
                nll, state = self.score(model, segment, state, precision)
                # The last batch is padded: after its text there is nothing to learn from.
                if segment.n_targets:
                    self._step(model, nll.sum() / segment.n_targets)
            parts.append(nll.detach())
            state = detach(state)
        return torch.cat(parts, 1), state

    def _step(self, model: nn.Module, loss: Tensor) -> None:
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for name, p in model.named_parameters():
                if p.grad is None:
                    continue
                rms = self.rms[name]
                back = (self.decay / self._mean * rms).clamp_(max=1.0) * (self.trained[name] - p)
                p.add_(p.grad / (rms + self.epsilon), alpha=-self.lr).add_(back)
        model.zero_grad()


def segments(batch: Batch, width: int) -> Iterator[Batch]:
    """Stretches of a batch, one after the other; what starts new text does so in the first."""
    for at in range(0, batch.inputs.shape[1], width):
        columns = slice(at, at + width)
        yield replace(
            batch,
            inputs=batch.inputs[:, columns],
            targets=batch.targets[:, columns],
            mask=None if batch.mask is None else batch.mask[:, columns],
            reset=batch.reset if at == 0 else torch.zeros_like(batch.reset),
            counts=None,
            charges=None,
        )


def gradient_rms(model: nn.Module, batches: Iterable[Batch], precision: str) -> dict[str, Tensor]:
    """The root mean square, over batches of training text, of the gradient of their mean nll; by parameter."""
    squares = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    if not squares:
        raise ValueError("dynamic.lr=... needs weights with gradients, which a model that counts has none of")
    n, state, was_training = 0, None, model.training
    model.eval()
    try:
        with torch.enable_grad(), _differentiable():
            for batch in batches:
                model.zero_grad()
                nll, state = score_batch(model, batch, state, precision)
                (nll.sum() / batch.n_targets).backward()
                state = detach(state)
                for name, p in model.named_parameters():
                    if p.grad is not None:
                        squares[name] += p.grad**2
                n += 1
    finally:
        model.zero_grad()
        model.train(was_training)
    return {name: (total / n).sqrt() for name, total in squares.items()}


def _differentiable():
    """cuDNN's recurrent kernels have no gradients outside of training."""
    return torch.backends.cudnn.flags(enabled=False)
