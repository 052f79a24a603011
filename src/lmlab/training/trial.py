"""A few real steps of a run that are timed and thrown away."""

import copy
import dataclasses
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from omegaconf import open_dict

from lmlab.data.datamodule import TextDataModule
from lmlab.errors import TrainingFailed
from lmlab.training.fit import build_module, build_trainer, connection, evaluation_batches, quiet_lightning
from lmlab.training.plan import Plan


@dataclasses.dataclass(frozen=True)
class Trial:
    """What some steps took. `starting`: seconds of the steps that warm up, compiling among it.

    fault: why there is nothing to compare (memory, a loss that is not finite); None where all went well.
    """

    step_seconds: list[float]
    starting: float
    loss: float
    fault: str | None

    @property
    def mean(self) -> float:
        return sum(self.step_seconds) / len(self.step_seconds)

    @property
    def median(self) -> float:
        return sorted(self.step_seconds)[len(self.step_seconds) // 2]


def attempt(plan: Plan, steps: int, seconds: float, warm_up: int, **changes: Any) -> Trial:
    """Train a copy of the plan's model for at most `steps` steps or `seconds`, whichever ends first, after `warm_up`.

    The steps are the run's own: its module, batches, optimizer and trainer, without logger, checkpoints and
    validation. changes: entries of `decided` to try instead (precision, compile).
    """
    plan = alone(plan, warm_up + steps, changes)
    module, timer = build_module(plan), _Timer(warm_up, seconds)
    data = TextDataModule(lambda: plan.store)
    data.prepare_data()
    data.connect(plan.batching, lambda: module.step, plan.total_steps, evaluation_batches(plan), **connection(plan))
    quiet_lightning()
    fault = None
    with signals_kept():
        try:
            build_trainer(plan, Path(), [timer], 0).fit(module, datamodule=data)
        except torch.OutOfMemoryError:
            fault = "out of memory"
        except TrainingFailed:
            fault = "the loss is not finite"
    loss = module.latest.get("train/loss", float("nan"))
    return Trial(timer.step_seconds or [float("inf")], timer.starting, loss, fault)


def alone(plan: Plan, steps: int, changes: dict[str, Any]) -> Plan:
    """The plan for so many steps in this process, with nothing written."""
    config = copy.deepcopy(plan.config)
    with open_dict(config):
        config.logger = None
        config.trainer.update({"devices": 1, "max_time": None, "limit_val_batches": 0, "profiler": None})
        config.training.histograms = config.profile = False
    decided = plan.decided | changes | {"devices": 1, "val_check_interval": steps}
    return dataclasses.replace(plan, config=config, model=copy.deepcopy(plan.model), decided=decided, total_steps=steps)


@contextmanager
def signals_kept() -> Iterator[None]:
    """Lightning answers Ctrl-C by SystemExit, and leaves the signal ignored."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        signal.signal(signal.SIGINT, before)
        raise KeyboardInterrupt from error


class _Timer(Callback):
    """Times steps after the warm-up and stops when the time is over, after one measured step at least."""

    def __init__(self, warm_up: int, seconds: float):
        self.warm_up, self.seconds = warm_up, seconds
        self.step_seconds: list[float] = []
        self.starting = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.began = self.last = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        step = pl_module.step
        over = time.perf_counter() - self.began - self.starting > self.seconds and step > self.warm_up
        if step == self.warm_up or over or step >= pl_module.total_steps:
            # Only here: in between, a GPU runs ahead of us as it does in training.
            _finish(pl_module.device)
        now = time.perf_counter()
        if step <= self.warm_up:
            self.starting = now - self.began
        else:
            self.step_seconds.append(now - self.last)
        self.last = now
        if over:
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if pl_module.device.type != "cpu":
            # Of steps that are only queued the single times mean nothing, their sum does.
            self.step_seconds = [sum(self.step_seconds) / max(len(self.step_seconds), 1)] * len(self.step_seconds)


def _finish(device: torch.device) -> None:
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()
