"""Batches cut on the device, of a text that is kept there, are those that are cut in main memory."""

import numpy as np
import pytest
import torch
from tests.data.test_batching import START, Text, all_ways, documents, windows

from lmlab.data import resident
from lmlab.data.datamodule import RepeatedBatch
from lmlab.data.resident import ResidentText, resident_bytes

CPU = torch.device("cpu")
FIELDS = ("inputs", "targets", "mask", "reset", "counts", "starts", "charges", "lengths")


def assert_same(a, b):
    assert a.lr_scale == b.lr_scale
    for name in FIELDS:
        ours, theirs = getattr(a, name), getattr(b, name)
        assert (ours is None) == (theirs is None), name
        if ours is not None:
            assert ours.dtype == theirs.dtype, name
            assert torch.equal(ours, theirs), name
            assert ours.is_contiguous(), name


def wide(split):
    """Ids that need all of 32 bits but one, and a token that covers more than a byte can count."""
    split.ids = split.ids.astype(np.uint32) + np.uint32(2**31 - 1000)
    split.n_bytes = split.n_bytes.astype(np.uint16) + 300
    return split


def high(split):
    """Ids past what a signed number of 16 bits holds."""
    split.ids = split.ids + np.uint16(65_000)
    return split


@pytest.mark.parametrize("kind", [lambda split: split, high, wide], ids=["as stored", "high ids", "wide columns"])
@pytest.mark.parametrize("way", range(5))
def test_batches_are_those_of_main_memory(way, kind, monkeypatch):
    # The text goes in pieces, the last of them shorter.
    monkeypatch.setattr(resident, "PIECE", 64)
    split = kind(Text(70, 30, 150, 5, 45))
    here, there = all_ways(split)[way], all_ways(split)[way]
    there.to(CPU)
    monkeypatch.setattr("lmlab.data.batching.cut", None)
    batches = [there.batch(step) for step in range(2 * there.steps_per_epoch)]
    monkeypatch.undo()
    for step, batch in enumerate(batches):
        assert_same(batch, here.batch(step))


def test_rows_that_are_all_padding_hold_nothing():
    # 5 rows in batches of 3.
    batching = documents(Text(4, 4, 4, 4, 4))
    batching.to(CPU)
    batches = [batching.batch(step) for step in range(batching.steps_per_epoch)]
    empty = [(batch, i) for batch in batches for i, length in enumerate(batch.lengths) if length == 0]
    assert len(empty) == 1
    batch, row = empty[0]
    assert not batch.mask[row].any()
    assert batch.counts[row].tolist() == [0, 0, 0]
    assert set(batch.inputs[row].tolist() + batch.targets[row].tolist()) == {START}


@pytest.mark.parametrize("kind", [lambda split: split, wide], ids=["narrow", "wide"])
def test_its_size_is_foretold(kind):
    split = kind(Text(700))
    text = ResidentText(split, CPU)
    held = text._ids.nbytes + text._sizes.nbytes
    # One place more than the text has.
    assert held == resident_bytes(split) / 700 * 701


def test_a_text_is_put_there_once(monkeypatch):
    batching, made = windows(Text(60)), []
    monkeypatch.setattr("lmlab.data.batching.ResidentText", lambda *of: made.append(of) or ResidentText(*of))
    batching.to(CPU)
    batching.to(CPU)
    assert len(made) == 1


def test_one_batch_again_and_again_is_put_there_itself():
    repeated = RepeatedBatch(windows(Text(60)))
    repeated.to(torch.device("meta"))
    assert repeated.batch(5).inputs.device.type == "meta"
    assert repeated.fixed_shape


def test_shapes_are_fixed_where_they_are_said_to_be():
    ways = all_ways(Text(70, 2, 150, 5, 45))
    shapes = [{batching.batch(step).inputs.shape for step in range(batching.steps_per_epoch)} for batching in ways]
    assert [len(found) == 1 for found in shapes] == [batching.fixed_shape for batching in ways]
    assert [batching.fixed_shape for batching in ways] == [True, False, True, True, False]
