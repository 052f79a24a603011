"""Checkpoints: `last.ckpt` to continue from, `best.ckpt` to use. Tensors and plain data only."""

import errno
import os
import pickle
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from lmlab.errors import NotFinite, full_disk

# Raised when the layout of a checkpoint changes.
FORMAT = 1


def read(path: Path) -> dict[str, Any]:
    """A checkpoint, as tensors and plain data. Raises FileNotFoundError, or ValueError where it is damaged."""
    require(path)
    remedy = "delete it, and the same lmlab train starts this run again from step 0 (a finished one: name another)"
    if path.name == "best.ckpt":
        remedy = "take checkpoint=last, or train anew under another run_dir"
    try:
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                # Kilobytes may unfold to what no memory holds.
                raise zipfile.BadZipFile("it is compressed, as torch writes none")
            # torch reads weights without looking at their checksums.
            if (part := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"the checksum of {part} is wrong")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is damaged, or holds something other than tensors and plain data, and is not loaded; {remedy}"
        ) from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is damaged or truncated ({why}); {remedy}") from error
    found = checkpoint.get("lmlab_format") if isinstance(checkpoint, dict) else None
    if found != FORMAT:
        raise ValueError(f"{path} has checkpoint format {found}, this version reads {FORMAT}; {remedy}")
    return checkpoint


def require(path: Path) -> Path:
    """The checkpoint's path. Raises FileNotFoundError, with what to do, where there is none."""
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; {_instead(path)}")
    return path


def _instead(path: Path) -> str:
    """What to do about a checkpoint that is not there."""
    run_dir = path.parent.parent
    other = path.with_name("last.ckpt" if path.name == "best.ckpt" else "best.ckpt")
    if other.exists():
        return f"take checkpoint={other.stem}"
    if (run_dir / "results.json").exists():
        return "it was removed after the run had finished; train the same again under another run_dir"
    return f"train the run first: lmlab train run_dir={run_dir}"


def write(checkpoint: dict[str, Any], path: Path) -> None:
    """Whole or not at all: written beside and renamed. Raises OSError(ENOSPC) where the disk is full."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    # One that lies there may be a stranger's link: it is not written through.
    beside.unlink(missing_ok=True)
    try:
        with _open(beside) as file:
            torch.save(checkpoint | {"lmlab_format": FORMAT}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except Exception as error:
        if full_disk(error) is not None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise
    finally:
        beside.unlink(missing_ok=True)


def _open(path: Path) -> Any:
    return path.open("xb")


def weights(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The model's own state dict out of a training checkpoint."""
    return {k.removeprefix("model."): v for k, v in checkpoint["state_dict"].items() if k.startswith("model.")}


def agree(trainer: Trainer, pl_module: LightningModule, wanted: bool) -> bool:
    """Whether some rank wants it: clocks and signals differ, and what one rank does alone, the others wait for.

    Asked together every `log_every` steps; asking costs.
    """
    if trainer.world_size == 1:
        return wanted
    return pl_module.step % pl_module.log_every == 0 and trainer.strategy.reduce_boolean_decision(wanted, all=False)


