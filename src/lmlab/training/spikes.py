"""Loss spikes: a step out of all proportion to those before it is left out, or what led to it is taken back."""

import logging
import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils._pytree import tree_map_only

from lmlab.errors import NotFinite
from lmlab.training.checkpoints import due, put_back
from lmlab.types import State

log = logging.getLogger("lmlab")


class Spikes(Callback):
    """Judges every step before its update. Subclasses say what is done about a spike.

    A spike is a loss, or a norm of the gradient before clipping, that is not finite, or more than `deviations`
    standard deviations above its mean over the last `window` steps, of which half must be there (OLMo-core,
    SkipStepOptimizer). A finite spike enters the window as the bound that it passed: a new level becomes the usual
    one, and no spike hides the next. Batches are never read twice, and steps count whether they changed anything or
    not: a run's length, its schedule and its batches do not depend on spikes. most: bound on spikes, after which
    training fails.
    """

    def __init__(self, window: int, deviations: float, most: int):
        for key, value, least in (("window", window, 2), ("deviations", deviations, 0), ("most", most, 1)):
            if value < least:
                raise ValueError(f"callbacks.spikes.{key}={value} must be at least {least}")
        self.deviations, self.most = deviations, most
        # (loss, norm) of each step.
        self.window: deque[tuple[float, float]] = deque(maxlen=window)

    def state_dict(self) -> dict[str, Any]:
        return {"window": list(self.window)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.window.extend(map(tuple, state_dict["window"]))

    def before(self, module: LightningModule) -> tuple[State, dict[str, Tensor]]:
        """What a step changes besides the weights, as it is before it: carried state, and the logged sums."""
        return module.state, {k: v.clone() for k, v in module.window.metric_state.items()}

    def allows(
        self, module: LightningModule, loss: Tensor, norm: Tensor, before: tuple[State, dict[str, Tensor]]
    ) -> bool:
        """Whether the step may update the weights. Of one that may not, nothing remains.

        loss, norm: scalars, this rank's. Raises NotFinite after too many spikes.
        """
        why = self.judge(*module._gather(torch.stack((loss, norm)).detach()).mean(0).tolist())
        if why is None:
            return True
        if self.too_many([spike["step"] for spike in module.spikes_met], module.step + 1):
            raise NotFinite(
                f"{why} at step {module.step + 1}, one spike more than callbacks.spikes.most={self.most}: try a lower "
                "optimizer.lr, more schedule.warmup or a smaller training.clip_norm"
            )
        module.state, sums = before
        for name, value in sums.items():
            getattr(module.window, name).copy_(value)
        done = self.answer(module)
        module.spikes_met.append({"step": module.step + 1, "why": why, "done": done})
        log.warning("step %d: %s; %s", module.step + 1, why, done)
        return False

    def judge(self, loss: float, norm: float) -> str | None:
        """Why a step is a spike; None where it is none. It enters the window unless it is not finite."""
        if not math.isfinite(loss) or not math.isfinite(norm):
            return f"the {'gradient' if math.isfinite(loss) else 'loss'} is not finite"
        n = len(self.window)
        if n < max(2, self.window.maxlen // 2):
            self.window.append((loss, norm))
            return None
        why, entered, columns = None, [], zip(*self.window, strict=True)
        for name, value, usual in zip(("loss", "gradient's norm"), (loss, norm), columns, strict=True):
            mean = math.fsum(usual) / n
            deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in usual) / (n - 1))
            bound = mean + self.deviations * deviation
            if value > bound and why is None:
                why = f"the {name} is {value:.4g}, of the last {n} steps {mean:.4g} with a deviation of {deviation:.2g}"
            entered.append(min(value, bound))
        self.window.append(tuple(entered))
        return why

    def too_many(self, before: Sequence[int], step: int) -> bool:
        """Whether the spike of this step is one too many, after those of `before`."""
        raise NotImplementedError

    def answer(self, module: LightningModule) -> str:
        """Do something about a spike; return what was done."""
        raise NotImplementedError


class Skip(Spikes):
    """Drops the update; `most` spikes in a row."""

    def too_many(self, before: Sequence[int], step: int) -> bool:
        return list(before[-self.most :]) == list(range(step - self.most, step))

    def answer(self, module: LightningModule) -> str:
        return "its update is left out"


class Rollback(Spikes):
    """Goes back to weights, optimizer and averages of the last regular validation, or of the start; `most` in a run.

    The steps in between are given up, and training goes on with the batch after the spike, as PaLM's did (Chowdhery et
    al. 2022, section 5.1: some data together with some state of the weights makes a spike, neither does alone). Carried
    state begins anew. Regular validations alone are gone back to: what a clock or Ctrl-C saved would make the run
    depend on them. A checkpoint saved at another step holds the state of the last validation, too.
    """

    KEPT = ("state_dict", "optimizer_states", "current_model_state", "averaging_state")

    def __init__(self, window: int, deviations: float, most: int):
        super().__init__(window, deviations, most)
        self.step = 0
        self.kept: dict[str, Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.kept is None:
            # The start: nothing has been validated yet.
            trainer._checkpoint_connector.dump_checkpoint()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if "optimizer_states" not in checkpoint:
            # best.ckpt, which nobody continues.
            return
        if self.kept is None or due(trainer, pl_module.step):
            self._keep(checkpoint, pl_module.step)
        else:
            checkpoint["rollback"] = {"step": self.step, "kept": self.kept}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if "rollback" in checkpoint:
            self.step, self.kept = checkpoint["rollback"]["step"], checkpoint["rollback"]["kept"]
        elif "lmlab" in checkpoint:
            self._keep(checkpoint, checkpoint["lmlab"]["step"])

    def _keep(self, checkpoint: dict[str, Any], step: int) -> None:
        self.step, self.kept = step, _copy({k: checkpoint[k] for k in self.KEPT if k in checkpoint})

    def too_many(self, before: Sequence[int], step: int) -> bool:
        return len(before) >= self.most

    def answer(self, module: LightningModule) -> str:
        # A copy: the optimizer takes the tensors that it is given, and changes them.
        kept = _copy(self.kept)
        module.load_state_dict(kept["state_dict"])
        put_back(module.trainer, module, kept)
        module.state = None
        return f"weights and optimizer are again those after step {self.step}"


def _copy(tree: Any) -> Any:
    """In main memory, sharing nothing."""
    return tree_map_only(Tensor, lambda t: t.detach().to("cpu", copy=True), tree)
