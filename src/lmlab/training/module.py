"""The LightningModule: one optimisation step on a global batch, and validation by the evaluator's own code."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn

from lmlab.errors import TrainingFailed
from lmlab.evaluation.evaluate import score_batch
from lmlab.metrics import Likelihood, TokenNLL
from lmlab.training import optim
from lmlab.training.schedule import Schedule
from lmlab.types import Batch, State, detach, map_state, reset

# The names of the validation loaders, in order: held-out text, and a fixed slice of train without dropout.
VALIDATIONS = ("val", "train_eval")


class LMModule(LightningModule):
    """Trains `model` on batches that are a pure function of (seed, step).

    Steps are counted here. Dropout is reseeded from (seed, step, rank), so a resumed run repeats an uninterrupted one.
    make_optimizer: parameter groups -> optimizer. decay: which parameters decay, as in `optim.parameter_groups`.
    """

    def __init__(
        self,
        model: nn.Module,
        make_optimizer: Callable[..., torch.optim.Optimizer],
        schedule: Schedule,
        seed: int,
        total_steps: int,
        compiled: bool,
        monitor: str,
        evaluation_precision: str,
        micro_batch_size: int | None,
        decay: str,
        clip_norm: float | None,
        ar: float,
        tar: float,
        log_every: int,
        histograms: bool,
    ):
        super().__init__()
        if micro_batch_size is not None and micro_batch_size < 1:
            raise ValueError(f"training.micro_batch_size={micro_batch_size} must be at least 1, or null")
        self.automatic_optimization = False
        self.model = model
        self.make_optimizer, self.decay, self.schedule = make_optimizer, decay, schedule
        self.seed, self.total_steps, self.monitor = seed, total_steps, monitor
        self.evaluation_precision = evaluation_precision
        self.micro_batch_size, self.clip_norm, self.ar, self.tar = micro_batch_size, clip_norm, ar, tar
        self.log_every, self.histograms = log_every, histograms
        self.step = 0
        self.tokens = 0
        self.seconds = 0.0
        self.state: list[State] = []
        self.window = TokenNLL()
        self.validations = nn.ModuleDict({name: TokenNLL() for name in VALIDATIONS})
        self.validation_state: State = None
        self.history: list[dict[str, float]] = []
        self.latest: dict[str, float] = {}
        self.restored: dict[str, Any] | None = None
        self.first_loss: float | None = None
        self._swap = nullcontext()
        self._clock = 0.0
        self._forward = torch.compile(self._nll) if compiled else self._nll

    # Optimisation

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return optim.build(self.make_optimizer, self.decay, self.model)

    def _nll(self, inputs: Tensor, targets: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        hidden, state = self.model(inputs, state)
        return self.model.head.nll(hidden, targets), hidden, state

    def _micro_batches(self, batch: Batch) -> list[Batch]:
        n_rows, size = len(batch.inputs), self.micro_batch_size or len(batch.inputs)
        return [batch.rows(i, min(i + size, n_rows)) for i in range(0, n_rows, size)]

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        step = self.step
        torch.manual_seed((self.seed * 1_000_003 + step) * 1_009 + self.global_rank)
        optimizer = self.optimizers()
        factor = self.schedule.factor(step) * batch.lr_scale
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

        micro_batches = self._micro_batches(batch)
        if len(self.state) != len(micro_batches):
            self.state = [None] * len(micro_batches)
        n_targets = self._global_targets(batch)
        for i, micro in enumerate(micro_batches):
            last = i == len(micro_batches) - 1
            with nullcontext() if last else self._no_sync():
                self.state[i] = self._accumulate(micro, self.state[i], n_targets)

        norm = None
        if self.clip_norm is not None:
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        self.step += 1
        self.tokens += batch.n_targets * self.trainer.world_size
        if self.step % self.log_every == 0 or self.step == 1 or self.step >= self.total_steps:
            self._log_training(factor, norm)

    def _accumulate(self, batch: Batch, state: State, n_targets: int) -> State:
        """Add the gradient of this micro-batch's share of the loss; return the state to carry."""
        carried = None if batch.reset is None else detach(reset(state, batch.reset))
        nll, hidden, state = self._forward(batch.inputs, batch.targets, carried)
        counted = nll if batch.mask is None else torch.where(batch.mask, nll, 0.0)
        # Summed and divided by all the step's targets: the same gradient however the batch is cut.
        loss = counted.sum() / n_targets
        if self.ar or self.tar:
            share = len(batch.inputs) * batch.inputs.shape[1] / n_targets
            loss = loss + share * self._activation_penalty(hidden)
        self.manual_backward(loss)
        self.window.update(nll.detach(), batch.mask, batch.counts)
        return None if batch.reset is None else detach(state)

    def _activation_penalty(self, hidden: Tensor) -> Tensor:
        """AR on the dropped output, TAR on the undropped (Merity et al. 2017, section 4.2)."""
        penalty = self.ar * self.model.head.drop(hidden).pow(2).mean() if self.ar else hidden.new_zeros(())
        if self.tar and hidden.shape[1] > 1:
            penalty = penalty + self.tar * (hidden[:, 1:] - hidden[:, :-1]).pow(2).mean()
        return penalty

    def _global_targets(self, batch: Batch) -> int:
        """What a rank's loss is divided by: DDP averages over ranks, the batch is global."""
        local = batch.n_targets
        if self.trainer.world_size == 1:
            return local
        total = self.all_gather(torch.tensor(local, device=self.device)).sum()
        return float(total) / self.trainer.world_size

    def _no_sync(self):
        wrapped = self.trainer.strategy.model
        return wrapped.no_sync() if hasattr(wrapped, "no_sync") else nullcontext()

    # What is seen of training

    def _log_training(self, factor: float, norm: Tensor | None) -> None:
        likelihood = self._drain_window()
        now = time.perf_counter()
        waited = self.trainer.train_dataloader.take_waited()
        spent, self._clock = now - self._clock, now
        self.seconds += spent
        optimizer = self.optimizers()
        self.latest = {
            "train/loss": likelihood.nll,
            "train/ppl": likelihood.ppl,
            "train/bpb": likelihood.bpb,
            "optim/lr": optimizer.param_groups[0]["lr"],
            "perf/tokens_per_s": likelihood.tokens / spent if spent else 0.0,
            "perf/data_share": waited / spent if spent else 0.0,
            "progress/epoch": self.trainer.datamodule.batching.progress(self.step),
            "progress/tokens": float(self.tokens),
        }
        if norm is not None:
            self.latest["optim/grad_norm"] = float(norm)
        self.write(self.latest)

    def _drain_window(self) -> Likelihood:
        likelihood = self.window.likelihood()
        self.window.reset()
        if self.first_loss is None:
            self.first_loss = likelihood.nll
        if likelihood.nats != likelihood.nats or likelihood.nats == float("inf"):
            raise TrainingFailed(
                f"the loss is {likelihood.nats} within the {self.log_every} steps before step {self.step}; "
                "the last good checkpoint is kept. Try a lower optimizer.lr, more schedule.warmup or "
                "a smaller training.clip_norm"
            )
        return likelihood

    def write(self, metrics: dict[str, float]) -> None:
        """Send metrics to the loggers at our step."""
        for logger in self.loggers:
            logger.log_metrics(metrics, step=self.step)

    # Validation

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        if batch_idx == 0:
            self.validation_state = None
        nll, self.validation_state = score_batch(
            self.model, batch, self.validation_state, self.evaluation_precision
        )
        self.validations[VALIDATIONS[dataloader_idx]].update(nll, batch.mask, batch.counts)

    def measured_weights(self) -> AbstractContextManager:
        """Within, the model has the weights that validation measures: an averaging optimizer's averages."""
        averaged = getattr(self.trainer.optimizers[0], "averaged", None)
        return averaged() if averaged else nullcontext()

    def on_validation_epoch_start(self) -> None:
        self._before_validation = time.perf_counter()
        self._swap = self.measured_weights()
        self._swap.__enter__()

    def on_validation_epoch_end(self) -> None:
        self._swap.__exit__(None, None, None)
        val, fixed = (self.validations[name].likelihood() for name in VALIDATIONS)
        for metric in self.validations.values():
            metric.reset()
        self.validation_state = None
        metrics = {"val/loss": val.nll, "val/ppl": val.ppl, "val/bpb": val.bpb}
        if fixed.tokens:
            metrics |= {"train/eval_loss": fixed.nll, "val/gap": val.nll - fixed.nll}
        self.history.append({"step": self.step, "tokens": self.tokens, **metrics})
        self.log_dict(metrics, logger=False)
        self.write(metrics)
        self.schedule.observe(metrics[self.monitor])
        if hasattr(optimizer := self.trainer.optimizers[0], "observe"):
            optimizer.observe(metrics[self.monitor])

    def on_validation_end(self) -> None:
        # Time spent validating, saving and sampling is no training time.
        self._clock += time.perf_counter() - self._before_validation

    # Beginning, saving and resuming: Lightning's own loop counters are set, not restored.

    def on_fit_start(self) -> None:
        if self.restored is not None:
            self._restore(self.restored)
            self.restored = None

    def on_train_start(self) -> None:
        self._clock = time.perf_counter()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["lmlab"] = {
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "state": [map_state(Tensor.cpu, s) for s in self.state],
            "schedule": self.schedule.state_dict(),
            "window": {k: v.cpu() for k, v in self.window.metric_state.items()},
            "history": self.history,
            "first_loss": self.first_loss,
        }

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        """Continue from a checkpoint of `last.ckpt`'s kind. The weights are already in place."""
        ours = checkpoint["lmlab"]
        self.step, self.tokens, self.seconds = ours["step"], ours["tokens"], ours["seconds"]
        self.history, self.first_loss = ours["history"], ours["first_loss"]
        self.state = [map_state(lambda t: t.to(self.device), s) for s in ours["state"]]
        for name, value in ours["window"].items():
            setattr(self.window, name, value.to(self.device))
        # Set by hand, an updated value must look updated to torchmetrics.
        self.window._update_count = 1
        self.schedule.load_state_dict(ours["schedule"])
        optimizer = self.trainer.optimizers[0]
        initial = [group["initial_lr"] for group in optimizer.param_groups]
        optimizer.load_state_dict(checkpoint["optimizer_states"][0])
        for group, lr in zip(optimizer.param_groups, initial, strict=True):
            group["initial_lr"] = lr
        for callback in self.trainer.callbacks:
            if callback.state_key in checkpoint["callbacks"]:
                callback.load_state_dict(checkpoint["callbacks"][callback.state_key])
        epoch = self.trainer.fit_loop.epoch_loop
        epoch._batches_that_stepped = self.step
        epoch.manual_optimization.optim_step_progress.total.ready = self.step
        epoch.manual_optimization.optim_step_progress.total.completed = self.step
        for name in ("ready", "started", "processed", "completed"):
            setattr(epoch.batch_progress.total, name, self.step)
