"""How a run shows that it goes on: a bar with time left in a terminal, plain lines elsewhere, both in train.log."""

import logging
import math
import sys
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Timer

log = logging.getLogger("lmlab")


def clock(seconds: float) -> str:
    """12:05 or 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Stopwatch:
    """Seconds between start and stop, added up; can be read while it runs, and set to go on from."""

    def __init__(self):
        self._before, self._since = 0.0, None

    @property
    def running(self) -> bool:
        return self._since is not None

    @property
    def seconds(self) -> float:
        return self._before + (0.0 if self._since is None else time.perf_counter() - self._since)

    @seconds.setter
    def seconds(self, value: float) -> None:
        self._before = value
        self._since = None if self._since is None else time.perf_counter()

    def start(self) -> None:
        if self._since is None:
            self._since = time.perf_counter()

    def stop(self) -> None:
        self._before, self._since = self.seconds, None


# Seconds between two drawings of the bar: each takes some 5 ms, and steps may last two.
REFRESH = 0.5


class Progress(Callback):
    """Loss, perplexity, tokens a second and the time left, every `every_n_steps`, the bar not more often than every
    REFRESH seconds; lines ten times as seldom."""

    def __init__(self, every_n_steps: int):
        self.every_n_steps = every_n_steps
        self.drawn = -math.inf
        self.bar: Any = None
        self.task: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.began, self.first = time.perf_counter(), pl_module.step
        if trainer.is_global_zero and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            # The bar takes what the numbers leave of the line.
            columns = (BarColumn(bar_width=None), MofNCompleteColumn(), TextColumn("{task.fields[shown]}"))
            # Refreshed by us: a refreshing thread costs up to a millisecond a step on two cores.
            self.bar = Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True, expand=True)
            # It puts in sys.stderr's place what prints above the bar, for the log's lines, too.
            self.bar.start()
            self.task = self.bar.add_task("", total=pl_module.total_steps, completed=pl_module.step, shown="")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        step = pl_module.step
        if not trainer.is_global_zero or not pl_module.latest:
            return
        now = time.perf_counter()
        if self.bar is not None and step % self.every_n_steps == 0 and now - self.drawn >= REFRESH:
            self.drawn = now
            self.bar.update(self.task, completed=step, shown=self.describe(pl_module), refresh=True)
        if step % (10 * self.every_n_steps) == 0:
            # With a bar on the screen, the line goes to the file alone.
            log.log(logging.DEBUG if self.bar else logging.INFO, self.line(pl_module))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero or not pl_module.history:
            return
        last = pl_module.history[-1]
        gap = f"   gap {last['val/gap']:+.3f}" if "val/gap" in last else ""
        text = f"validation at step {pl_module.step}:   loss {last['val/loss']:.4f}   ppl {last['val/ppl']:.2f}"
        log.info(f"{text}   bpb {last['val/bpb']:.4f}{gap}")

    def describe(self, module: LightningModule) -> str:
        latest, done = module.latest, module.step - self.first
        left = (time.perf_counter() - self.began) / max(done, 1) * (module.total_steps - module.step)
        for callback in module.trainer.callbacks:
            if isinstance(callback, Timer):
                left = min(left, callback.time_remaining())
        speed = f"{latest['perf/tokens_per_s']:,.0f} tokens/s"
        speed += f" ({latest['perf/mfu']:.0%} MFU)" if "perf/mfu" in latest else ""
        return f"loss {latest['train/loss']:.3f}   ppl {latest['train/ppl']:,.1f}   {speed}   {clock(left)} left"

    def line(self, module: LightningModule) -> str:
        return f"step {module.step}/{module.total_steps}   {self.describe(module)}"

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.close()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
