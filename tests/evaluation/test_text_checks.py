"""Each check of the text passes for an honest store, and catches the fault that was planted for it."""

from functools import partial

import numpy as np
import pytest

from lmlab.data.corpora import Document
from lmlab.data.store import prepare
from lmlab.evaluation import text_checks
from lmlab.tokenizers import bpe, byte, char, word

WORDS = [f"word{i}" for i in range(800)]


def prose(n, seed):
    chosen = np.random.default_rng(seed).choice(WORDS[:400], n)
    return " ".join(chosen.tolist()) + ".\n"


class Texts:
    """A corpus in memory, two documents a split."""

    name = "texts"

    def __init__(self, **splits):
        self.content, self.splits = splits, tuple(splits)

    def fingerprint(self):
        return str(hash(tuple(self.content.values())))

    def provenance(self):
        return "made"

    def approximate_bytes(self):
        return None

    def documents(self, split):
        text = self.content[split]
        for i, part in enumerate((text[: len(text) // 2], text[len(text) // 2 :])):
            yield Document(f"{split}{i}", [part])


HONEST = Texts(train=prose(3000, 0), val=prose(300, 1) + "é 明月", test=prose(300, 2))
KINDS = {
    "char": partial(char.train, min_count=1),
    "word": partial(word.train, min_count=1, max_vocab=None),
    "bpe": partial(bpe.train, vocab_size=300, min_frequency=2, sample_bytes=10**6),
    "byte": byte.train,
}


def store(tmp_path, train_tokenizer=KINDS["char"], corpus=HONEST):
    return prepare(corpus, train_tokenizer, {"kind": "k"}, tmp_path, progress=False)


@pytest.fixture(params=["char", "word", "bpe", "byte"])
def kind(request):
    return request.param


def test_an_honest_text_passes(tmp_path, kind):
    made = store(tmp_path, KINDS[kind])
    remade = KINDS[kind](documents=[piece for d in HONEST.documents("train") for piece in d.pieces])
    found = [
        text_checks.ledger(made, {}, HONEST),
        text_checks.ledger(made, {}, None),
        text_checks.decoding(made, HONEST),
        text_checks.decoding(made, None),
        text_checks.vocabulary(made, remade, None),
        text_checks.vocabulary(made, None, None),
        text_checks.tokens_overlap(made),
        text_checks.words_overlap(HONEST, made.splits, 3),
    ]
    assert [check for check in found if check.passed is False] == []
    not_asked = {i for i, check in enumerate(found) if check.passed is None}
    assert not_asked == {"char": set(), "word": {2, 3}, "bpe": {5}, "byte": {5}}[kind]


def test_characters_are_asked_for_documents_without_unk(tmp_path):
    found = text_checks.decoding(store(tmp_path), HONEST)
    assert "5 documents" in found.figure
    assert "1 with an <unk> left out" in found.figure


@pytest.mark.parametrize("name", ["n_bytes", "n_chars"])
def test_a_wrong_size_of_a_token_is_caught(tmp_path, name):
    made = store(tmp_path)
    part = made.split("val")
    sizes = np.array(getattr(part, name))
    sizes[7] += 1
    setattr(part, name, sizes)
    assert text_checks.ledger(made, {}, None).passed is False
    # As if whoever wrote the store had erred, and its record with it.
    part.totals = part.totals | {name[2:]: int(sizes.sum())}
    assert text_checks.ledger(made, {}, None).passed is True
    found = text_checks.ledger(made, {}, HONEST)
    assert found.passed is False
    assert "the source" in found.figure


def test_results_of_another_size_are_caught(tmp_path):
    made = store(tmp_path)
    honest = dict(made.split("val").totals)
    assert text_checks.ledger(made, {"val": honest}, None).passed
    found = text_checks.ledger(made, {"val": honest | {"bytes": honest["bytes"] - 1}}, None)
    assert found.passed is False
    assert "results.json" in found.figure


def test_text_that_the_files_have_and_the_corpus_leaves_out_is_caught(tmp_path):
    class Short(Texts):
        def file_bytes(self):
            return 10 + sum(len(text.encode()) for text in self.content.values())

    corpus = Short(**HONEST.content)
    found = text_checks.ledger(store(tmp_path, corpus=corpus), {}, corpus)
    assert found.passed is False
    assert "files" in found.figure


class Lowers(char.CharTokenizer):
    def decode(self, ids):
        return super().decode(ids).replace("w", "W")


@pytest.mark.parametrize("corpus", [HONEST, None])
def test_a_tokenizer_that_changes_text_is_caught(tmp_path, corpus):
    made = store(tmp_path)
    made.tokenizer = Lowers(made.tokenizer.characters)
    assert text_checks.decoding(made, corpus).passed is False


def test_ids_that_are_not_those_of_the_text_are_caught(tmp_path):
    made = store(tmp_path)
    ids = np.array(made.split("test").ids)
    ids[100] = ids[100] + 1 if ids[100] < made.tokenizer.vocab_size - 1 else ids[100] - 1
    made.split("test").ids = ids
    found = text_checks.decoding(made, HONEST)
    assert found.passed is False
    assert "test0" in found.figure


@pytest.mark.parametrize("kind", ["char", "word", "bpe"])
def test_a_vocabulary_that_saw_held_out_text_is_caught(tmp_path, kind):
    strange = " ".join(f"ßtrange{i}" for i in range(40)) * 3
    corpus = Texts(train=prose(3000, 0), val=prose(200, 1) + strange)

    def cheating(documents):
        return KINDS[kind](documents=[*documents, strange])

    made = store(tmp_path, cheating, corpus)
    honest = KINDS[kind](documents=[corpus.content["train"]])
    found = text_checks.vocabulary(made, honest, None)
    assert found.passed is False
    assert found.details
    # The quick question is not asked of subwords, whose merges say nothing by themselves.
    assert text_checks.vocabulary(made, None, None).passed is (None if kind == "bpe" else False)


def test_a_copied_passage_is_caught_and_shown(tmp_path, kind):
    copied = prose(60, 9)
    corpus = Texts(train=prose(1500, 0) + copied + prose(1500, 3), val=prose(200, 1) + copied + prose(200, 4))
    made = store(tmp_path, KINDS[kind], corpus)
    for found in (text_checks.tokens_overlap(made), text_checks.words_overlap(corpus, made.splits, 3)):
        assert found.passed is False
        assert any(copied[10:60] in line for line in found.details), found.details


class Rows(Texts):
    """A document for each line."""

    def documents(self, split):
        for i, line in enumerate(self.content[split].splitlines()):
            first, space, rest = line.partition(" ")
            yield Document(f"{split}{i}", [first, space + rest])


def rows(n, seed, length=6, source=WORDS[:90]):
    random = np.random.default_rng(seed)
    return "".join(" ".join(random.choice(source, length).tolist()) + "\n" for _ in range(n))


HAN = [chr(0x4E00 + i) for i in range(400)]


def spaceless(n, seed, length=9):
    return rows(n, seed, length, HAN).replace(" ", "")


@pytest.mark.parametrize("make", [rows, spaceless])
def test_short_rows_that_train_has_too_are_caught(tmp_path, kind, make):
    """Each of fewer words than a stretch has: no stretch lies within one."""
    copied = make(8, 1)
    train = make(400, 0) + copied + make(400, 3)
    corpus, other = Rows(train=train, val=make(30, 4) + copied), Rows(train=train, val=make(30, 4) + make(8, 5))
    for each, passed in ((corpus, False), (other, True)):
        made = store(tmp_path, KINDS[kind], each)
        found = [text_checks.words_overlap(each, made.splits, 3)]
        # Words without spaces are a row each: all that is held out is <unk>, but for what was copied.
        if (kind, make) != ("word", spaceless):
            found.append(text_checks.tokens_overlap(made))
        for check in found:
            assert check.passed is passed, check
            assert "documents shorter than a stretch count" in check.details[-1]
            assert any(row in line for row in copied.splitlines() for line in check.details) is not passed


@pytest.mark.parametrize("where", ["inside", "across"])
def test_a_short_row_is_not_shared_for_standing_in_longer_ones(tmp_path, where):
    row = rows(1, 1).strip()
    longer = f"before {row} after\n" if where == "inside" else row.replace(" ", "\n", 3) + "\n"
    corpus = Rows(train=rows(300, 0) + longer, val=rows(20, 4) + row)
    made = store(tmp_path, KINDS["word"], corpus)
    for check in (text_checks.tokens_overlap(made), text_checks.words_overlap(corpus, made.splits, 3)):
        assert check.passed, check


def test_very_short_rows_repeat_and_are_no_fault_but_nothing_passes_for_them(tmp_path, kind):
    answers = "Yes.\nNo.\n嗯。\nI do.\n"
    some = Rows(train=rows(300, 0) + answers * 5, val=rows(40, 4) + answers)
    most = Rows(train=rows(300, 0) + answers * 90, val=rows(2, 4) + answers * 40)
    for corpus, passed in ((some, True), (most, None)):
        made = store(tmp_path, KINDS[kind], corpus)
        for check in (text_checks.tokens_overlap(made), text_checks.words_overlap(corpus, made.splits, 3)):
            assert check.passed is passed, check
            assert ("of val stand in text too short to be asked (under 4 words" in check.figure) is not passed


def test_short_rows_with_unk_are_not_taken_for_each_other(tmp_path):
    train = "".join(f"my own name is {a}\n" for a in "ab" * 30)
    corpus = Rows(train=train, val="".join(f"my own name is {a}{b}\n" for a in "xyz" for b in "uvw"))
    # <unk> is in train as well.
    made = store(tmp_path, partial(word.train, min_count=31, max_vocab=None), corpus)
    check = text_checks.tokens_overlap(made)
    assert check.passed is None
    assert "or with an <unk>" in check.figure


def test_runs_of_unk_are_no_shared_text(tmp_path):
    """Of three words that are known, all other text is one long run of <unk>: which text is not known."""
    made = store(tmp_path, partial(word.train, min_count=1, max_vocab=3))
    check = text_checks.tokens_overlap(made)
    assert check.passed is None
    assert check.figure.startswith("0.00% of val, 0.00% of test in stretches")
    assert "of val stand in text too short to be asked (under 4 words or with an <unk>)" in check.figure


def test_the_last_part_of_train_that_is_read_begins_within_a_document(tmp_path, monkeypatch):
    corpus = Rows(train=rows(300, 0) + rows(1, 1, 8), val=rows(1, 1, 8))
    made = store(tmp_path, KINDS["byte"], corpus)
    assert text_checks.tokens_overlap(made).passed is False
    length = len(made.split("train").ids) - int(made.split("train").doc_starts[-1])
    monkeypatch.setattr(text_checks, "QUICK_TOKENS", length - 1)
    assert text_checks.tokens_overlap(made).passed is True
    monkeypatch.setattr(text_checks, "QUICK_TOKENS", length)
    assert text_checks.tokens_overlap(made).passed is False


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_long_documents_are_decoded_in_parts(tmp_path, monkeypatch, kind, step):
    monkeypatch.setattr(text_checks, "DECODED", step)
    corpus = Rows(train=prose(300, 0), val="é 明月明月, " + prose(300, 1), test=prose(300, 0))
    made = store(tmp_path, KINDS[kind], corpus)
    honest = text_checks.decoding(made, corpus)
    if kind == "word":
        assert honest.passed is None
        return
    assert honest.passed
    read = [text.strip() for text in corpus.content.values() if kind != "char" or "é" not in text]
    assert f"{len(read)} documents, {sum(len(t.encode()) for t in read):,} bytes" in honest.figure
    ids = np.array(made.split("test").ids)
    ids[[5, 6]] = ids[[6, 5]]
    made.split("test").ids = ids
    wrong = text_checks.decoding(made, corpus)
    assert wrong.passed is False
    assert "test, test0:" in wrong.figure


@pytest.mark.parametrize(
    ("decoded", "source", "differ"),
    [
        (["ab", "", "c"], ["a", "bc"], None),
        ([], [""], None),
        (["abd"], ["a", "bc"], ("d", "c")),
        (["ab"], ["a", "bc"], ("", "c")),
        (["ab", "c"], ["ab"], ("c", "")),
    ],
)
def test_texts_are_compared_in_any_pieces(decoded, source, differ):
    assert text_checks._compared(decoded, source) == (len("".join(source)), differ)


def test_an_edited_copy_is_caught_by_words_alone(tmp_path):
    copied = prose(60, 9).split(" ")
    edited = [f"new{i}" if i % 11 == 10 else w for i, w in enumerate(copied)]
    corpus = Texts(train=prose(3000, 0) + " ".join(copied), val=" ".join(edited) + prose(200, 4))
    assert text_checks.tokens_overlap(store(tmp_path, KINDS["word"], corpus)).passed
    assert text_checks.words_overlap(corpus, corpus.splits, 3).passed is False


def test_what_cannot_be_asked_is_said(tmp_path):
    alone = Texts(val=prose(100, 0))
    made = store(tmp_path, byte.train, alone)
    assert text_checks.tokens_overlap(made).passed is None
    assert text_checks.words_overlap(alone, made.splits, 3).passed is None
    assert text_checks.vocabulary(made, None, "it came with the weights").figure == "it came with the weights"
