"""Checkpoints: `last.ckpt` to continue from, `best.ckpt` to use. Tensors and plain data only."""

import os
import pickle
import time
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

# Raised when the layout of a checkpoint changes.
FORMAT = 1


def read(path: Path) -> dict[str, Any]:
    """A checkpoint, as tensors and plain data. Raises FileNotFoundError, or ValueError where it is damaged."""
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}; train the run first: lmlab train run_dir={path.parent.parent}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is damaged or truncated ({str(error).splitlines()[0]}); delete it: training continues from the "
            "other checkpoint or from the start"
        ) from error
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is damaged, or holds something other than tensors and plain data, and is not loaded"
        ) from error
    found = checkpoint.get("lmlab_format")
    if found != FORMAT:
        raise ValueError(f"{path} has checkpoint format {found}, this version reads {FORMAT}")
    return checkpoint


def write(checkpoint: dict[str, Any], path: Path) -> None:
    """Whole or not at all: written beside and renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    try:
        with beside.open("wb") as file:
            torch.save(checkpoint | {"lmlab_format": FORMAT}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def weights(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The model's own state dict out of a training checkpoint."""
    return {k.removeprefix("model."): v for k, v in checkpoint["state_dict"].items() if k.startswith("model.")}


class Checkpoints(Callback):
    """Saves `last.ckpt` after every validation (and every so many steps or minutes), `best.ckpt` when `monitor` falls.

    Never between a step and the validation that is due after it: whoever resumes would miss that validation.
    """

    def __init__(self, dirpath: Path, monitor: str, every_n_steps: int | None, every_minutes: float | None):
        self.dirpath, self.monitor = Path(dirpath), monitor
        self.every_n_steps, self.every_minutes = every_n_steps, every_minutes
        self.best: float | None = None
        self.best_step: int | None = None
        self._saved_at = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.best_step = state_dict["best"], state_dict["best_step"]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        step = pl_module.step
        if trainer.should_stop or step >= pl_module.total_steps or step % trainer.val_check_batch == 0:
            return
        by_step = self.every_n_steps and step % self.every_n_steps == 0
        by_time = self.every_minutes and time.monotonic() - self._saved_at > 60 * self.every_minutes
        if by_step or by_time:
            self.save_last(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not pl_module.history:
            return
        value = pl_module.history[-1][self.monitor]
        if self.best is None or value < self.best:
            self.best, self.best_step = value, pl_module.step
            self._save_best(trainer, pl_module)
        self.save_last(trainer, pl_module)

    def save_last(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Everything that continuing needs. A loss that is not finite is never saved over a good checkpoint."""
        if not bool(torch.isfinite(pl_module.window.nats)):
            return
        checkpoint = trainer._checkpoint_connector.dump_checkpoint()
        if trainer.is_global_zero:
            write(checkpoint, self.dirpath / "last.ckpt")
        self._saved_at = time.monotonic()

    def _save_best(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The weights that were just measured: averaged ones where training averages."""
        with pl_module.measured_weights():
            checkpoint = {"state_dict": pl_module.state_dict(), "step": pl_module.step, "metrics": pl_module.history[-1]}
            for callback in trainer.callbacks:
                if callback is not self:
                    callback.on_save_checkpoint(trainer, pl_module, checkpoint)
        kept = {k: checkpoint[k] for k in ("state_dict", "step", "metrics")}
        if trainer.is_global_zero:
            write(kept, self.dirpath / "best.ckpt")
