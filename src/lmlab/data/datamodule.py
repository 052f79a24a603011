"""The LightningDataModule: text is encoded once, then batched for training and validation."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

import lmlab.deferred  # noqa: F401  before Lightning is imported: it takes half as long
from lmlab.data.store import Store
from lmlab.types import Batch

# isort: split
from lightning import LightningDataModule

# Batches that are made one after the other, where they are of at most so many tokens. After a step of a model nothing
# that makes them is in the processor's caches any more: the first takes six times as long as those behind it (12 x 64
# tokens: 480 us and 80, two cores with AMX).
AHEAD, SMALL = 8, 2**14


class StepLoader:
    """Training batches from step `first()` to `total_steps`, this rank's rows of each; measures the wait for them."""

    def __init__(self, batching: Any, first: Callable[[], int], total_steps: int, rank: int, world_size: int):
        if batching.batch_size % world_size:
            raise ValueError(
                f"batching.batch_size={batching.batch_size} must be a multiple of devices={world_size}: it is global"
            )
        self.batching, self.first, self.total_steps = batching, first, total_steps
        rows = batching.batch_size // world_size
        self.start, self.stop = rank * rows, (rank + 1) * rows
        self.ahead = AHEAD if batching.tokens_per_step <= SMALL else 1
        self.waited = 0.0

    def __iter__(self) -> Iterator[Batch]:
        step, n = self.first(), 1
        while step < self.total_steps:
            began = time.perf_counter()
            made = [self._batch(i) for i in range(step, min(step + n, self.total_steps))]
            # The first alone: Lightning asks for it before training begins.
            step, n = step + n, self.ahead
            each = (time.perf_counter() - began) / len(made)
            for batch in made:
                self.waited += each
                yield batch

    def _batch(self, step: int) -> Batch:
        batch = self.batching.batch(step)
        whole = (self.start, self.stop) == (0, self.batching.batch_size)
        return batch if whole else batch.rows(self.start, self.stop)

    def take_waited(self) -> float:
        """Seconds spent making the batches that were taken since the last call."""
        waited, self.waited = self.waited, 0.0
        return waited


class RepeatedBatch:
    """The first training batch again and again: what can be learnt at all must learn this (trainer=debug)."""

    fixed_shape = True

    def __init__(self, batching: Any):
        self._batching, self._batch = batching, batching.batch(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batching, name)

    def to(self, device: torch.device) -> None:
        self._batch = self._batch.to(device)

    def batch(self, step: int) -> Batch:
        return self._batch


class EvaluationLoader:
    """The batches of a protocol over one split, made anew at each pass."""

    def __init__(self, make: Callable[[], Iterator[Batch]]):
        self._make = make

    def __iter__(self) -> Iterator[Batch]:
        return self._make()


class TextDataModule(LightningDataModule):
    """`prepare` makes or opens the token store; `connect` says how it is batched.

    `prepare_data` may be called early: the vocabulary is needed to build a model.
    """

    def __init__(self, prepare: Callable[[], Store]):
        super().__init__()
        self._prepare = prepare
        self.store: Store | None = None

    def prepare_data(self) -> None:
        if self.store is None:
            self.store = self._prepare()

    def connect(
        self,
        batching: Any,
        first_step: Callable[[], int],
        total_steps: int,
        evaluation_batches: Callable[..., Iterator[Batch]],
        limit_tokens: int | None,
        train_tokens: int,
        on_device: bool,
    ) -> None:
        """evaluation_batches(split, limit_tokens=, rank=, world_size=) yields a protocol's batches over a split.

        limit_tokens: how much of val is scored, null for all. train_tokens: the fixed slice of train beside it.
        on_device: training batches are cut where the model is, of a text that is kept there.
        """
        self.batching, self.first_step, self.total_steps = batching, first_step, total_steps
        self.evaluation_batches, self.limit_tokens, self.train_tokens = evaluation_batches, limit_tokens, train_tokens
        self.on_device = on_device

    def _ranks(self) -> dict[str, int]:
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device, non_blocking=True)

    def train_dataloader(self) -> StepLoader:
        if self.on_device:
            self.batching.to(self.trainer.strategy.root_device)
        return StepLoader(self.batching, self.first_step, self.total_steps, **self._ranks())

    def val_dataloader(self) -> list[EvaluationLoader]:
        ranks = self._ranks()
        return [
            EvaluationLoader(lambda: self.evaluation_batches("val", limit_tokens=self.limit_tokens, **ranks)),
            EvaluationLoader(
                lambda: (
                    self.evaluation_batches("train", limit_tokens=self.train_tokens, **ranks)
                    if self.train_tokens
                    else iter(())
                )
            ),
        ]