def put_back(trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
    """The optimizer's state, and what callbacks keep in a checkpoint, after the module has loaded its `state_dict`."""
    optimizer = trainer.optimizers[0]
    initial = [group["initial_lr"] for group in optimizer.param_groups]
    optimizer.load_state_dict(checkpoint["optimizer_states"][0])
    for group, lr in zip(optimizer.param_groups, initial, strict=True):
        group["initial_lr"] = lr
    for callback in trainer.callbacks:
        # Averaging has put the averages where the weights were, and knows where those are.
        callback.on_load_checkpoint(trainer, pl_module, checkpoint)


class Resume(Callback):
    """Puts back what a checkpoint holds. The first of all callbacks, so that the others begin with their own state."""

    def __init__(self, checkpoint: dict[str, Any]):
        self.checkpoint: dict[str, Any] | None = checkpoint

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        checkpoint, self.checkpoint = self.checkpoint, None
        self.in_passing = checkpoint["lmlab"]["in_passing"]
        pl_module.load_carried(checkpoint)
        put_back(trainer, pl_module, checkpoint)
        for callback in trainer.callbacks:
            if callback.state_key in checkpoint["callbacks"]:
                callback.load_state_dict(checkpoint["callbacks"][callback.state_key])
            if isinstance(callback, EarlyStopping) and stopped_early(callback):
                if pl_module.total_steps == checkpoint["lmlab"]["total_steps"]:
                    # Killed after it had stopped: there is nothing left to train.
                    trainer.should_stop = True
                else:
                    # Patience starts anew, else the first validation would end the run again.
                    callback.stopping_reason, callback.wait_count = EarlyStoppingReason.NOT_STOPPED, 0
        self._count_steps(trainer, pl_module.step)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.in_passing:
            # There is more to train after all: the validation that was not due never was.
            pl_module.history.pop()

    @staticmethod
    def _count_steps(trainer: Trainer, step: int) -> None:
        """Lightning's own counters, as if it had taken the steps."""
        epoch = trainer.fit_loop.epoch_loop
        epoch._batches_that_stepped = step
        epoch.manual_optimization.optim_step_progress.total.ready = step
        epoch.manual_optimization.optim_step_progress.total.completed = step
        for name in ("ready", "started", "processed", "completed"):
            setattr(epoch.batch_progress.total, name, step)


def stopped_early(callback: EarlyStopping) -> bool:
    """Its count of epochs says nothing here: a run is one epoch of Lightning's."""
    return callback.stopping_reason is not EarlyStoppingReason.NOT_STOPPED


class Checkpoints(Callback):
    """Saves `last.ckpt` after every validation (and every so many steps or minutes), `best.ckpt` when `monitor` falls.

    Never between a step and the validation that is due after it: whoever resumes would miss that validation. One that
    is not due, where training was told to stop, may find a better `best.ckpt`, but is otherwise forgotten by whoever
    resumes: the run goes on as if it had never been stopped. The last of all callbacks: it saves what others decided.
    """

    def __init__(self, dirpath: Path, monitor: str, every_n_steps: int | None, every_minutes: float | None):
        self.dirpath, self.monitor = Path(dirpath), monitor
        self.every_n_steps, self.every_minutes = every_n_steps, every_minutes
        self.best: float | None = None
        self.best_step: int | None = None
        self._saved_at = time.monotonic()
        self._before: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if (self.dirpath / "best.ckpt").exists():
            self.best, self.best_step = state_dict["best"], state_dict["best_step"]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        step = pl_module.step
        if trainer.should_stop or due(trainer, step):
            return
        by_step = self.every_n_steps and step % self.every_n_steps == 0
        by_time = bool(self.every_minutes) and time.monotonic() - self._saved_at > 60 * self.every_minutes
        if (self.every_minutes and agree(trainer, pl_module, by_time)) or by_step:
            self.save_last(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._before = None if due(trainer, pl_module.step) else self.save_last(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        value = pl_module.history[-1][self.monitor]
        better = self.best is None or value < self.best
        if better:
            self.best, self.best_step = value, pl_module.step
            self._save_best(trainer, pl_module)
        if self._before is None:
            self.save_last(trainer, pl_module)
        else:
            self._before["callbacks"][self.state_key] = self.state_dict()
            self._before["lmlab"] |= {"history": list(pl_module.history), "in_passing": True}
            self._write(trainer, self._before, "last.ckpt")
        self._before = None

    def save_last(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Everything that continuing needs. Raises NotFinite rather than replace good weights by bad ones."""
        running = pl_module.watch.running
        pl_module.watch.stop()
        pl_module.check_finite()
        if not all(bool(torch.isfinite(p).all()) for p in pl_module.parameters()):
            raise NotFinite(
                f"the weights are no longer finite after step {pl_module.step}: try a lower optimizer.lr, or "
                "training.clip_norm=1.0"
            )
        for logger in trainer.loggers:
            # First: a curve that lacked what lies before the checkpoint would never be filled.
            logger.save()
        checkpoint = trainer._checkpoint_connector.dump_checkpoint()
        self._write(trainer, checkpoint, "last.ckpt")
        self._saved_at = time.monotonic()
        if running:
            pl_module.watch.start()
        return checkpoint

    def _save_best(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The weights that were just measured: averaged ones where training averages."""
        with pl_module.measured_weights():
            metrics = pl_module.history[-1]
            checkpoint = {"state_dict": pl_module.state_dict(), "step": pl_module.step, "metrics": metrics}
            for callback in trainer.callbacks:
                if callback is not self:
                    callback.on_save_checkpoint(trainer, pl_module, checkpoint)
            kept = {k: checkpoint[k] for k in ("state_dict", "step", "metrics")}
            # Within: a state dict shows the weights as they are, and they are about to be exchanged.
            self._write(trainer, kept, "best.ckpt")

    def _write(self, trainer: Trainer, checkpoint: dict[str, Any], name: str) -> None:
        if trainer.is_global_zero:
            write(checkpoint, self.dirpath / name)


def due(trainer: Trainer, step: int) -> bool:
    """Whether a regular validation follows this step."""
    return step % trainer.val_check_batch == 0
