"""hydra/sweeper=lmlab: hands what Hydra composed to lmlab.sweeps, which is imported only when something is swept."""

from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class LMLabSweeper(Sweeper):
    """Its arguments are the keys of conf/sweep.yaml."""

    def __init__(self, **asked: Any):
        self.asked = asked

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> None:
        from lmlab.sweeps.sweeper import sweep

        sweep(self.asked, arguments, self.config, self.hydra_context, self.task_function)
