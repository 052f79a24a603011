"""Where a step's time goes and how much of the machine it uses: perf/* on the board, `performance` in results.json."""

import time
from collections import Counter
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from lmlab.config import cache_dir
from lmlab.decisions import estimated_seconds
from lmlab.hardware import Energy, Machine, forget_peak, peak_memory
from lmlab.sizes import flops_per_token
from lmlab.training.plan import Plan
from lmlab.training.progress import Stopwatch

# Runs that are longer are worth two seconds for a peak that others can be measured against.
THOROUGH_FROM = 300.0


def build(plan: Plan) -> "Performance":
    """The meter of this run, with its device's measured peak in the precision that it trains in."""
    decided, batching = plan.decided, plan.batching
    flops = flops_per_token(plan.model, batching.seq_len)
    precision = "bf16" if decided["precision"].startswith("bf16") else "fp32"
    machine = Machine(decided["device"], cache_dir(plan.config.cache_dir))
    # None where the format is emulated: then nobody has measured it.
    peak = machine.products().get(precision)
    if peak and estimated_seconds(flops * batching.tokens_per_step * plan.total_steps, peak) > THOROUGH_FROM:
        peak = machine.products(thorough=True)[precision]
    return Performance(flops, peak, precision, decided["device"], decided["devices"])


class Performance(Callback):
    """Model FLOPs utilisation (flops_per_token times tokens a second, over the measured peak of all devices), and the
    shares of training's time spent in data, forward, backward and optimizer, clipping included.

    Times are taken where Lightning calls its callbacks. On a GPU they come from events in its own queue, which are
    read when training is logged, without waiting for those that have not been reached yet.
    """

    def __init__(self, flops_per_token: int, peak: float | None, precision: str, device: str, devices: int):
        self.flops_per_token, self.peak, self.precision = flops_per_token, peak, precision
        self.device, self.devices = device, devices
        self.phases: Counter[str] = Counter()
        self.totals: Counter[str] = Counter()
        self.energy = Energy(device)
        self._marked: list[tuple[str, Any, Any]] = []
        self._last: Any = None
        self.validating = Stopwatch()

    def take(self, tokens: int, spent: float, waited: float) -> dict[str, float]:
        """perf/* of what was trained since the last call: tokens in `spent` seconds, `waited` of them for data.

        Memory is the most that was held, and energy all that was used, since training began in this process.
        """
        self._collect()
        window, self.phases = self.phases, Counter()
        window["data"] = waited
        self.totals.update({**window, "spent": spent, "tokens": tokens})
        self.energy.read()
        if not spent:
            return {}
        shares = {f"perf/{name}_share": window[name] / spent for name in ("data", "forward", "backward", "optimizer")}
        told = shares | {"perf/memory_gb": peak_memory(self.device) / 1e9}
        if (mfu := self.mfu(tokens / spent)) is not None:
            told["perf/mfu"] = mfu
        if (used := self.energy.joules) is not None:
            told["perf/energy_j"] = sum(used.values())
        return told

    def mfu(self, tokens_per_s: float) -> float | None:
        return self.flops_per_token * tokens_per_s / (self.peak * self.devices) if self.peak else None

    def summary(self) -> dict[str, Any]:
        """Of what this process has trained; a run that was continued began in another."""
        spent = self.totals["spent"]
        mfu = self.mfu(self.totals["tokens"] / spent) if spent else None
        shares = ("data", "forward", "backward", "optimizer")
        return {
            "mfu": None if mfu is None else round(mfu, 4),
            "flops_per_token": self.flops_per_token,
            "peak_flops": self.peak and round(self.peak),
            "peak_precision": self.precision,
            "shares": {name: round(self.totals[name] / spent, 4) for name in shares} if spent else None,
            "peak_memory_gb": round(peak_memory(self.device) / 1e9, 3),
            "energy_joules": self.energy.joules,
            "validation_seconds": round(self.validating.seconds, 3),
        }

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # What came before was another run's, or measured the machine.
        forget_peak(self.device)
        self.energy.read()
        self._handles = [o.register_step_post_hook(lambda *_: self._mark("optimizer")) for o in trainer.optimizers]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._last = self._now()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Any) -> None:
        self._mark("forward")

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._mark("backward")

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validating.start()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validating.stop()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.energy.read()
        for handle in self._handles:
            handle.remove()

    def _now(self) -> Any:
        if self.device != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _mark(self, phase: str) -> None:
        """What has been done since the last mark was this phase."""
        now = self._now()
        if self.device == "cuda":
            self._marked.append((phase, self._last, now))
        else:
            self.phases[phase] += now - self._last
        self._last = now

    def _collect(self) -> None:
        """The times between the GPU's events, as far as it has come."""
        waiting = []
        for phase, start, end in self._marked:
            if end.query():
                self.phases[phase] += start.elapsed_time(end) / 1000
            else:
                waiting.append((phase, start, end))
        self._marked = waiting
