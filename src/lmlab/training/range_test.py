"""A learning-rate range test (Smith 2017, section 3.3): a few steps from fresh weights, each at a higher rate."""

import dataclasses
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from omegaconf import open_dict

from lmlab.data.datamodule import TextDataModule
from lmlab.errors import TrainingFailed
from lmlab.training.fit import build_module, build_trainer, connection, evaluation_batches, quiet_lightning
from lmlab.training.plan import Plan
from lmlab.training.schedule import Schedule
from lmlab.training.trial import alone, signals_kept

# From a thousandth of the recipe's rate to a thousand times as much; a loss so far above the first one ends it.
# Held against the best, a hard batch would end a test that has learnt much.
DECADES, BROKEN = 3, 1.3
# Of the moving average over steps. The rate at the lowest loss is where it begins to break; a tenth of it is the usual
# choice (fastai's lr_find, `minimum`).
SMOOTHING, SAFE = 0.8, 0.1


class Rising(Schedule):
    """The factor rises from 10**-DECADES to 10**DECADES, by the same ratio at each step."""

    name = "rising"

    def factor(self, step: int) -> float:
        return 10 ** (DECADES * (2 * step / max(self.total_steps - 1, 1) - 1))


class _Watch(Callback):
    def __init__(self):
        self.rates: list[float] = []
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.rates.append(pl_module.latest["optim/lr"])
        self.losses.append(pl_module.latest["train/loss"])
        if self.losses[-1] > BROKEN * self.losses[0]:
            trainer.should_stop = True


def range_test(plan: Plan, steps: int) -> dict[str, Any]:
    """{used, suggested, breaks_at, verdict, rates, losses} of a plan's recipe; nothing is written."""
    plan = alone(plan, steps, {})
    with open_dict(plan.config):
        plan.config.training.log_every = 1
    plan = dataclasses.replace(plan, schedule=Rising(steps, plan.batching.steps_per_epoch, 0))
    module, watch, data = build_module(plan), _Watch(), TextDataModule(lambda: plan.store)
    data.prepare_data()
    data.connect(plan.batching, lambda: module.step, steps, evaluation_batches(plan), **connection(plan))
    quiet_lightning()
    # A loss that is no number lies past the rates that matter.
    with signals_kept(), suppress(TrainingFailed):
        build_trainer(plan, Path(), [watch], 0).fit(module, datamodule=data)
    return read(watch.rates, watch.losses, float(plan.config.optimizer.lr))


def read(rates: list[float], losses: list[float], used: float) -> dict[str, Any]:
    """What the curve of the test says of the rate that is used."""
    smooth, average = [], 0.0
    for i, loss in enumerate(losses):
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        smooth.append(average / (1 - SMOOTHING ** (i + 1)))
    lowest = int(np.argmin(smooth))
    edge = rates[lowest]
    suggested = float(f"{edge * SAFE:.1g}")
    if lowest == len(rates) - 1 and rates[-1] >= used * 10 ** (DECADES - 1):
        verdict = "no rate that was tried broke it"
    elif used >= edge:
        verdict = "too high: the loss breaks at or below it"
    elif used < suggested / 10:
        verdict = "too low: the loss falls fastest at rates far above it"
    else:
        verdict = "in the range where the loss falls"
    kept = [(r, s) for r, s in zip(rates, smooth, strict=True) if math.isfinite(s)]
    return {
        "used": used,
        "suggested": suggested,
        "breaks_at": float(f"{edge:.2g}"),
        "verdict": verdict,
        "rates": [float(f"{r:.4g}") for r, _ in kept],
        "losses": [round(s, 4) for _, s in kept],
    }
