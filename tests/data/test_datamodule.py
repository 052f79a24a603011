"""The loader of training batches: the steps' own, in order, however many are made at once."""

from types import SimpleNamespace

import pytest
import torch

from lmlab.data import datamodule
from lmlab.data.datamodule import StepLoader
from lmlab.types import Batch


class Numbered:
    """Batches that say their step; notes which were made."""

    def __init__(self, batch_size: int, tokens_per_step: int):
        self.batch_size, self.tokens_per_step = batch_size, tokens_per_step
        self.made: list[int] = []

    def batch(self, step: int) -> Batch:
        self.made.append(step)
        rows = torch.arange(self.batch_size)[:, None] + 10 * step
        return Batch(inputs=rows, targets=rows, counts=torch.zeros(self.batch_size, 3, dtype=torch.int64))


@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize("total", [3, 4, 11, 12, 20])
def test_small_batches_are_made_several_at_once_and_come_in_order(first, total):
    batching, seen = Numbered(2, datamodule.SMALL), []
    for batch in StepLoader(batching, lambda: first, total, rank=0, world_size=1):
        seen.append(batch.targets[0, 0].item() // 10)
        # The first one alone.
        assert len(batching.made) == min(1 + -(-(len(seen) - 1) // datamodule.AHEAD) * datamodule.AHEAD, total - first)
    assert seen == batching.made == list(range(first, total))


def test_large_batches_are_made_when_they_are_needed():
    batching = Numbered(2, datamodule.SMALL + 1)
    for n, _ in enumerate(StepLoader(batching, lambda: 0, 5, rank=0, world_size=1), start=1):
        assert len(batching.made) == n


def test_each_rank_gets_its_rows():
    parts = [list(StepLoader(Numbered(4, 8), lambda: 0, 3, rank, world_size=2)) for rank in (0, 1)]
    assert [batch.targets[:, 0].tolist() for batch in parts[0]] == [[0, 1], [10, 11], [20, 21]]
    assert [batch.targets[:, 0].tolist() for batch in parts[1]] == [[2, 3], [12, 13], [22, 23]]
    with pytest.raises(ValueError, match="batch_size=4 must be a multiple of devices=3"):
        StepLoader(Numbered(4, 8), lambda: 0, 3, 0, world_size=3)


def test_the_wait_is_told_once(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(datamodule, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    loader = StepLoader(Numbered(2, 8), lambda: 0, 1 + datamodule.AHEAD, 0, 1)
    list(loader)
    assert [loader.take_waited(), loader.take_waited()] == [2, 0]
