"""What is decided before the first step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig
from torch import nn

from lmlab.data.store import Split, Store
from lmlab.instantiate import instantiate


@dataclass
class Plan:
    """Everything that is decided before the first step: what `dry_run` shows and `config.yaml` records.

    reasons: why, for what was left to us; the log says it. watchers: callbacks beside the configured ones, as
    functions that build them.
    """

    config: DictConfig
    store: Store
    model: nn.Module
    batching: Any
    protocol: Any
    total_steps: int
    schedule: Any
    decided: dict[str, Any]
    reasons: dict[str, str | None] = field(default_factory=dict)
    watchers: Sequence[Callable[[], Any]] = ()

    def part(self, split: str) -> Any:
        """A split, with what the protocol charges for its <unk>."""
        from lmlab.evaluation.spelling import charged

        return charged(self.store, split, self.protocol, lambda: instantiate(self.config.corpus))


def train_part(store: Store, share: float) -> Split:
    """The train split, or of a share below 1 its end, which is the nearest to what is held out."""
    split = store.split("train")
    if not 0 < share <= 1:
        raise ValueError(f"train_share={share} must be above 0 and at most 1")
    return split if share == 1 else split.tail(max(1, round(share * len(split))))
