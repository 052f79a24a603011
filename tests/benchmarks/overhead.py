"""What everything around the model costs: our step beside a bare loop with the same model, optimizer and batches."""

import copy
import json
import os
import pty
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import nn

from lmlab.training import optim
from lmlab.training.progress import Progress
from lmlab.training.updates import total_norm
from lmlab.types import Batch

from .harness import Case, Measure, Row, Sample, Settings
from .process import isolated
from .starting import TEXT

# Steps of ours, then as many bare ones; as often as our loss is logged.
SEGMENT = 10
# Name: model and batch, and steps of one run.
SIZES = {
    "tiny model": (["model.d_model=32", "model.n_layers=1", "model.n_heads=1", "batching.batch_size=4",
                    "batching.seq_len=32", "model=transformer"], 600),
    "step of about 30 ms": (["model=gpt2", "model.bias=false", "model.d_model=128", "model.n_layers=4",
                             "model.n_heads=4", "model.max_context=64", "model.dropout=0.0", "batching.batch_size=12",
                             "batching.seq_len=64"], 200),
}  # fmt: skip


class Beside(Callback):
    """In a run as users have it: after every SEGMENT steps of ours the same batches go through a bare PyTorch loop.

    A step of ours lasts from the end of the one before to its own: batches, Lightning, logging and the progress bar are
    in it. The bare loop is given its batches, so that all of our data handling counts as ours.
    """

    def __init__(self, path: str):
        self.path = Path(path)
        self.told: dict[str, list[float]] = {"ours": [], "bare": [], "loss": [], "bare_loss": []}
        self.bar = False
        self.pending: list[Batch] = []
        self.began = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.bare = copy.deepcopy(pl_module.model).train()
        self.optimizer = optim.build(pl_module.make_optimizer, pl_module.decay, self.bare)
        self.step = 0
        self.began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, i: int
    ) -> None:
        self.told["ours"].append(time.perf_counter() - self.began)
        self.bar = any(isinstance(c, Progress) and c.bar is not None for c in trainer.callbacks)
        self.pending.append(batch)
        if len(self.pending) == SEGMENT:
            losses = [self.bare_step(batch, pl_module) for batch in self.pending]
            # Ours is the mean since it was last logged; the very first step is logged alone.
            if not self.told["loss"]:
                losses.pop(0)
            self.told["loss"].append(pl_module.latest["train/loss"])
            self.told["bare_loss"].append(float(torch.stack(losses).mean()))
            self.pending.clear()
        self.began = time.perf_counter()

    def bare_step(self, batch: Batch, pl_module: LightningModule) -> torch.Tensor:
        began = time.perf_counter()
        factor = pl_module.schedule.factor(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        hidden, _ = self.bare(batch.inputs, None)
        loss = self.bare.head.nll(hidden, batch.targets).mean()
        loss.backward()
        # torch's own norm differs by rounding: enough for other losses after a dozen steps.
        parameters = list(self.bare.parameters())
        norm = total_norm([p.grad for p in parameters])
        nn.utils.clip_grads_with_norm_(parameters, pl_module.clip_norm, norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.told["bare"].append(time.perf_counter() - began)
        return loss.detach()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.path.write_text(json.dumps(self.told | {"bar": self.bar}))


@contextmanager
def terminal() -> Iterator[None]:
    """Within, what this process writes to stderr goes to a terminal that nobody looks at; behind a pipe is no bar."""
    ours, theirs = pty.openpty()
    before = os.dup(2)
    os.dup2(theirs, 2)
    os.close(theirs)
    reader = threading.Thread(target=_read, args=(ours,), daemon=True)
    reader.start()
    try:
        yield
    finally:
        # Its last open end, and the reader comes to its own; unless a process that was started within goes on.
        os.dup2(before, 2)
        os.close(before)
        reader.join(1.0)
        if not reader.is_alive():
            os.close(ours)


def _read(terminal: int) -> None:
    # Linux tells the end by an error.
    with suppress(OSError):
        while os.read(terminal, 1 << 16):
            pass


def beside(overrides: list[str], path: str) -> dict[str, Any]:
    """One run in this process, as `lmlab train` makes it; Beside's record."""
    import lmlab

    node = f"+callbacks.beside={{_target_: tests.benchmarks.overhead.Beside, path: '{path}'}}"
    with terminal():
        lmlab.train(lmlab.compose([*overrides, node]))
    return json.loads(Path(path).read_text())


def cases(settings: Settings) -> Iterator[Case]:
    with settings.temporary() as folder:
        (Path(folder) / "text.txt").write_text(TEXT * (1 if settings.quick else 30))
        for name, (shape, steps) in SIZES.items():
            yield _case(name, shape, 4 * SEGMENT if settings.quick else steps, Path(folder))


def _case(name: str, shape: list[str], steps: int, folder: Path) -> Case:
    overrides = ["corpus=files", f"corpus.train={folder}/text.txt", "corpus.split_by=share", "tokenizer=byte", *shape]
    # One check, at the end: how often to validate is no matter of a step's cost.
    overrides += ["optimizer=adamw", "precision=32", "compile=false", "floors=false", f"trainer.max_steps={steps}"]
    overrides += [f"trainer.val_check_interval={steps}", "callbacks.samples=null", f"cache_dir={folder}/cache"]
    overrides += ["trainer=cpu"]
    small = "tiny" in name
    measures = (
        Measure("a step", "ms"),
        Measure("added a step", "ms", at_most=0.5),
        *(() if small else (Measure("added", "%", at_most=3.0),)),
    )

    def both() -> tuple[Sample, Sample]:
        run_dir = folder / f"run{len(list(folder.glob('run*')))}"
        told = isolated(beside, overrides=[*overrides, f"run_dir={run_dir}"], path=str(folder / "beside.json"))
        assert told["bar"], "the progress bar was not shown: users have it"
        # The first two segments warm up. Neighbouring segments are compared: a machine's speed drifts. Their means:
        # one step in SEGMENT logs, which a median within the segment would leave out.
        starts = range(2 * SEGMENT, steps, SEGMENT)
        ours, bare = ([fmean(told[side][i : i + SEGMENT]) for i in starts] for side in ("ours", "bare"))
        added = 1e3 * median(a - b for a, b in zip(ours, bare, strict=True))
        ours, bare = median(ours), median(bare)
        values = {"a step": 1e3 * ours, "added a step": added, "added": added / (10 * bare)}
        return (
            Sample(values, {"loss": told["loss"], "steps": len(told["ours"])}),
            Sample({"a step": 1e3 * bare}, {"loss": told["bare_loss"], "steps": len(told["bare"])}),
        )

    return Case(name, measures, "lmlab train: TensorBoard, progress, clipping, checkpoints",
                peer_is="bare loop, given its batches", both=both, same=same)  # fmt: skip


def same(ours: dict, peer: dict) -> None:
    assert ours["steps"] == peer["steps"]
    for a, b in zip(ours["loss"], peer["loss"], strict=True):
        assert abs(a - b) < 1e-4, (ours["loss"], peer["loss"])


ROWS = (Row("overhead", "everything around the model", cases),)
