"""The store: tokens and what they cover, made once, found again, rebuilt when damaged."""

import json
import logging
import os
import shutil
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.texts import POEMS, Texts

from lmlab.data import columns, encode
from lmlab.data.store import DamagedStore, Store, prepare
from lmlab.seal import seal, unseal
from lmlab.tokenizers.byte import train as byte
from lmlab.tokenizers.char import train as char_train
from lmlab.tokenizers.word import train as word_train


def word(documents):
    return word_train(documents=documents, min_count=1, max_vocab=None)


def char(documents):
    return char_train(documents=documents, min_count=1)


@pytest.mark.parametrize("train", [byte, char, word])
def test_each_split_holds_its_documents_tokens_and_their_sizes(tmp_path, train):
    corpus = Texts(train=POEMS, val=["One end"])
    store = prepare(corpus, train, {"kind": "t"}, tmp_path, progress=False)
    assert store.splits == ("train", "val")
    split = store.split("train")
    assert split.doc_names == ["train/0", "train/1", "train/2"]
    assert split.docs[1] == {"name": "train/1", "n": 1}
    assert split.doc_starts[0] == 0
    text = "".join(POEMS)
    assert split.totals == {
        "tokens": len(split),
        "bytes": len(text.encode()),
        "chars": len(text),
        "words": sum(len(poem.split()) for poem in POEMS),
    }
    bounds = [*split.doc_starts, len(split)]
    for poem, start, stop in zip(POEMS, bounds[:-1], bounds[1:], strict=True):
        own = store.tokenizer.encode(poem)
        closed = store.tokenizer.needs_eos(poem)
        assert split.ids[start:stop].tolist() == own.ids.tolist() + [store.tokenizer.eos_id] * closed
        for column, size in (("n_bytes", len(poem.encode())), ("n_chars", len(poem)), ("n_words", len(poem.split()))):
            assert getattr(split, column)[start:stop].sum() == size
        if closed and len(own.ids) and own.ends[-1] == len(poem.encode()):
            assert split.n_bytes[stop - 1] == 0


def test_an_eos_is_not_doubled_where_the_text_ends_with_one(tmp_path):
    store = prepare(Texts(train=["a b\n", "a b"]), word, {}, tmp_path, progress=False)
    eos = store.tokenizer.eos_id
    split = store.split("train")
    assert (np.asarray(split.ids) == eos).tolist() == [False, False, True, False, False, True]
    assert split.n_bytes.tolist() == [1, 2, 1, 1, 2, 0]
    assert split.doc_starts.tolist() == [0, 3]


@settings(max_examples=25, deadline=None)
@given(
    documents=st.lists(st.lists(st.sampled_from(["ab", "  ", "c d", "\n", "é", "　", " x\n"]), min_size=1), min_size=1),
    batch=st.integers(1, 12),
)
def test_sizes_are_exact_however_text_is_cut_and_batched(tmp_path_factory, documents, batch):
    documents = [*documents, ["ab"]]  # a vocabulary needs a word
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "BATCH", batch)
        folder = tmp_path_factory.mktemp("store")
        store = prepare(Texts(train=documents), word, {}, folder, progress=False)
    split = store.split("train")
    bounds = [*split.doc_starts.tolist(), len(split)]
    assert len(bounds) == len(documents) + 1
    for pieces, start, stop in zip(documents, bounds[:-1], bounds[1:], strict=True):
        text = "".join(pieces)
        assert stop > start
        assert split.n_bytes[start:stop].sum() == len(text.encode())
        assert split.n_chars[start:stop].sum() == len(text)
        assert split.n_words[start:stop].sum() == len(text.split())


def test_batches_change_nothing(tmp_path, monkeypatch):
    documents = [["one two", " three\n", "  ", " four"], ["five"], [" ", "six  "]] * 3
    whole = prepare(Texts(train=documents), word, {}, tmp_path / "whole", progress=False).split("train")
    monkeypatch.setattr(encode, "BATCH", 5)
    parts = prepare(Texts(train=documents), word, {}, tmp_path / "parts", progress=False).split("train")
    for name in ("ids", "n_bytes", "n_chars", "n_words", "doc_starts"):
        assert getattr(whole, name).tolist() == getattr(parts, name).tolist(), name


