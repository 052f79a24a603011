"""Any text at all, under every kind of tokenizer: stored whole, batched whole, each token once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.test_batching import counted, documents, lanes, windows
from tests.data.texts import Texts
from tests.tokenizers.conftest import LOSSLESS, TRAIN
from tests.tokenizers.test_protocol import TEXTS

from lmlab.data.store import prepare
from lmlab.evaluation.protocol import Protocol, batches

SIZES = ("n_bytes", "n_chars", "n_words")
some = settings(max_examples=12, deadline=None)
# As many documents as there may be, some of them empty, not all.
DOCUMENTS = st.lists(st.one_of(TEXTS, st.text(max_size=200)), min_size=1, max_size=6).filter(any)


@pytest.fixture(scope="module", params=list(TRAIN))
def kind(request, tmp_path_factory):
    return request.param, TRAIN[request.param](tmp_path_factory.mktemp(request.param))


def stored(kind, texts, tmp_path_factory):
    """The split of these documents under the tokenizer of this kind."""
    store = prepare(Texts(train=texts), lambda documents: kind[1], {}, tmp_path_factory.mktemp("cache"), progress=False)
    return store.split("train")


def source(texts):
    whole = "".join(texts)
    return [len(whole.encode()), len(whole), sum(len(text.split()) for text in texts)]


@some
@given(texts=DOCUMENTS)
def test_a_store_accounts_for_every_byte_character_and_word(kind, texts, tmp_path_factory):
    split = stored(kind, texts, tmp_path_factory)
    assert [int(getattr(split, name).sum()) for name in SIZES] == source(texts)
    assert len(split.doc_starts) == len(texts)
    if kind[0] not in LOSSLESS:
        return
    bounds = [*split.doc_starts.tolist(), len(split)]
    for text, start, stop in zip(texts, bounds[:-1], bounds[1:], strict=True):
        ids = split.ids[start:stop].tolist()
        assert kind[1].decode(ids[:-1] if ids[-1] == kind[1].eos_id else ids) == text


@some
@given(texts=DOCUMENTS, batch_size=st.integers(1, 4), seq_len=st.integers(1, 9))
def test_documents_give_each_token_once_with_all_of_its_source(kind, texts, batch_size, seq_len, tmp_path_factory):
    split = stored(kind, texts, tmp_path_factory)
    batching = documents(split, batch_size=batch_size, seq_len=seq_len)
    epoch = [batching.batch(step) for step in range(batching.steps_per_epoch)]
    assert sorted(torch.cat([counted(b) for b in epoch]).tolist()) == sorted(split.ids.tolist())
    assert sum(b.counts.sum(0) for b in epoch).tolist() == source(texts)


@some
@given(texts=DOCUMENTS, random_lengths=st.booleans())
def test_lanes_rebuild_the_tokens(kind, texts, random_lengths, tmp_path_factory):
    split = stored(kind, [*texts, "x a " * 40], tmp_path_factory)
    batching = lanes(split, batch_size=2, seq_len=5, random_lengths=random_lengths)
    epoch = [batching.batch(step) for step in range(batching.epoch_start(1))]
    kept = len(split) - batching.dropped
    assert torch.cat([b.targets for b in epoch], 1).flatten().tolist() == split.ids[:kept].tolist()
    told = sum(b.counts.sum(0) for b in epoch).tolist()
    assert told == [int(getattr(split, name)[:kept].sum()) for name in SIZES]


@some
@given(texts=DOCUMENTS, order=st.sampled_from(["random", "strided"]))
def test_windows_are_stretches_of_the_tokens_with_their_source(kind, texts, order, tmp_path_factory):
    split = stored(kind, [*texts, "x a " * 40], tmp_path_factory)
    batching = windows(split, seq_len=6, order=order, stride=3 if order == "strided" else None)
    ids = split.ids.tolist()
    sizes = np.stack([getattr(split, name) for name in SIZES], 1).astype(np.int64)
    stretches = {}
    for start in range(len(ids) - 5):
        stretches.setdefault(tuple(ids[start : start + 6]), []).append(sizes[start : start + 6].sum(0).tolist())
    for step in range(batching.steps_per_epoch):
        batch = batching.batch(step)
        for targets, told in zip(batch.targets.tolist(), batch.counts.tolist(), strict=True):
            assert told in stretches[tuple(targets)]


@some
@given(texts=DOCUMENTS, batch_size=st.integers(1, 4))
@pytest.mark.parametrize("context", ["carried", "sliding", "documents"])
def test_evaluation_scores_each_token_once_and_all_of_the_source(kind, context, texts, batch_size, tmp_path_factory):
    split = stored(kind, texts, tmp_path_factory)
    window = {"carried": (2, None, None), "sliding": (None, 4, 8), "documents": (None, 4, 8)}[context]
    protocol = Protocol(1, context, *window, "32", None)
    rows = list(batches(split, protocol, kind[1].start_id, batch_size))
    assert sorted(torch.cat([counted(b) for b in rows]).tolist()) == sorted(split.ids.tolist())
    assert sum(b.counts.sum(0) for b in rows).tolist() == source(texts)
