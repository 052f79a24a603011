"""The floors: right, measured on the same tokens, counted once."""

import math
from collections import Counter

import pytest

from lmlab.config import compose
from lmlab.evaluation.floors import floors
from lmlab.experiment import build_store
from lmlab.models.ngram import NGramLM


@pytest.fixture
def store(tmp_path):
    (tmp_path / "train.txt").write_text("a b b c\n" * 8)
    (tmp_path / "val.txt").write_text("a b c\nb\n")
    overrides = ["corpus=files", f"corpus.train={tmp_path}/train.txt", f"corpus.val={tmp_path}/val.txt"]
    return build_store(compose([*overrides, "tokenizer=word"]), progress=False)


def test_a_corpus_without_a_test_split_has_floors_for_val(store):
    assert store.splits == ("train", "val")
    assert {name: list(splits) for name, splits in floors(store, ["val"]).items()} == {
        "unigram": ["val"],
        "kneser_ney_5": ["val"],
    }


def test_the_unigram_is_interpolated_absolute_counts(store):
    found = floors(store, ["val"])["unigram"]["val"]
    ids, val = store.split("train").ids.tolist(), store.split("val").ids.tolist()
    model = NGramLM(vocab_size=store.tokenizer.vocab_size, order=1)
    model.fit(store.split("train").ids, store.tokenizer.start_id)
    counts, n = Counter(ids), len(ids)
    # a, b, c and the end of the line are seen 8, 16, 8 and 8 times: with no count of 1 to 4 there is no discount to
    # estimate, and what is left is the maximum likelihood apart from <unk>'s share.
    by_hand = -sum(math.log(counts[token] / n) for token in val)
    assert found["tokens"] == len(val)
    assert found["nats"] == pytest.approx(by_hand, rel=0.05)


def test_the_five_gram_is_the_models_own(store):
    model = NGramLM(vocab_size=store.tokenizer.vocab_size, order=5)
    model.fit(store.split("train").ids, store.tokenizer.start_id)
    import torch

    ids = store.split("val").ids.astype("int64")
    inputs = torch.tensor([store.tokenizer.start_id, *ids[:-1]])[None]
    hidden, _ = model(inputs, None)
    nats = model.head.nll(hidden, torch.from_numpy(ids)[None]).double().sum().item()
    assert floors(store, ["val"])["kneser_ney_5"]["val"]["nats"] == pytest.approx(nats, rel=1e-6)


def test_floors_are_counted_once_a_store(store, monkeypatch):
    first = floors(store, ["val"])
    monkeypatch.setattr(NGramLM, "fit", lambda *_: pytest.fail("counted again"))
    assert floors(store, ["val"]) == first


def test_a_damaged_cache_is_counted_again(store):
    first = floors(store, ["val"])
    path = next(store.path.glob("floors-*.json"))
    for damage in ("", "[]", '{"unigram": 3}'):
        path.write_text(damage)
        assert floors(store, ["val"]) == first
