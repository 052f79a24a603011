"""Our training run, and a reference loop that gets the same batches, weights and random states in alternation."""

import os
import platform
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
from lmlab.training.fit import build_module, build_trainer, evaluation_batches, limits, quiet_lightning
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
    """Records each step of ours; after every `segment` steps the reference takes the same ones.

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
            # Dropout is seeded by now: from this state the reference draws the same masks.
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


def run(plan: Plan, reference: Loop, steps: int, segment: int) -> tuple[Trace, Trace]:
    """The first `steps` steps of the plan, ours and the reference's. Schedules keep the plan's own horizon."""
    quiet_lightning()
    both = Alternate(reference, segment)
    # Cut short and never validated: training alone is compared.
    plan.total_steps = steps
    with open_dict(plan.config):
        plan.config.trainer.limit_val_batches = 0
    module = build_module(plan)
    data = TextDataModule(lambda: plan.store)
    data.connect(plan.batching, lambda: module.step, steps, evaluation_batches(plan), **limits(plan.config))
    data.prepare_data()
    build_trainer(plan, Path(), [both], 0).fit(module, datamodule=data)
    return both.ours, both.theirs


def compare(ours: Trace, theirs: Trace, segment: int) -> dict[str, Any]:
    """Losses per segment, milliseconds a step (medians, the first segment left out), and the median ratio."""
    starts = range(0, len(ours.losses), segment)
    warm = segment if len(ours.losses) > segment else 0

    def mean(values: list[float], start: int) -> float:
        part = values[start : start + segment]
        return sum(part) / len(part)

    def segment_at(start: int) -> dict[str, float]:
        step = min(start + segment, len(ours.losses))
        return {"step": step, "ours": mean(ours.losses, start), "reference": mean(theirs.losses, start)}

    differences = [abs(a - b) for a, b in zip(ours.losses, theirs.losses, strict=True)]
    marks = [n for n in (1, 10, 50, 100, len(differences)) if n <= len(differences)]
    return {
        "steps": len(differences),
        "segment": segment,
        "largest_difference": {str(n): max(differences[:n]) for n in marks},
        "segments": [segment_at(start) for start in starts],
        "ms_per_step": {"ours": 1e3 * median(ours.seconds[warm:]), "reference": 1e3 * median(theirs.seconds[warm:])},
        "ratio": median(mean(ours.seconds, s) / mean(theirs.seconds, s) for s in starts if s >= warm),
        "losses": {"ours": ours.losses, "reference": theirs.losses},
    }


def table(result: dict[str, Any], rows: int = 25) -> str:
    """Mean loss of segments, the two times, and their ratio."""
    lines = [f"{'step':>6} {'ours':>9} {'reference':>9} {'difference':>11}"]
    segments = result["segments"]
    for row in reversed(segments[:: -max(1, len(segments) // rows)]):
        lines.append(
            f"{row['step']:>6} {row['ours']:>9.4f} {row['reference']:>9.4f} {row['ours'] - row['reference']:>+11.1e}"
        )
    largest = ", ".join(f"{n}: {value:.1e}" for n, value in result["largest_difference"].items())
    ms = result["ms_per_step"]
    lines += [
        f"(mean loss of the last {result['segment']} steps; largest difference of one step within the first {largest})",
        f"ms a step: ours {ms['ours']:.1f}, reference {ms['reference']:.1f}, ratio {result['ratio']:.2f}",
    ]
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """What the times were measured on."""
    name = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {
        "cpu": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "amx": torch.cpu._is_amx_tile_supported(),
        "load": os.getloadavg(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
