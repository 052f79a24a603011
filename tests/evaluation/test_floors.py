"""The floors: right, measured on the same tokens, counted once."""

import errno
import math
import os
from dataclasses import replace

import pytest
import torch

from lmlab.config import compose
from lmlab.evaluation.floors import PLAIN, floors
from lmlab.experiment import build_store
from lmlab.models.ngram import NGramLM


@pytest.fixture
def store(tmp_path):
    (tmp_path / "train.txt").write_text("a b b c\n" * 8)
    (tmp_path / "val.txt").write_text("a b c\nb\n")
    overrides = ["corpus=files", f"corpus.train={tmp_path}/train.txt", f"corpus.val={tmp_path}/val.txt"]
    return build_store(compose([*overrides, "tokenizer=word", f"cache_dir={tmp_path}/cache"]), progress=False)


def test_a_corpus_without_a_test_split_has_floors_for_val(store):
    assert store.splits == ("train", "val")
    assert {name: list(splits) for name, splits in floors(store, ["val"]).items()} == {
        "unigram": ["val"],
        "kneser_ney_5": ["val"],
    }


def test_the_unigram_is_discounted_counts(store):
    # a, b, c and the line's end are seen 8, 16, 8 and 8 times of 40. No word is seen once or twice, so that the
    # discount is KenLM's 1.5; the 4 * 1.5 that it takes are spread over all 5 words, <unk> too:
    # P(a) = (8 - 1.5 + 6 / 5) / 40 = 0.1925, P(b) = (16 - 1.5 + 6 / 5) / 40 = 0.3925.
    assert store.tokenizer.vocab_size == 5
    # val is "a b c <eos> b <eos>".
    by_hand = -4 * math.log(0.1925) - 2 * math.log(0.3925)
    found = floors(store, ["val"])["unigram"]["val"]
    assert (found["tokens"], found["bytes"]) == (6, 8)
    assert found["nats"] == pytest.approx(by_hand, rel=1e-6)


def test_the_five_gram_is_the_models_own(store):
    model = NGramLM(vocab_size=store.tokenizer.vocab_size, order=5)
    model.fit(store.split("train").ids, store.tokenizer.start_id)
    ids = store.split("val").ids.astype("int64")
    inputs = torch.tensor([store.tokenizer.start_id, *ids[:-1]])[None]
    hidden, _ = model(inputs, None)
    nats = model.head.nll(hidden, torch.from_numpy(ids)[None]).double().sum().item()
    assert floors(store, ["val"])["kneser_ney_5"]["val"]["nats"] == pytest.approx(nats, rel=1e-6)


def test_floors_are_counted_once_a_store(store, monkeypatch):
    first = floors(store, ["val"])
    monkeypatch.setattr(NGramLM, "fit", lambda *_: pytest.fail("counted again"))
    assert floors(store, ["val"]) == first


@pytest.fixture
def unwritable(monkeypatch):
    """Says why nothing can be written into a cache: root, as which tests may run, could always."""

    def refuse(number: int) -> None:
        def whole_file(path):
            raise OSError(number, os.strerror(number), str(path))

        monkeypatch.setattr("lmlab.evaluation.floors.whole_file", whole_file)

    return refuse


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_in_somebody_elses_cache_floors_are_counted_and_not_kept(number, store, unwritable):
    unwritable(number)
    first = floors(store, ["val"])
    assert list(store.path.glob("*floors*")) == []
    assert floors(store, ["val"]) == first


def test_a_full_disk_is_told(store, unwritable):
    unwritable(errno.ENOSPC)
    with pytest.raises(OSError, match="No space left"):
        floors(store, ["val"])


def test_a_damaged_cache_is_counted_again(store):
    first = floors(store, ["val"])
    path = next(store.path.glob("floors-*.json"))
    for damage in ("", "[]", '{"unigram": 3}'):
        path.write_text(damage)
        assert floors(store, ["val"]) == first


def test_they_are_counted_on_the_share_of_train_that_the_model_was_trained_on(store):
    share = store.split("train").tail(10)
    model = NGramLM(vocab_size=store.tokenizer.vocab_size, order=1)
    model.fit(share.ids, store.tokenizer.start_id)
    whole, part = floors(store, ["val"]), floors(store, ["val"], train=share)
    ids = torch.from_numpy(store.split("val").ids.astype("int64"))[None]
    nats = model.head.nll(model(ids, None)[0], ids).double().sum().item()
    assert part["unigram"]["val"]["nats"] == pytest.approx(nats, rel=1e-6)
    assert part["unigram"] != whole["unigram"]
    assert floors(store, ["val"], train=store.split("train")) == whole


def test_a_limit_of_the_models_protocol_holds_for_the_floors_too(store):
    limited = replace(PLAIN, policy="sliding", lanes=None, limit_tokens=2)
    whole, part = floors(store, ["val"]), floors(store, {"val": store.split("val")}, limited)
    assert part["unigram"]["val"]["tokens"] == 2
    # "a b" by the discounted counts above.
    assert part["unigram"]["val"]["nats"] == pytest.approx(-math.log(0.1925 * 0.3925), rel=1e-6)
    assert floors(store, ["val"]) == whole
