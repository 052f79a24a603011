"""Stores that could not be made whole, or are made by several at once: nothing half-written stays."""

import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest
from tests.data.texts import POEMS, Texts, leftovers

from lmlab.data import columns, encode
from lmlab.data.corpora import Document
from lmlab.data.store import prepare
from lmlab.tokenizers.byte import train as byte


def test_a_full_disk_surfaces_and_leaves_nothing(tmp_path, monkeypatch):
    class Full(columns.Column):
        def append(self, values):
            if self.path.name == "val.n_words":
                raise OSError(28, "No space left on device")
            super().append(values)

    monkeypatch.setattr(encode, "Column", Full)
    with pytest.raises(OSError, match="No space left on device"):
        prepare(Texts(train=POEMS, val=POEMS), byte, {}, tmp_path, progress=False)
    assert leftovers(tmp_path) == []


def test_what_fails_while_a_batch_is_being_written_surfaces_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "BATCH", 5)

    def pieces():
        yield from ["some text ", "and more ", "of it "]
        raise ValueError("damaged here")

    corpus = Texts(train=["x"])
    corpus.documents = lambda split: iter([Document("one", pieces())])
    with pytest.raises(ValueError, match="damaged here"):
        prepare(corpus, byte, {}, tmp_path, progress=False)
    assert leftovers(tmp_path) == []


def test_text_that_changes_while_it_is_encoded_is_told_and_leaves_nothing(tmp_path):
    class Growing(Texts):
        def documents(self, split):
            yield from super().documents(split)
            self._splits[split].append(["written meanwhile"])

    with pytest.raises(ValueError, match="texts: its text changed while it was encoded; run the same again"):
        prepare(Growing(train=POEMS), byte, {}, tmp_path, progress=False)
    assert leftovers(tmp_path) == []


def test_batches_are_written_in_the_order_of_the_text(tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "BATCH", 7)
    slow = encode.SplitWriter._write

    def _write(self, batch, encodings):
        time.sleep(0.002 * (len(batch[0][0]) % 3))
        return slow(self, batch, encodings)

    monkeypatch.setattr(encode.SplitWriter, "_write", _write)
    texts = [[f"{i} " * (i % 5 + 1) for i in range(40)]]
    store = prepare(Texts(train=texts), byte, {}, tmp_path, progress=False)
    assert bytes(store.split("train").ids[:-1].astype(np.uint8)).decode() == "".join(texts[0])


def test_a_disk_that_is_full_only_when_buffers_are_written_surfaces_too(tmp_path, monkeypatch):
    device = Path("/dev/full")
    if not device.exists():
        pytest.skip(f"no {device} on this system")
    ordinary = columns.Column.__init__

    def on_full_disk(self, path, dtype):
        ordinary(self, path, dtype)
        self._file.close()
        self._file = device.open("wb")

    monkeypatch.setattr(columns.Column, "__init__", on_full_disk)
    with pytest.raises(OSError, match="No space left"):
        prepare(Texts(train=POEMS), byte, {}, tmp_path, progress=False)
    assert leftovers(tmp_path) == []


def test_a_split_without_text_is_an_error_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="split val has no text"):
        prepare(Texts(train=["a"], val=[]), byte, {}, tmp_path, progress=False)
    assert leftovers(tmp_path) == []


def _prepare_counting(folder, barrier, results):
    def train(documents):
        results.put("trained")
        time.sleep(0.3)
        return byte(documents)

    barrier.wait()
    store = prepare(Texts(train=POEMS * 50), train, {}, folder, progress=False)
    results.put(store.split("train").totals["tokens"])


@pytest.mark.parametrize("locks", [True, False])
def test_processes_that_prepare_at_the_same_moment_share_one_store(tmp_path, locks, monkeypatch):
    if not locks:
        monkeypatch.setattr("lmlab.data.cache.fcntl", None)
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(3), context.Queue()
    arguments = (tmp_path, barrier, results)
    processes = [context.Process(target=_prepare_counting, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    got = [results.get(timeout=5) for _ in range(4 if locks else 6)]
    assert got.count("trained") == (1 if locks else 3)
    assert len({n for n in got if n != "trained"}) == 1
    assert len(leftovers(tmp_path)) == 1


def test_what_a_killed_preparation_left_is_swept(tmp_path):
    context = multiprocessing.get_context("fork")

    def die(documents):
        os._exit(9)

    process = context.Process(target=prepare, args=(Texts(train=POEMS), die, {}, tmp_path, False))
    process.start()
    process.join(60)
    assert process.exitcode == 9
    assert len(leftovers(tmp_path)) == 1
    store = prepare(Texts(train=POEMS), byte, {}, tmp_path, progress=False)
    assert leftovers(tmp_path) == [store.path.name]
