"""What an audit asks of a model and of the evaluator, each on a little text of its own run: see `audit`."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lmlab.data.store import Split
from lmlab.evaluation import evaluate as evaluator
from lmlab.evaluation import protocol as protocols
from lmlab.evaluation.protocol import Protocol
from lmlab.types import Batch, for_float64

# Nats: what rounding in fp32 explains is a hundredth of it, and no leak that is worth having is so small.
TOLERANCE = 1e-4
# Where a changed token moves what follows it by little, as in a model that was hardly trained: rounding, and a share.
ROUNDING, SHARE = 2e-6, 2e-3
# Of sums over a text, whose order differs.
RELATIVE = 1e-5
# All tokens of a vocabulary up to here are also asked for one by one.
ONE_BY_ONE = 4096
# Held-out tokens that the evaluator's checks read: primes, so that no lane and no window comes out even.
FEWEST, MOST = 97, 1493
# At the end of a training, where a small model's time goes into the number of batches.
QUICK_MOST = 499


@dataclass(frozen=True)
class Check:
    """passed: None where the question does not apply. figure: what was measured, in words. details: lines to show."""

    name: str
    passed: bool | None
    figure: str
    details: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        told = {"passed": self.passed, "figure": self.figure}
        return told | ({"details": self.details} if self.details else {})


class Probe:
    """A model, some held-out text, and the protocol by which it is measured; every check runs without gradients."""

    def __init__(self, model: nn.Module, split: Split, start_id: int, protocol: Protocol, device: str):
        self.model, self.split, self.start_id, self.device = model, split, start_id, device
        self.protocol = replace(protocol, precision="32", limit_tokens=None)
        self.random = np.random.default_rng(0)
        self.vocab_size = model.vocab_size
        # A model whose positions cannot slide reads no further.
        self.length = min(n for n in (len(split) - 1, 32, self._limit()) if n is not None)
        self.n_tokens = min(MOST, len(split))

    def _limit(self) -> int | None:
        return None if self.model.recurrent else self.model.max_context

    def rows(self, n: int, length: int | None = None) -> tuple[Tensor, Tensor]:
        """Inputs and targets (n, length) from places spread over the text."""
        length = length or self.length
        starts = np.linspace(0, len(self.split) - length - 1, n).astype(np.int64)
        ids = np.asarray(self.split.ids)[starts[:, None] + np.arange(length + 1)].astype(np.int64)
        ids = torch.from_numpy(ids).to(self.device)
        return ids[:, :-1], ids[:, 1:]

    def other(self, ids: Tensor) -> Tensor:
        """For each id another one, drawn at random."""
        if self.vocab_size < 2:
            return ids
        step = torch.from_numpy(self.random.integers(1, self.vocab_size, tuple(ids.shape))).to(ids.device)
        return (ids + step) % self.vocab_size

    def nll(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return self.model.head.nll(self.model(inputs, None)[0], targets)

    def batches(self, batch_size: int, **options: Any) -> Iterator[Batch]:
        options = {"limit_tokens": self.n_tokens, **options}
        return protocols.batches(self.split, self.protocol, self.start_id, batch_size, **options)

    def measure(self, batches: Iterator[Batch]) -> Any:
        return evaluator.evaluate(self.model, batches, "32", self.device)

    @cached_property
    def tolerance(self) -> float:
        """Nats by which predictions may differ that should be the same."""
        inputs, targets = self.rows(4)
        moved = (self.nll(self.other(inputs), targets) - self.nll(inputs, targets)).abs()
        return min(TOLERANCE, ROUNDING + SHARE * float(moved.max()))

    def limit(self, work: float) -> None:
        """Read no more than takes about so many multiplications: by the model's size, so that what is recorded does
        not depend on the machine."""
        # Eight readings, of which each may look at a token twice.
        cost = 16 * sum(p.numel() for p in self.model.parameters())
        self.n_tokens = min(len(self.split), max(FEWEST, min(QUICK_MOST, int(work / max(cost, 1)))))


@torch.inference_mode()
def causality(probe: Probe) -> Check:
    """Nothing that comes later changes what was predicted before, and no target stands among its own inputs."""
    name, length = "causality", probe.length
    if length < 2:
        return Check(name, None, "the text is too short")
    inputs, targets = probe.rows(length - 1)
    # Row k is changed from place k + 1 on: between them they try every place.
    late = torch.arange(length, device=inputs.device) > torch.arange(length - 1, device=inputs.device)[:, None]
    before = probe.nll(inputs, targets)
    after = probe.nll(torch.where(late, probe.other(inputs), inputs), targets)
    moved = (after - before).abs()[~late]
    worst = float(moved.max())
    shifted = _shifted(probe)
    if shifted:
        return Check(name, False, f"{shifted:,} inputs are not the token before their target")
    figure = f"a changed suffix moves its prefix by {worst:.1e} nats ({moved.numel():,} predictions)"
    return Check(name, worst <= probe.tolerance, figure)


def _shifted(probe: Probe) -> int:
    """Inputs of the evaluator's rows that are not the token before their target."""
    wrong = 0
    for batch in probe.batches(8):
        real = batch.counted
        wrong += int(((batch.inputs[:, 1:] != batch.targets[:, :-1]) & real[:, 1:] & real[:, :-1]).sum())
    return wrong


