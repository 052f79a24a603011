"""Learning-rate schedules: the factor by which the optimizer's own learning rates are multiplied at each step."""

import math
from typing import Any


class Schedule:
    """factor(step) multiplies the learning rate of update number `step`, counted from 0; a pure function of the step.

    total_steps: the horizon, None where the budget is none of steps. steps_per_epoch: of the batching.
    warmup: steps of linear rise to 1, or below 1 a fraction of total_steps. The first update is never zero.
    """

    name: str

    def __init__(self, total_steps: int | None, steps_per_epoch: int, warmup: int | float):
        if warmup < 0:
            raise ValueError(f"schedule.warmup={warmup} must not be negative")
        self.total_steps, self.steps_per_epoch = total_steps, steps_per_epoch
        self.warmup = round(warmup * self._horizon()) if 0 < warmup < 1 else int(warmup)

    def _horizon(self) -> int:
        """total_steps, where it must be known."""
        if self.total_steps is None:
            raise ValueError(
                f"schedule={self.name} must know when training ends; set trainer.max_steps, trainer.max_epochs or "
                "max_tokens, or take schedule=constant with warmup in steps"
            )
        return self.total_steps

    def factor(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        return self._after_warmup(step)

    def _after_warmup(self, step: int) -> float:
        raise NotImplementedError

    def describe(self) -> str:
        """One line; states the horizon, which a resumed run may move."""
        horizon = "" if self.total_steps is None else f" over {self.total_steps:,} steps"
        return f"{self.name}{horizon}, warm-up {self.warmup:,}"

    def observe(self, metric: float) -> None:
        """Take note of a validation metric, fewer being better."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: nothing, unless the schedule observes."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            raise ValueError(f"schedule={self.name} has no state, but the checkpoint holds {sorted(state)}")


class Constant(Schedule):
    """1 after the warm-up."""

    name = "constant"

    def _after_warmup(self, step: int) -> float:
        return 1.0


class Cosine(Schedule):
    """Half a cosine from 1 to `final` at the horizon (Loshchilov and Hutter 2017, equation 5, without restarts)."""

    name = "cosine"

    def __init__(self, total_steps: int | None, steps_per_epoch: int, warmup: int | float, final: float):
        super().__init__(total_steps, steps_per_epoch, warmup)
        self.final = final
        self._horizon()

    def _after_warmup(self, step: int) -> float:
        done = min(1.0, (step - self.warmup) / max(1, self.total_steps - self.warmup))
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * done))


class WSD(Schedule):
    """Warm-up, stable, decay: 1 until the last `decay` of all steps, then down to `final` (Hu et al. 2024, MiniCPM).

    decay: a fraction of total_steps, at most what the warm-up leaves; 1 decays all the way.
    shape: linear in the steps left, or 1-sqrt, which falls faster at first (Hägele et al. 2024, equation 1).
    """

    name = "wsd"

    def __init__(
        self, total_steps: int | None, steps_per_epoch: int, warmup: int | float, decay: float, final: float, shape: str
    ):
        super().__init__(total_steps, steps_per_epoch, warmup)
        if not 0 <= decay <= 1:
            raise ValueError(f"schedule.decay={decay} must be between 0 and 1: a fraction of all steps")
        if shape not in ("linear", "1-sqrt"):
            raise ValueError(f"schedule.shape={shape!r} must be linear or 1-sqrt")
        self.final, self.shape = final, shape
        self.decay_steps = max(0, min(round(decay * self._horizon()), self.total_steps - self.warmup))

    def _after_warmup(self, step: int) -> float:
        left = self.total_steps - step
        if left >= self.decay_steps:
            return 1.0
        share = max(0.0, left / max(1, self.decay_steps))
        height = share if self.shape == "linear" else 1 - math.sqrt(1 - share)
        return self.final + (1 - self.final) * height

    def describe(self) -> str:
        return f"{super().describe()}, decay in the last {self.decay_steps:,}"


class StepDecay(Schedule):
    """1 for `hold_epochs` epochs, then multiplied by `rate` at the start of each further one (Zaremba et al. 2014)."""

    name = "step_decay"

    def __init__(
        self, total_steps: int | None, steps_per_epoch: int, warmup: int | float, hold_epochs: int, rate: float
    ):
        super().__init__(total_steps, steps_per_epoch, warmup)
        if not 0 < rate <= 1:
            raise ValueError(f"schedule.rate={rate} must be above 0 and at most 1")
        self.hold_epochs, self.rate = hold_epochs, rate

    def _after_warmup(self, step: int) -> float:
        epoch = step // self.steps_per_epoch
        return self.rate ** max(0, epoch - self.hold_epochs + 1)


class Plateau(Schedule):
    """Multiplied by `shrink` whenever more than `patience` validations in a row bring no new best.

    pytorch/examples' word language model: shrink 0.25, patience 0. Never below `floor`.
    """

    name = "plateau"

    def __init__(
        self,
        total_steps: int | None,
        steps_per_epoch: int,
        warmup: int | float,
        shrink: float,
        patience: int,
        floor: float,
    ):
        super().__init__(total_steps, steps_per_epoch, warmup)
        if not 0 < shrink < 1:
            raise ValueError(f"schedule.shrink={shrink} must be between 0 and 1")
        if patience < 0:
            raise ValueError(f"schedule.patience={patience} must not be negative")
        self.shrink, self.patience, self.floor = shrink, patience, floor
        self.level, self.best, self.misses = 1.0, math.inf, 0

    def _after_warmup(self, step: int) -> float:
        return self.level

    def observe(self, metric: float) -> None:
        if metric < self.best:
            self.best, self.misses = metric, 0
            return
        self.misses += 1
        if self.misses > self.patience:
            self.level, self.misses = max(self.floor, self.level * self.shrink), 0

    def state_dict(self) -> dict[str, Any]:
        return {"level": self.level, "best": self.best, "misses": self.misses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.level, self.best, self.misses = state["level"], state["best"], state["misses"]
