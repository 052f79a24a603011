"""Averages of the weights over training's steps: Lightning's callback keeps, validates and stores them."""

from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, WeightAveraging
from torch import Tensor


class ExponentialMovingAverage(WeightAveraging):
    """After n updates the average keeps min(decay, (1 + n) / (10 + n)) of itself, and the weights make up the rest.

    Without the second term (TensorFlow's, timm's) the average of a run of 400 steps would still be two thirds of the
    first step's weights at decay=0.999.

    update_starting_at_step: None: from the first step on. use_buffers, device: see Lightning's WeightAveraging.
    """

    def __init__(
        self,
        decay: float,
        update_every_n_steps: int = 1,
        update_starting_at_step: int | None = None,
        use_buffers: bool = False,
        device: torch.device | str | None = None,
    ):
        if not 0 <= decay < 1:
            raise ValueError(f"callbacks.averaging.decay={decay} must be at least 0 and below 1")
        if update_every_n_steps < 1:
            raise ValueError(f"callbacks.averaging.update_every_n_steps={update_every_n_steps} must be at least 1")
        super().__init__(device=device, use_buffers=use_buffers, multi_avg_fn=self._average)
        self.decay, self.every, self.start = decay, update_every_n_steps, update_starting_at_step or 0
        self.step = 0

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        if step_idx is None or step_idx < self.start or step_idx % self.every:
            return False
        self.step = step_idx
        return True

    def kept(self) -> float:
        """Of the average, at this step's update. By the step, so that a resumed run repeats an uninterrupted one."""
        n = (self.step - self.start) // self.every
        return min(self.decay, (1 + n) / (10 + n))

    @torch.no_grad()
    def _average(self, averages: list[Tensor], weights: list[Tensor], n_averaged: Any) -> None:
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, weights, 1 - self.kept())
        else:
            # Counts and places, with use_buffers: what lies between two of them is none.
            torch._foreach_copy_(averages, weights)


class UntilAveraged(Callback):
    """Until averaging has begun, the weights stand for their average, for which Lightning has those of the start.

    Before the callback that averages: validation, best.ckpt and last.ckpt have what that one takes for the average.
    """

    def __init__(self, averaging: WeightAveraging):
        self.averaging = averaging

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._follow(pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._follow(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._follow(pl_module)

    @torch.no_grad()
    def _follow(self, pl_module: LightningModule) -> None:
        average = self.averaging._average_model
        # What is there is replaced by the first weights that are averaged.
        if average is None or average.n_averaged > 0:
            return
        for kept, now in zip(average.module.parameters(), pl_module.parameters(), strict=True):
            kept.copy_(now)
