"""The LightningModule: one optimisation step on a global batch, and validation by the evaluator's own code."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn

from lmlab.errors import NotFinite
from lmlab.evaluation.evaluate import charged, score_batch
from lmlab.metrics import TokenNLL
from lmlab.training import loss, optim
from lmlab.training.curves import Curves
from lmlab.training.master_weights import MasterWeights
from lmlab.training.performance import Performance
from lmlab.training.progress import Stopwatch
from lmlab.training.schedule import Schedule
from lmlab.training.spikes import Spikes
from lmlab.training.updates import sampled, total_norm, update_ratio
from lmlab.types import Batch, Hidden, State, Tokens, detach, join, map_state, reset

# The names of the validation loaders, in order: held-out text, and a fixed slice of train without dropout.
VALIDATIONS = ("val", "train_eval")


class LMModule(LightningModule):
    """Trains `model` on batches that are a pure function of (seed, step).

    Steps are counted here. Dropout is reseeded from (seed, step, rank), so a resumed run repeats an uninterrupted one.
    compiled: `graphs` records a step's kernels once and repeats them as CUDA graphs; every step then has one shape.
    halved: forward and backward use bf16 copies of the weights (precision=bf16).
    make_optimizer: parameter groups -> optimizer. decay: which parameters decay, as in `optim.parameter_groups`.
    """

    def __init__(
        self,
        model: nn.Module,
        make_optimizer: Callable[..., torch.optim.Optimizer],
        schedule: Schedule,
        seed: int,
        total_steps: int,
        compiled: bool | str,
        halved: bool,
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
        self.seed, self.total_steps, self.monitor, self.halved = seed, total_steps, monitor, halved
        # Found and made when training starts: by then the model is where it stays.
        self._trained: list[nn.Parameter] = []
        self.masters: MasterWeights | None = None
        self.evaluation_precision = evaluation_precision
        self.micro_batch_size, self.clip_norm, self.ar, self.tar = micro_batch_size, clip_norm, ar, tar
        self.log_every, self.histograms = log_every, histograms
        self.step = 0
        self.tokens = 0
        # Runs while training does, not while validating, saving or sampling.
        self.watch = Stopwatch()
        # Of all this rank's rows, however they are cut into micro-batches.
        self.state: State = None
        self.window = TokenNLL()
        self.validations = nn.ModuleDict({name: TokenNLL() for name in VALIDATIONS})
        self.validation_state: State = None
        self.history: list[dict[str, float]] = []
        self.latest: dict[str, float] = {}
        # The run's own record of what is logged; rank 0's, and none in a rehearsal.
        self.curves: Curves | None = None
        self.first_loss: float | None = None
        # What judges steps, where the run has that, and what it has found: step, why and what was done, of each.
        self.spikes: Spikes | None = None
        self.spikes_met: list[dict[str, Any]] = []
        # Where the run was lengthened: the step, and the steps that its schedule was over until then.
        self.horizons: list[list[int]] = []
        self._swap = nullcontext()
        self._logged_at = 0.0
        # The first step (counted from 1) whose loss or gradient was not finite; 0: none. On the device.
        self._broken = torch.zeros((), dtype=torch.int64)
        self.graphs = compiled == "graphs"
        how = {"mode": "reduce-overhead", "dynamic": False} if self.graphs else {}
        self._forward = torch.compile(self._nll, **how) if compiled else self._nll

    # Optimisation

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return optim.build(self.make_optimizer, self.decay, self.model)

    def _nll(self, inputs: Tokens, targets: Tokens, state: State) -> tuple[Tensor, Hidden, Hidden, State]:
        hidden, state = self.model(inputs, state)
        # Dropped once: activation regularisation reads what the loss reads.
        dropped = self.model.head.drop(hidden)
        return self.model.head.nll_of(dropped, targets), hidden, dropped, state

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        step, trainer = self.step, self.trainer
        if self.graphs:
            # What the last step's graphs wrote may be overwritten: its gradients are used up, its state was copied.
            torch.compiler.cudagraph_mark_step_begin()
        # torch takes 64 bits, which seeds from some 1.8e10 on exceed.
        self._seed(((self.seed * 1_000_003 + step) * 1_009 + self.global_rank) % 2**64)
        optimizer = trainer.optimizers[0]
        factor = self.schedule.factor(step) * batch.lr_scale
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

        n_targets, n_pairs = loss.denominators(batch, self._gather if trainer.world_size > 1 else None)
        spikes = self.spikes
        before = None if spikes is None else spikes.before(self)
        with nullcontext() if self.masters is None else self.masters.halved():
            value = self._backward(batch, n_targets, n_pairs)
        parameters = [p for p in self._trained if p.grad is not None]
        shown = (step + 1) % self.log_every == 0 or step == 0 or step + 1 >= self.total_steps
        norm = None
        if shown or self.clip_norm is not None or spikes is not None:
            norm = total_norm([p.grad for p in parameters])
        if spikes is None:
            self._watch_for_nan(value if norm is None else value + norm)
        ratio = None
        if spikes is None or spikes.allows(self, value, norm, before):
            if self.clip_norm is not None and self._exceeds(norm):
                nn.utils.clip_grads_with_norm_(parameters, self.clip_norm, norm)
            weights = sampled(parameters) if shown else None
            trainer.fit_loop.epoch_loop.optimizer_step(optimizer)
            ratio = update_ratio(weights, parameters) if shown else None
        else:
            trainer.fit_loop.epoch_loop.pass_over_step()
            # What was trained since training was last logged is told with the steps to come.
            shown = False
        for p in parameters:
            p.grad = None
        self.step = step = step + 1
        self.tokens += round(n_targets * trainer.world_size)
        if step >= self.total_steps:
            # Told to stop, Lightning validates first, also between two regular validations.
            trainer.should_stop = True
        if shown:
            self._log_training(norm, ratio)

    def _exceeds(self, norm: Tensor) -> bool:
        """Whether clipping may change anything. A GPU is not asked: it multiplies by 1."""
        # With a margin for rounding: the factor is clip_norm / (norm + 1e-6) in fp32, at most 1. NaN exceeds.
        return norm.device.type != "cpu" or not norm.item() + 2e-6 <= self.clip_norm * (1 - 1e-6)

    def _seed(self, seed: int) -> None:
        """As torch.manual_seed, which takes 2 ms where a GPU might be but is not used yet: it keeps a stack trace."""
        torch.default_generator.manual_seed(seed)
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)

    def _backward(self, batch: Batch, n_targets: float, n_pairs: float) -> Tensor:
        """Add up the gradient of the batch, one micro-batch after the other; carry the state. Returns the loss."""
        carries = batch.reset is not None
        before = detach(reset(self.state, batch.reset)) if carries else None
        n_rows = batch.inputs.shape[0]
        size = self.micro_batch_size or n_rows
        total, after = None, []
        for start in range(0, n_rows, size):
            stop = min(start + size, n_rows)
            rows, carried = batch, before
            if stop - start < n_rows:
                rows = batch.rows(start, stop)
                carried = map_state(lambda t, rows=slice(start, stop): t[rows], before)
            with nullcontext() if stop == n_rows else self._no_sync():
                part, state = self._accumulate(rows, carried, n_targets, n_pairs)
            total = part if total is None else total + part
            after.append(self._carried(state) if carries else None)
        self.state = join(after) if carries else None
        return total

    def _carried(self, state: State) -> State:
        """What the next step goes on from: of a graph, whose next run writes to the same memory, a copy."""
        return map_state(lambda t: t.detach().clone(), state) if self.graphs else detach(state)

    def _accumulate(self, batch: Batch, state: State, n_targets: float, n_pairs: float) -> tuple[Tensor, State]:
        """Add the gradient of this micro-batch's share of the loss; return that share and the state after it."""
        nll, hidden, dropped, state = self._forward(batch.inputs, batch.targets, state)
        part = loss.share(nll, hidden, dropped, batch.mask, n_targets, n_pairs, self.ar, self.tar)
        self.window.add(nll.detach(), batch.mask, batch.counts)
        self.trainer.fit_loop.epoch_loop.backward(part)
        if self.masters is not None:
            self.masters.collect()
        return part.detach(), state

    def _no_sync(self):
        wrapped = self.trainer.strategy.model
        return wrapped.no_sync() if hasattr(wrapped, "no_sync") else nullcontext()

    # What is seen of training

    def _watch_for_nan(self, value: Tensor) -> None:
        """Note the first step whose value is not finite. A GPU is not asked before something is logged or saved."""
        if self.device.type == "cpu" and self.trainer.world_size == 1:
            if not math.isfinite(value.item()):
                self._broken.fill_(self.step + 1)
                self.check_finite()
            return
        first = (self._broken == 0) & ~torch.isfinite(value.detach())
        self._broken = torch.where(first, self.step + 1, self._broken)

    def check_finite(self) -> None:
        """Raises NotFinite, on all ranks alike, where the loss or its gradient has not been finite."""
        if steps := [step for step in self._gather(self._broken).tolist() if step]:
            raise NotFinite(
                f"the loss or its gradient is no longer finite at step {min(steps)}: try a lower optimizer.lr, more "
                "schedule.warmup or a smaller training.clip_norm"
            )

    def _log_training(self, norm: Tensor, ratio: Tensor) -> None:
        self.check_finite()
        likelihood = self.window.likelihood()
        self.window.reset()
        if self.first_loss is None:
            self.first_loss = likelihood.nll
        waited = self.trainer.train_dataloader.take_waited()
        now = self.watch.seconds
        spent, self._logged_at = now - self._logged_at, now
        self.latest = {
            "train/loss": likelihood.nll,
            "train/ppl": likelihood.ppl,
            "train/bpb": likelihood.bpb,
            "optim/lr": self.optimizers().param_groups[0]["lr"],
            "optim/grad_norm": float(norm),
            "optim/update_ratio": float(ratio),
            "perf/tokens_per_s": likelihood.tokens / spent if spent else 0.0,
            "progress/epoch": self.trainer.datamodule.batching.progress(self.step),
            "progress/tokens": float(self.tokens),
        }
        for meter in (c for c in self.trainer.callbacks if isinstance(c, Performance)):
            self.latest |= meter.take(likelihood.tokens, spent, waited)
        self.write(self.latest)

    def write(self, metrics: dict[str, float]) -> None:
        """Send metrics to the run's own curve and to the loggers, at our step."""
        if self.curves is not None:
            self.curves.append(self.step, self.tokens, self.watch.seconds, metrics)
        for logger in self.loggers:
            logger.log_metrics(metrics, step=self.step)

    # Validation

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        if batch_idx == 0:
            self.validation_state = None
        nll, self.validation_state = score_batch(self.model, batch, self.validation_state, self.evaluation_precision)
        self.validations[VALIDATIONS[dataloader_idx]].update(charged(nll, batch), batch.mask, batch.counts)

    def measured_weights(self) -> AbstractContextManager:
        """Within, the model has an averaging optimizer's averages, as validation has after a callback's."""
        averaged = getattr(self.trainer.optimizers[0], "averaged", None)
        return averaged() if averaged else nullcontext()

    def on_validation_start(self) -> None:
        self.check_finite()
        if self.device.type == "cuda":
            # Else the last steps' work would count as validation's.
            torch.cuda.synchronize()
        self.watch.stop()

    def on_validation_epoch_start(self) -> None:
        self._swap = self.measured_weights()
        self._swap.__enter__()

    def on_validation_epoch_end(self) -> None:
        self._swap.__exit__(None, None, None)
        val, fixed = (self.validations[name].likelihood() for name in VALIDATIONS)
        for metric in self.validations.values():
            metric.reset()
        self.validation_state = None
        if not math.isfinite(val.nll):
            raise NotFinite(
                f"the validation loss is {val.nll} after step {self.step}: try a lower optimizer.lr or more "
                "schedule.warmup"
            )
        metrics = {"val/loss": val.nll, "val/ppl": val.ppl, "val/bpb": val.bpb}
        if fixed.tokens:
            metrics |= {"train/eval_loss": fixed.nll, "val/gap": val.nll - fixed.nll}
        self.history.append({"step": self.step, "tokens": self.tokens, **metrics})
        # Summed over ranks already; Lightning asks all the same.
        self.log_dict(metrics, logger=False, sync_dist=self.trainer.world_size > 1)
        self.write(metrics)
        self.schedule.observe(metrics[self.monitor])
        if hasattr(optimizer := self.trainer.optimizers[0], "observe"):
            optimizer.observe(metrics[self.monitor])

    def on_validation_end(self) -> None:
        # After the callbacks': saving and sampling are no training either.
        self.watch.start()

    # Beginning, saving and resuming: Lightning's own loop counters are set, not restored.

    def on_train_start(self) -> None:
        self._broken = self._broken.to(self.device)
        self._trained = [p for p in self.model.parameters() if p.requires_grad]
        self.masters = MasterWeights(self.model) if self.halved else None
        self.spikes = next((c for c in self.trainer.callbacks if isinstance(c, Spikes)), None)
        self.watch.start()

    def on_train_end(self) -> None:
        self.watch.stop()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Called on all ranks: rows of carried state are gathered in the order of the global batch."""
        checkpoint["lmlab"] = {
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.watch.seconds,
            "since_logged": self.watch.seconds - self._logged_at,
            "total_steps": self.total_steps,
            "state": map_state(lambda t: self._gather(t).flatten(0, 1).cpu(), self.state),
            "schedule": self.schedule.state_dict(),
            "window": {k: self._gather(v).sum(0).cpu() for k, v in self.window.metric_state.items()},
            "history": list(self.history),
            # Whether the last of these was not due.
            "in_passing": False,
            "first_loss": self.first_loss,
            "spikes": list(self.spikes_met),
            "horizons": list(self.horizons),
        }

    def _gather(self, value: Tensor) -> Tensor:
        """(ranks, *value.shape)"""
        if self.trainer.world_size == 1:
            return value[None]
        parts = [torch.empty_like(value) for _ in range(self.trainer.world_size)]
        torch.distributed.all_gather(parts, value.contiguous())
        return torch.stack(parts)

    def load_progress(self, checkpoint: dict[str, Any]) -> None:
        """How far a checkpoint of `last.ckpt`'s kind has come: all of ours but the weights."""
        ours = checkpoint["lmlab"]
        self.step, self.tokens, self.watch.seconds = ours["step"], ours["tokens"], ours["seconds"]
        self.history, self.first_loss = list(ours["history"]), ours["first_loss"]
        # A checkpoint of an older version has none.
        self.spikes_met, self.horizons = list(ours.get("spikes", ())), list(ours.get("horizons", ()))
        self.schedule.load_state_dict(ours["schedule"])

    def load_carried(self, checkpoint: dict[str, Any]) -> None:
        """This rank's rows of the carried state, and the sums and seconds since training was last logged.

        Rank 0 has the sums of all.
        """
        ours, rank, ranks = checkpoint["lmlab"], self.global_rank, self.trainer.world_size
        self.state = map_state(lambda t: t.chunk(ranks)[rank].to(self.device), ours["state"])
        # A checkpoint of an older version has no seconds.
        self._logged_at = self.watch.seconds - ours.get("since_logged", 0.0)
        if rank == 0:
            for name, value in ours["window"].items():
                # Sums in float64 lie on the processor where the device has none.
                setattr(self.window, name, value.to(getattr(self.window, name).device))
        # Set by hand, an updated value must look updated to torchmetrics.
        self.window._update_count = 1