@torch.inference_mode()
def normalised(probe: Probe) -> Check:
    """Probabilities sum to one over the vocabulary, and the nll that is measured is theirs."""
    inputs, targets = probe.rows(4)
    hidden = probe.model(inputs, None)[0][:, -4:]
    log_probs = for_float64(probe.model.head.log_probs(hidden)).double()
    off = float((log_probs.logsumexp(-1).exp() - 1).abs().max())
    gap = 0.0
    for ids in (targets[:, -4:], probe.other(targets[:, -4:])):
        nll = for_float64(probe.model.head.nll(hidden, ids)).double()
        gap = max(gap, float((nll + log_probs.gather(-1, for_float64(ids)[..., None])[..., 0]).abs().max()))
    if probe.vocab_size <= ONE_BY_ONE:
        # As the evaluator asks: each token's nll by itself.
        ids = torch.arange(probe.vocab_size, device=hidden.device)[None]
        nll = probe.model.head.nll(hidden[:1, -1:].expand(1, probe.vocab_size, -1), ids)
        off = max(off, abs(float((-for_float64(nll).double()).exp().sum()) - 1))
    passed = off <= TOLERANCE and gap <= TOLERANCE
    return Check("probabilities", passed, f"sums over the vocabulary are 1 +- {off:.1e}, nll agrees to {gap:.1e} nats")


@torch.inference_mode()
def chunked(probe: Probe) -> Check:
    """Read in pieces with the state carried, text has the probabilities that it has as a whole."""
    inputs, targets = probe.rows(4)
    cuts = [0, *(c for c in (1, probe.length // 3, probe.length // 2) if 0 < c < probe.length), probe.length]
    state, parts = None, []
    for start, stop in pairwise(cuts):
        if stop > start:
            hidden, state = probe.model(inputs[:, start:stop], state)
            parts.append(probe.model.head.nll(hidden, targets[:, start:stop]))
    whole = probe.nll(inputs, targets)
    off = float((torch.cat(parts, 1) - whole).abs().max())
    return Check("chunked = whole", off <= probe.tolerance, f"differ by {off:.1e} nats")


@torch.inference_mode()
def padding(probe: Probe) -> Check:
    """Each token counts once and padding never: counted by hand, in rows of two shapes, with other ids as padding."""
    split, n = probe.split, probe.n_tokens
    wanted = (n, *(int(np.asarray(size[:n]).sum(dtype=np.int64)) for size in (split.n_bytes, split.n_chars)))
    padded = 0

    def scrambled(batches: Iterator[Batch]) -> Iterator[Batch]:
        nonlocal padded
        for batch in batches:
            if batch.mask is None:
                yield batch
                continue
            # What stands before a counted target is context, and only a target's own row reads it.
            after = batch.mask.flip(1).cummax(1).values.flip(1).logical_not()
            padded += int(after.sum())
            inputs = torch.where(after, probe.other(batch.inputs), batch.inputs)
            yield replace(
                batch, inputs=inputs, targets=torch.where(batch.mask, batch.targets, probe.other(batch.targets))
            )

    shapes = [probe.measure(probe.batches(size, chunk=chunk)) for size, chunk in ((1, 128), (5, 24))]
    shapes.append(probe.measure(scrambled(probe.batches(7))))
    for found in shapes:
        counted = (found.tokens, found.bytes, found.chars)
        if counted != wanted:
            return Check(
                "padding", False, f"{counted[0]:,} tokens and {counted[1]:,} bytes counted, there are "
                f"{wanted[0]:,} and {wanted[1]:,}"
            )  # fmt: skip
    by_hand = _by_hand(probe)
    off = max(abs(found.nats / by_hand - 1) for found in shapes)
    figure = f"{n:,} tokens counted once each in three shapes, {padded:,} padded places not; sums agree to {off:.0e}"
    return Check("padding", off <= RELATIVE, figure)


def _by_hand(probe: Probe) -> float:
    """Nats of the text by the shortest code that can be right."""
    total, state = 0.0, None
    for batch in probe.batches(3):
        batch = batch.to(probe.device)
        carried = batch.reset is not None and not bool(batch.reset.all())
        hidden, state = probe.model(batch.inputs, state if carried else None)
        nll = for_float64(probe.model.head.nll(hidden, batch.targets)).double()
        total += float(nll.sum() if batch.mask is None else nll[for_float64(batch.mask)].sum())
    return total


@torch.inference_mode()
def ranks(probe: Probe) -> Check:
    """What several processes measure between them is what one measures."""
    whole = probe.measure(probe.batches(8))
    off = 0.0
    for n in (2, 3):
        parts = [probe.measure(probe.batches(8, rank=rank, world_size=n)) for rank in range(n)]
        together = parts[0]
        for part in parts[1:]:
            together += part
        if (together.tokens, together.bytes) != (whole.tokens, whole.bytes):
            return Check("distributed", False, f"{n} processes count {together.tokens:,} tokens, one {whole.tokens:,}")
        off = max(off, abs(together.nats / whole.nats - 1))
    return Check("distributed", off <= RELATIVE, f"sums over 2 and 3 processes agree with one to {off:.0e}")


MODEL_CHECKS = (causality, normalised, chunked, padding, ranks)
