"""Lightning's loop over steps, with less between one step and the next."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from lightning import LightningModule
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.optim import Optimizer

from lmlab.data.datamodule import TextDataModule
from lmlab.models import kernels

# What Lightning calls in a step of manual optimisation.
HOOKS = (
    "on_train_batch_start",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)
# What Lightning asks the module besides, and ours leaves as they are.
OTHERS = ("backward", "optimizer_step", "on_before_batch_transfer", "transfer_batch_to_device")
OTHERS += ("on_after_batch_transfer",)


class StepLoop(_TrainingEpochLoop):
    """Takes the steps of one process itself, a third of a millisecond faster than Lightning.

    Callbacks get the same calls in the same order; those that do not override a hook are not called, where Lightning
    wraps each call of each callback in a profiler. kernels=plain, several processes, a profiler (trainer.profiler),
    scaled losses, or hooks that change the step: then `direct` is False, and every step is Lightning's own.
    """

    direct = False
    _validates: bool | None = None

    def on_run_start(self, data_fetcher: Any) -> None:
        super().on_run_start(data_fetcher)
        self.direct = self._may_be_direct()
        # The same all through a run, and asked for at every step.
        self._validates = super()._should_check_val_epoch() if self.direct else None
        self.module = module = self.trainer.lightning_module
        self._calls: dict[str, list[Any]] = {
            name: [getattr(c, name) for c in self.trainer.callbacks if _overrides(c, name, Callback)] for name in HOOKS
        }
        self._own = {name: getattr(module, name) for name in HOOKS if _overrides(module, name, LightningModule)}

    def _may_be_direct(self) -> bool:
        trainer = self.trainer
        precision, module = trainer.precision_plugin, trainer.lightning_module
        return (
            not kernels.are_plain()
            and type(trainer.strategy) is SingleDeviceStrategy
            and type(trainer.profiler) is PassThroughProfiler
            and type(precision) in (Precision, MixedPrecision)
            and getattr(precision, "scaler", None) is None
            and type(trainer.datamodule) is TextDataModule
            # Ours are set in the step itself.
            and not trainer.strategy.lr_scheduler_configs
            # It may end the epoch.
            and not _overrides(module, "on_train_batch_start", LightningModule)
            and not any(_overrides(module, name, LightningModule) for name in OTHERS)
        )

    def _should_check_val_epoch(self) -> bool:
        return super()._should_check_val_epoch() if self._validates is None else self._validates

    def _should_accumulate(self) -> bool:
        # Micro-batches are the module's matter: each batch of the loader is a step.
        return not self.direct and super()._should_accumulate()

    def update_lr_schedulers(self, interval: str, update_plateau_schedulers: bool) -> None:
        if not self.direct:
            super().update_lr_schedulers(interval, update_plateau_schedulers)

    def advance(self, data_fetcher: Any) -> None:
        """One step, as Lightning's: raises StopIteration where there are no more batches."""
        if not self.direct or self.restarting:
            super().advance(data_fetcher)
            return
        trainer, module, progress = self.trainer, self.module, self.batch_progress
        batch, _, _ = next(data_fetcher)
        progress.is_last_batch = data_fetcher.done
        batch = trainer.datamodule.transfer_batch_to_device(batch, module.device, 0)
        progress.increment_ready()
        index = self.batch_idx
        connector = trainer._logger_connector
        connector.on_batch_start(batch)
        self._call("on_train_batch_start", batch, index)
        progress.increment_started()
        # `self.log` reads from here where it is called. As Lightning does, past what nn.Module looks for at each.
        attributes = vars(module)
        attributes["_current_fx_name"] = "training_step"
        with self._context():
            module.training_step(batch, index)
        attributes["_current_fx_name"] = None
        progress.increment_processed()
        self._call("on_train_batch_end", {}, batch, index)
        # Only what somebody logged by `self.log` in this loop is in its results.
        if self._results:
            connector.on_batch_end()
        progress.increment_completed()
        if self._results:
            connector.update_train_step_metrics()

    def _context(self) -> AbstractContextManager:
        """Autocast, where precision has it."""
        plugin = self.trainer.precision_plugin
        return nullcontext() if type(plugin) is Precision else plugin.train_step_context()

    def _call(self, hook: str, *arguments: Any) -> None:
        module = self.module
        attributes = vars(module)
        before, attributes["_current_fx_name"] = attributes["_current_fx_name"], hook
        for call in self._calls[hook]:
            call(self.trainer, module, *arguments)
        if hook in self._own:
            self._own[hook](*arguments)
        attributes["_current_fx_name"] = before

    # For the module's training_step, in place of `manual_backward` and of Lightning's wrapped optimizer

    def backward(self, loss: Tensor) -> None:
        if not self.direct:
            self.module.manual_backward(loss)
            return
        self._call("on_before_backward", loss)
        loss.backward()
        self._call("on_after_backward")

    def optimizer_step(self, optimizer: Optimizer) -> None:
        """Take the step and count it: `trainer.global_step` is what weight averaging and others read."""
        if not self.direct:
            self.module.optimizers().step()
            return
        steps = self.manual_optimization.optim_step_progress
        steps.increment_ready()
        self._call("on_before_optimizer_step", optimizer)
        optimizer.step()
        steps.increment_completed()

    def pass_over_step(self) -> None:
        """Count a step whose update is left out."""
        steps = self.manual_optimization.optim_step_progress
        steps.increment_ready()
        steps.increment_completed()


def _overrides(instance: Any, name: str, base: type) -> bool:
    """Whether a method is other than the base class's, in the instance or its class."""
    return getattr(getattr(instance, name), "__func__", None) is not getattr(base, name)
