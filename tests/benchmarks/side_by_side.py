"""Our training run, and a reference loop that gets the same batches, weights and random states in alternation."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from omegaconf import open_dict
from torch import Tensor

from lmlab.data.datamodule import TextDataModule
from lmlab.experiment import Plan
from lmlab.training.fit import build_module, build_trainer, connection, evaluation_batches, quiet_lightning
from lmlab.training.module import LMModule
from lmlab.types import Batch


class Loop(Protocol):
    def step(self, step: int, inputs: Tensor, targets: Tensor, new_text: bool) -> float: ...


@dataclass
class Trace:
    """Loss and seconds of each step."""

    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


class Alternate(Callback):
    """Records each step of ours; after every `segment` steps the reference takes the same ones, and a line is printed.

    A step of ours lasts from the end of the one before to its own: batches, Lightning and logging are in it. The
    reference's batches are given to it, which spares it some microseconds.
    """

    def __init__(self, reference: Loop, segment: int):
        self.reference, self.segment = reference, segment
        self.ours, self.theirs = Trace(), Trace()
        self._pending: list[tuple[Batch, Tensor]] = []
        self._random: Tensor | None = None
        self._began = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LMModule) -> None:
        forward = pl_module._forward

        def watched(*arguments: Any) -> tuple:
            # Dropout is seeded by now: from this state the reference draws its masks. They are the same ones where both
            # draw with F.dropout, as the Transformers do; our LSTM draws in its own way.
            self._random = torch.get_rng_state()
            nll, *others = forward(*arguments)
            self.ours.losses.append(nll.detach().mean().item())
            return nll, *others

        pl_module._forward = watched
        self._began = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LMModule, outputs: Any, batch: Batch, i: int) -> None:
        self.ours.seconds.append(time.perf_counter() - self._began)
        self._pending.append((batch, self._random))
        if len(self._pending) == self.segment or pl_module.step == pl_module.total_steps:
            self._follow()
        self._began = time.perf_counter()

    def _follow(self) -> None:
        for batch, random in self._pending:
            torch.set_rng_state(random)
            new_text = batch.reset is None or bool(batch.reset.all())
            began = time.perf_counter()
            self.theirs.losses.append(
                self.reference.step(len(self.theirs.losses), batch.inputs, batch.targets, new_text)
            )
            self.theirs.seconds.append(time.perf_counter() - began)
        self._pending.clear()
        print(_row(self.ours, self.theirs, self.segment), flush=True)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _row(ours: Trace, theirs: Trace, segment: int) -> str:
    """Both losses, as means of the last segment."""
    last = (len(ours.losses) - 1) // segment * segment
    a, b = _mean(ours.losses[last:]), _mean(theirs.losses[last:])
    return f"{len(ours.losses):>6} {a:>9.4f} {b:>9.4f} {a - b:>+11.1e}"


def run(plan: Plan, reference: Loop, steps: int, segment: int) -> tuple[Trace, Trace]:
    """The first `steps` steps of the plan, ours and the reference's. Schedules keep the plan's own horizon."""
    quiet_lightning()
    print(f"{'step':>6} {'ours':>9} {'reference':>9} {'difference':>11}")
    both = Alternate(reference, segment)
    # Cut short and never validated: training alone is compared.
    plan.total_steps = steps
    with open_dict(plan.config):
        plan.config.trainer.limit_val_batches = 0
    module = build_module(plan)
    data = TextDataModule(lambda: plan.store)
    data.connect(plan.batching, lambda: module.step, steps, evaluation_batches(plan), **connection(plan))
    data.prepare_data()
    build_trainer(plan, Path(), [both], 0).fit(module, datamodule=data)
    return both.ours, both.theirs


def compare(ours: Trace, theirs: Trace, segment: int) -> dict[str, Any]:
    """Differences in loss, milliseconds a step (medians, the first segment left out), the median ratio of segments."""
    n = len(ours.losses)
    warm = segment if n > segment else 0
    parts = [slice(start, start + segment) for start in range(warm, n, segment)]
    differences = [abs(a - b) for a, b in zip(ours.losses, theirs.losses, strict=True)]
    return {
        "steps": n,
        "segment": segment,
        "largest_difference": {str(m): max(differences[:m]) for m in (1, 10, 50, 100, n) if m <= n},
        "ms_per_step": {"ours": 1e3 * median(ours.seconds[warm:]), "reference": 1e3 * median(theirs.seconds[warm:])},
        "ratio": median(_mean(ours.seconds[part]) / _mean(theirs.seconds[part]) for part in parts),
        "last_losses": {"ours": _mean(ours.losses[-segment:]), "reference": _mean(theirs.losses[-segment:])},
        "losses": {"ours": ours.losses, "reference": theirs.losses},
    }


def summary(result: dict[str, Any]) -> str:
    """What stands below the table of losses."""
    largest = ", ".join(f"{steps}: {value:.1e}" for steps, value in result["largest_difference"].items())
    ms = result["ms_per_step"]
    return (
        f"(means of {result['segment']} steps; largest difference of one step within the first {largest})\n"
        f"ms a step: ours {ms['ours']:.1f}, reference {ms['reference']:.1f}, ratio {result['ratio']:.2f}"
    )
