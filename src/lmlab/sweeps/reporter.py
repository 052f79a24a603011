"""A sweep's callbacks: one reports each validation, and stops the run where pruning wants it to."""

from collections.abc import Callable
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback


class Starter(Callback):
    """Says that training begins."""

    def __init__(self, told: Callable[[], None]):
        self.told = told

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.told()


class Reporter(Callback):
    """Ends training after the step that `begin` names, which is then validated and saved like any that is stopped.

    begin: total steps -> the step to stop after. report: (step, value of `metric`) -> whether to stop here.
    Of several processes only the first has it: they end together, where GracefulStop next asks them all.
    """

    def __init__(self, metric: str, begin: Callable[[int], int], report: Callable[[int, float], bool]):
        self.metric, self.begin, self.report = metric, begin, report
        self.stopping = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.goal = self.begin(pl_module.total_steps)
        known = [point for point in pl_module.history if point["step"] >= self.goal]
        if known and pl_module.step < pl_module.total_steps:
            # It has been there, and was killed on its way from there, or before anybody knew.
            for point in known:
                self.report(point["step"], point[self.metric])
            self._stop(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self.goal <= pl_module.step < pl_module.total_steps:
            self._stop(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = pl_module.step
        if self.report(step, pl_module.history[-1][self.metric]) and step < pl_module.total_steps:
            self._stop(trainer)

    def _stop(self, trainer: Trainer) -> None:
        self.stopping = True
        if trainer.world_size == 1:
            trainer.should_stop = True