def test_columns_take_the_smallest_type_and_are_widened_when_a_number_does_not_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "BATCH", 64)
    monkeypatch.setattr(columns, "BLOCK", 7)
    text = ["ab " * 40, "x" * 300, " cd", " y" * 70_000 + "z" * 70_000]
    split = prepare(Texts(train=[[t] for t in text]), word, {}, tmp_path, progress=False).split("train")
    assert split.n_bytes.dtype == np.uint32
    assert split.n_words.dtype == np.uint8
    assert split.ids.dtype == np.uint16
    assert split.n_bytes[:3].tolist() == [2, 3, 3]
    assert split.n_bytes.sum() == sum(map(len, text))
    assert 300 in split.n_bytes.tolist()


def test_a_store_is_made_once_and_opened_in_milliseconds(tmp_path):
    corpus = Texts(train=POEMS)
    first = prepare(corpus, byte, {"kind": "byte"}, tmp_path, progress=False)
    read = corpus.read
    began = time.perf_counter()
    again = prepare(corpus, lambda documents: pytest.fail("trained again"), {"kind": "byte"}, tmp_path, progress=False)
    assert time.perf_counter() - began < 0.1
    assert again.path == first.path
    assert corpus.read == read
    assert again.tokenizer.kind == "byte"
    assert again.split("train").ids.tolist() == first.split("train").ids.tolist()


def test_tokenizer_and_counts_are_read_once_a_process_and_anew_when_the_store_was_made_anew(tmp_path):
    def opened(text):
        return prepare(Texts(train=[text]), char, {}, tmp_path, progress=False)

    path = opened("abba").path
    first, again = Store(path), Store(path)
    assert again.tokenizer is first.tokenizer
    assert again.token_counts() is first.token_counts()
    ids = np.asarray(first.split("train").ids)
    assert first.token_counts().tolist() == [(ids == i).sum() for i in range(first.tokenizer.vocab_size)]
    # The same place, other files.
    other = opened("abcabc").path
    shutil.rmtree(path)
    other.rename(path)
    anew = Store(path)
    assert anew.tokenizer.vocab_size == first.tokenizer.vocab_size + 1
    assert len(anew.token_counts()) == len(first.token_counts()) + 1


def test_another_text_or_recipe_is_another_store(tmp_path):
    paths = {
        prepare(corpus, byte, recipe, tmp_path, progress=False).path
        for corpus in (Texts(train=["a"]), Texts(train=["b"]))
        for recipe in ({"kind": "byte"}, {"kind": "byte", "more": 1})
    }
    assert len(paths) == 4


def test_a_store_may_be_moved(tmp_path):
    store = prepare(Texts(train=POEMS), byte, {}, tmp_path / "a", progress=False)
    ids = store.split("train").ids.tolist()
    os.rename(tmp_path / "a", tmp_path / "b")
    moved = Store(tmp_path / "b" / "stores" / store.path.name)
    assert moved.split("train").ids.tolist() == ids
    assert moved.tokenizer.kind == "byte"


def test_the_tokenizer_sees_the_train_split_alone_and_as_often_as_it_likes(tmp_path):
    def train(documents):
        assert list(documents) == list(documents) == ["one", " two", "three"]
        return byte(documents)

    prepare(Texts(train=[["one", " two"], "three"], val=["unseen"]), train, {}, tmp_path, progress=False)


def test_a_corpus_without_train_is_encoded_by_a_tokenizer_that_needs_no_text(tmp_path):
    store = prepare(Texts(test=["one"]), byte, {}, tmp_path, progress=False)
    assert store.splits == ("test",)
    with pytest.raises(ValueError, match="split='train' is not in the store, which has test"):
        store.split("train")


def test_the_report_says_what_was_made(tmp_path):
    corpus = Texts(train=["a b a", "b"], val=["a zzz"])
    report = prepare(corpus, word, {}, tmp_path, progress=False).report
    assert report["tokenizer"] == "word"
    assert report["provenance"] == "in memory"
    train, val = report["splits"]["train"], report["splits"]["val"]
    assert (train["tokens"], train["documents"], train["bytes_per_token"]) == (6, 2, 1.0)
    assert (train["unk_share"], val["unk_share"]) == (0.0, pytest.approx(1 / 3))
    assert set(report["seconds"]) == {"tokenizer", "encoding"}


