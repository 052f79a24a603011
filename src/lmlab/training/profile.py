"""profile=true: what a few steps do, operator by operator, for a browser, for TensorBoard and as a plain table."""

import logging
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.profiler import ProfilerActivity, profile, supported_activities

from lmlab.training.callbacks import as_markdown, boards

log = logging.getLogger("lmlab")

# Steps that are profiled, after so many that warm up caches, allocators and compilation.
STEPS, WARM_UP = 5, 10
ROWS = 30


class Profile(Callback):
    """Writes `steps_A-B.pt.trace.json` and `operators.txt` into the directory.

    The trace opens at ui.perfetto.dev and chrome://tracing; its name is the one that TensorBoard's profiler plugin
    looks for. Starting and writing do not count as training; the profiled steps do, though they are a little slower.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self.profiler: profile | None = None
        self.paused = self.done = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Of a short run the last steps.
        self.first = max(pl_module.step, min(pl_module.step + WARM_UP, pl_module.total_steps - STEPS))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self.paused:
            self._collect(True)
        if pl_module.step != self.first or self.done or not trainer.is_global_zero:
            return
        pl_module.watch.stop()
        # The profiler asks for the compiler, whose parts import each other: deferred, it has to be whole before.
        _ = torch._dynamo.config
        self.profiler = profile(activities=supported_activities(), record_shapes=True)
        self.profiler.start()
        pl_module.watch.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self.profiler is not None and pl_module.step >= self.first + STEPS:
            self.write(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A validation and its samples are hundreds of steps, and none of training.
        if self.profiler is not None:
            self._collect(False)

    def _collect(self, wanted: bool) -> None:
        if self.profiler is not None:
            self.profiler.toggle_collection_dynamic(wanted, supported_activities())
        self.paused = not wanted

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.profiler is not None:
            self.write(trainer, pl_module)

    def write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        running = pl_module.watch.running
        pl_module.watch.stop()
        profiler, self.profiler, self.done = self.profiler, None, True
        profiler.stop()
        self.directory.mkdir(exist_ok=True)
        trace = self.directory / f"steps_{self.first + 1}-{pl_module.step}.pt.trace.json"
        for path in (trace, self.directory / "operators.txt"):
            # A link there would be written through.
            path.unlink(missing_ok=True)
        profiler.export_chrome_trace(str(trace))
        on_gpu = ProfilerActivity.CUDA in supported_activities()
        by = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=by, row_limit=ROWS, max_name_column_width=60)
        (self.directory / "operators.txt").write_text(table + "\n", encoding="utf-8")
        for board in boards(trainer):
            board.add_text("profile", as_markdown(table), pl_module.step)
        log.info("profile of steps %d to %d: %s", self.first + 1, pl_module.step, self.directory / "operators.txt")
        log.info("  and %s, for ui.perfetto.dev or chrome://tracing", trace)
        if running:
            pl_module.watch.start()
