"""A callback that any run takes (`process.clocked`): when its steps and validations ended."""

import json
import time
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from .process import own_peak_mb


class Clock(Callback):
    """Writes to `path` when training ends: stamps of `time.time()`, losses as logged, peak memory at the last step."""

    def __init__(self, path: str):
        self.path = Path(path)
        self.told: dict[str, Any] = {"steps": [], "losses": [], "validations": []}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.told["began_training"] = time.time()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:
        self.told["steps"].append(time.time())
        # Of the steps since it was last logged: training.log_every=1 makes it each step's own.
        self.told["losses"].append(pl_module.latest.get("train/loss"))
        if pl_module.step >= pl_module.total_steps:
            self.told["peak_mb"] = own_peak_mb()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.told["validations"].append({"at": time.time(), "loss": pl_module.history[-1]["val/loss"]})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.path.write_text(json.dumps(self.told))