def test_a_split_s_text_has_one_hash_under_every_tokenizer_and_beside_every_other_split(tmp_path, monkeypatch):
    def text(tokenizer, split="val", **documents):
        return prepare(Texts(**documents), tokenizer, {"by": tokenizer.__name__}, tmp_path, progress=False).texts[split]

    first = text(byte, train=["one"], val=POEMS)
    assert text(word, train=["two", "three"], val=POEMS) == first == text(byte, train=POEMS, split="train")
    assert text(byte, train=["one"], val=[*POEMS[:-1], "END"]) != first
    # Where a document begins is a part of it, where a piece or a batch does is not.
    monkeypatch.setattr(encode, "BATCH", 3)
    assert text(byte, train=["one"], val=[list(poem) for poem in POEMS]) == first
    assert text(byte, train=["one"], val=["".join(POEMS)]) != first


def test_a_store_of_before_is_opened_and_tells_no_text(tmp_path):
    store = prepare(Texts(train=POEMS), byte, {}, tmp_path, progress=False)
    manifest = store.path / "manifest.json"
    told = json.loads(unseal(manifest.read_text()))
    del told["splits"]["train"]["text"]
    manifest.write_text(seal(json.dumps(told, indent=1)))
    older = prepare(Texts(train=POEMS), byte, {}, tmp_path, progress=False)
    assert older.made != store.made, "it was made again"
    assert (older.texts, older.split("train").text) == ({}, None)


DAMAGE = {
    "cut off": lambda path: os.truncate(path / "train.ids", 3),
    "gone": lambda path: (path / "train.n_bytes").unlink(),
    "changed": lambda path: (path / "train.n_chars").write_bytes(b"\7" * (path / "train.n_chars").stat().st_size),
    "no manifest": lambda path: (path / "manifest.json").unlink(),
    "half a manifest": lambda path: os.truncate(path / "manifest.json", 40),
    "tokenizer": lambda path: (path / "tokenizer.json").write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_store_is_named_and_made_again(tmp_path, damage, caplog):
    corpus = Texts(train=POEMS)
    store = prepare(corpus, byte, {}, tmp_path, progress=False)
    before = store.split("train").ids.tolist()
    DAMAGE[damage](store.path)
    with pytest.raises(DamagedStore, match=str(store.path)):
        Store(store.path)
    with caplog.at_level(logging.WARNING):
        again = prepare(corpus, byte, {}, tmp_path, progress=False)
    assert "is damaged; it is made again" in caplog.text
    assert again.split("train").ids.tolist() == before
    again.verify()


def test_verify_reads_large_files_too(tmp_path, monkeypatch):
    monkeypatch.setattr("lmlab.data.store.CHECK_UP_TO", 0)
    store = prepare(Texts(train=POEMS), byte, {}, tmp_path, progress=False)
    DAMAGE["changed"](store.path)
    with pytest.raises(DamagedStore, match=r"train\.n_chars was changed"):
        Store(store.path).verify()


def flip(file):
    """One bit of its middle, as a disk does it: size and time of change stay."""
    told, data = file.stat(), bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(told.st_atime_ns, told.st_mtime_ns))


def test_a_flipped_bit_in_a_large_file_is_seen_where_every_byte_counts(tmp_path, monkeypatch):
    monkeypatch.setattr("lmlab.data.store.CHECK_UP_TO", 0)
    monkeypatch.setattr("lmlab.data.store._whole", whole := set())
    corpus = Texts(train=POEMS)
    store = prepare(corpus, byte, {}, tmp_path, progress=False)
    before = store.split("train").ids.tolist()
    whole.clear()  # another process
    flip(store.path / "train.ids")
    assert prepare(corpus, byte, {}, tmp_path, progress=False).split("train").ids.tolist() != before
    again = prepare(corpus, byte, {}, tmp_path, progress=False, whole=True)
    assert again.split("train").ids.tolist() == before
    monkeypatch.setattr(Store, "verify", lambda _: pytest.fail("read twice by one process"))
    prepare(corpus, byte, {}, tmp_path, progress=False, whole=True)


def test_a_moved_store_that_is_read_only_is_read_once_a_process(tmp_path, monkeypatch):
    monkeypatch.setattr("lmlab.data.store.CHECK_UP_TO", 0)
    store, read = prepare(Texts(train=POEMS), byte, {}, tmp_path, progress=False), []
    for file in store.path.iterdir():
        os.utime(file, (1, 1))

    def refused(*_, **__):
        raise PermissionError

    def checksum(file):
        read.append(file.name)
        return columns.checksum(file)

    monkeypatch.setattr(os, "utime", refused)
    monkeypatch.setattr("lmlab.data.store.checksum", checksum)
    Store(store.path)
    assert "train.ids" in read
    read.clear()
    Store(store.path)
    assert "train.ids" not in read
    store.verify()
    assert "train.ids" in read, "asked for, it is read again"
