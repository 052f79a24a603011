"""What letters of an <unk> cost: probabilities of spellings, charged where the <unk> stand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lmlab.config import compose
from lmlab.evaluation.evaluate import evaluate
from lmlab.evaluation.protocol import Protocol, batches
from lmlab.evaluation.spelling import END, SpellingModel, charged
from lmlab.experiment import build_store, build_text
from lmlab.models.ngram import NGramLM

PLAIN = Protocol(1, "carried", 1, None, None, "32", None)
SPELLED = replace(PLAIN, unknown="spelled")


def test_spellings_are_a_distribution():
    model = SpellingModel({"ab": 3, "ba": 1, "b": 1}, ["abc"], 1)
    # Of each next byte, also after bytes that it has never seen.
    for context in ([END], [END, 97], [END, 97, 98], [END, 250]):
        hidden, _ = model.letters(torch.tensor([context]), None)
        assert model.letters.head.log_probs(hidden)[0, -1].exp().sum().item() == pytest.approx(1, abs=1e-5)
    words = ["b", "ba", "ab", "abc", "zzz", "明"]
    nats = dict(zip(words, model.nats(words, may_be_literal=False), strict=True))
    # What is short and was seen costs least, what is not of these letters most.
    assert nats["b"] < nats["zzz"]
    assert nats["ab"] < nats["zzz"] == pytest.approx(nats["明"])  # three bytes each, none of them seen
    assert np.exp(-np.array(list(nats.values()))).sum() < 1


def test_a_first_letter_costs_by_the_words_that_begin_with_it():
    # Of 1,000 words, 65 begin with s; sorted, all but the first of them stand behind one that ends in the same letter.
    words = [f"s{a}{b}x" for a in "abcde" for b in "abcdefghijklm"]
    words += [f"{a}{b}{c}x" for a in "abcdefghijk" for b in "abcdefghij" for c in "abcdefghi"][: 1_000 - len(words)]
    model = SpellingModel(dict.fromkeys(words, 1), [], 1)
    hidden, _ = model.letters(torch.tensor([[END]]), None)
    first = model.letters.head.log_probs(hidden)[0, 0].exp()
    assert first[ord("s")].item() == pytest.approx(65 / 1_000, rel=0.05)


def test_a_text_that_says_unk_itself_pays_for_that_choice_alone():
    # 97 of its <unk> are the word "<unk>": (97 + 1/2) / (97 + 3 + 1).
    model = SpellingModel({"<unk>": 97, "ab": 2, "c": 1}, [], 0)
    literal, other = model.nats(["<unk>", "ab"], may_be_literal=True)
    assert literal == pytest.approx(-math.log(97.5 / 101))
    (letters,) = model.nats(["ab"], may_be_literal=False)
    assert other == pytest.approx(letters - math.log(3.5 / 101))


def test_where_training_has_no_unknown_word_those_that_occur_once_stand_for_them():
    assert SpellingModel({"<unk>": 9}, ["x"], 30).literal == pytest.approx(9.5 / 40)


@pytest.fixture
def config(tmp_path):
    (tmp_path / "train.txt").write_text("a bb bb a a zebra bb a lion\n" * 4 + "tiger pear plum\n")
    (tmp_path / "val.txt").write_text("a pear bb\nzebra  <unk> a 明月 pear\n")
    overrides = ["corpus=files", f"corpus.train={tmp_path}/train.txt", f"corpus.val={tmp_path}/val.txt"]
    return compose([*overrides, "tokenizer=word", "tokenizer.min_count=3", f"cache_dir={tmp_path}/cache"])


def test_each_unknown_word_is_charged_where_it_stands(config):
    store = build_store(config, progress=False)
    part = charged(store, "val", SPELLED, lambda: build_text(config)[0])
    unknown = np.asarray(part.ids) == store.tokenizer.unk_id
    # a pear bb <eos> zebra <unk> a 明月 pear <eos>
    assert unknown.tolist() == [False, True, False, False, False, True, False, True, True, False]
    assert not part.charges[~unknown].any()
    model = SpellingModel({"tiger": 1, "pear": 1, "plum": 1}, ["lion", "zebra", "bb", "a"], 0)
    expected = model.nats(["pear", "<unk>", "明月", "pear"], may_be_literal=True)
    np.testing.assert_allclose(part.charges[unknown], expected, rtol=1e-6)
    assert store.split("val").charges is None


def test_charges_are_counted_whatever_the_model_and_kept_beside_the_store(config):
    store = build_store(config, progress=False)
    part = charged(store, "val", SPELLED, lambda: build_text(config)[0])
    again = charged(store, "val", SPELLED, lambda: pytest.fail("read again"))
    assert again.charges.tolist() == part.charges.tolist()
    model = NGramLM(store.tokenizer.vocab_size, 1).fit(store.split("train").ids, store.tokenizer.start_id)
    plain, spelled = (
        evaluate(model, batches(split, PLAIN, store.tokenizer.start_id, 1), "32")
        for split in (store.split("val"), part)
    )
    assert spelled.nats == pytest.approx(plain.nats + float(part.charges.sum(dtype=np.float64)))


def test_in_somebody_elses_cache_charges_are_counted_and_not_kept(config, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    store = build_store(config, progress=False)
    monkeypatch.setattr("lmlab.evaluation.floors.whole_file", refuse)
    first = charged(store, "val", SPELLED, lambda: build_text(config)[0]).charges.tolist()
    assert list(store.path.glob("*spelling-*")) == []
    monkeypatch.undo()
    assert charged(store, "val", SPELLED, lambda: build_text(config)[0]).charges.tolist() == first


def test_a_damaged_file_of_charges_is_made_again(config):
    store = build_store(config, progress=False)
    first = charged(store, "val", SPELLED, lambda: build_text(config)[0]).charges.tolist()
    for path in store.path.glob("spelling-*"):
        path.write_bytes(b"damaged")
    assert charged(store, "val", SPELLED, lambda: build_text(config)[0]).charges.tolist() == first


def test_text_that_changed_is_refused(config, tmp_path):
    store = build_store(config, progress=False)
    (tmp_path / "val.txt").write_text("something else\n")
    with pytest.raises(ValueError, match="is no longer that of"):
        charged(store, "val", SPELLED, lambda: build_text(config)[0])


def test_nothing_is_charged_where_nothing_is_unknown_or_nobody_asks(config, tmp_path):
    store = build_store(config, progress=False)
    assert charged(store, "val", PLAIN, lambda: pytest.fail("read")).charges is None
    config.tokenizer = compose(["tokenizer=byte"]).tokenizer
    assert charged(build_store(config, False), "val", SPELLED, lambda: pytest.fail("read")).charges is None
