import re
import unicodedata
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlab.evaluation import overlap as module
from lmlab.evaluation import words as words_module
from lmlab.evaluation.overlap import NEAR, PASSAGE, SHINGLE, STRETCH, Known, covered, overlap, stretches, windows
from lmlab.evaluation.words import Block, blocks, word_spans

RANDOM = np.random.default_rng(0)


def words(n, seed):
    return [f"w{i}" for i in np.random.default_rng(seed).integers(0, 5000, n)]


def text(*parts):
    return " ".join(word for part in parts for word in part)


def shown(source):
    return [source[a:b] for a, b in word_spans(source)[2]]


def test_words_have_neither_case_nor_punctuation_and_a_chinese_character_is_one():
    source = "It's the End, the 明月 end_2."
    assert shown(source) == ["It", "s", "the", "End", "the", "明", "月", "end", "2"]
    hashes, sizes, _ = word_spans(source)
    assert hashes[3] == hashes[7]
    assert hashes[2] == hashes[4]
    assert len(set(hashes.tolist())) == 7
    # Such a character counts half a word.
    assert sizes.tolist() == [2, 2, 2, 2, 2, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("मैंने किताब पढ़ी।", ["मैंने", "किताब", "पढ़ी"]),
        ("اَلْعَرَبِيَّةُ لُغَةٌ", ["اَلْعَرَبِيَّةُ", "لُغَةٌ"]),
        (unicodedata.normalize("NFD", "déjà vu"), [unicodedata.normalize("NFD", "déjà"), "vu"]),
        # No spaces between words: a letter with the marks on it.
        ("ที่นี่ ก", ["ที่", "นี่", "ก"]),
        ("か\u3099x\u0301", ["か\u3099", "x\u0301"]),
        # On no letter a mark is nothing.
        ("\u0301❤\ufe0f a", ["a"]),
    ],
)
def test_marks_join_the_letters_that_they_stand_on(source, found):
    assert shown(source) == found


def test_letters_are_the_same_in_either_case():
    lower, upper = (word_spans(case)[0].tolist() for case in ("straße élan οδοσ жар", "STRAßE ÉLAN ΟΔΟΣ ЖАР"))
    assert lower == upper
    assert len(set(lower)) == 4


LETTERS = "ab é_-1 \n明月\u0301ก\u0e34ß\U00020001"


@given(st.lists(st.lists(st.text(LETTERS, max_size=9), max_size=6), max_size=6), st.integers(1, 8), st.integers(2, 5))
def test_blocks_have_the_words_of_whole_documents(documents, size, kept):
    """Whatever the pieces and the blocks: each word once, in its document, at its place."""
    found = [[] for _ in documents]
    before = words_module.BLOCK
    words_module.BLOCK = size
    try:
        for block in blocks(documents, kept, spans=True):
            assert block.repeated <= kept
            assert (block.offset > 0) == (block.repeated > 0)
            for k, (number, (a, b)) in enumerate(zip(block.numbers, pairwise(block.edges), strict=True)):
                old = block.repeated if k == 0 else 0
                rows = list(zip(block.items[a:b], block.sizes[a:b], map(tuple, block.spans[a:b]), strict=True))
                assert found[number][len(found[number]) - old :] == rows[:old] if old else not found[number]
                found[number] += rows[old:]
                if len(rows) <= kept and not old:
                    assert block.whole[k]
    finally:
        words_module.BLOCK = before
    for pieces, rows in zip(documents, found, strict=True):
        hashes, sizes, places = word_spans("".join(pieces))
        assert rows == list(zip(hashes, sizes, map(tuple, places), strict=True))


def test_a_word_without_end_is_not_carried_for_ever(monkeypatch):
    monkeypatch.setattr(words_module, "BLOCK", 10_000)
    found = blocks([["x" * 100_000]], 5, spans=False)
    assert sum(len(block.items) - block.repeated for block in found) == 10


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 17))
def test_windows_are_the_same_exactly_where_their_items_are(items, n):
    found = windows(np.array(items, np.uint16), n)
    tuples = [tuple(items[i : i + n]) for i in range(len(items) - n + 1)]
    assert len(found) == len(tuples)
    for i, a in enumerate(tuples):
        for j, b in enumerate(tuples):
            assert (found[i] == found[j]) == (a == b)


def block(*documents, sizes=None, first=0):
    edges = np.cumsum([0, *map(len, documents)])
    numbers = np.arange(first, first + len(documents))
    return Block(np.concatenate(documents), sizes, edges, numbers, np.ones(len(documents), bool))


def test_coverage_is_of_whole_stretches_and_names_the_text_that_has_them():
    train = [block(np.arange(100, 130), np.array([99, 5, 6, 7, 8, 98])), block(np.arange(5, 9), first=2)]
    (mark,), (source,) = covered([block(np.arange(20))], train, 4)
    assert np.flatnonzero(mark).tolist() == [5, 6, 7, 8]
    assert np.flatnonzero(source >= 0).tolist() == [5]
    assert source[5] == 1
    assert stretches(mark, np.array([0, 20])).tolist() == [[5, 9]]


def test_stretches_that_meet_are_one_but_for_two_documents():
    (mark,), _ = covered([block(np.arange(12))], [block(np.arange(0, 5), np.arange(3, 9))], 4)
    assert stretches(mark, np.array([0, 12])).tolist() == [[0, 9]]
    assert stretches(mark, np.array([0, 6, 12])).tolist() == [[0, 6], [6, 9]]


def test_a_block_is_hashed_in_parts(monkeypatch):
    random = np.random.default_rng(0)
    held_out, train = ([random.integers(0, 3, n) for n in random.integers(1, 30, 40)] for _ in range(2))
    whole = covered([block(*held_out)], [block(*train)], 6)
    monkeypatch.setattr(module, "STEP", 7)
    parts = covered([block(*held_out)], (part for _, part in module.parts(block(*train), 6)), 6)
    assert 0.2 < whole[0][0].mean() < 0.9
    assert (whole[0][0] == parts[0][0]).all()
    assert (whole[1][0] == parts[1][0]).all()


def test_known_values_are_told_from_those_of_the_same_low_bits():
    low = 1 << module.SIEVE_BITS
    at, places = Known(np.array([7, 5, 7], np.uint64)).places(np.array([5, 7 + low, 7, 6], np.uint64))
    assert (at.tolist(), places.tolist()) == ([0, 1], [0, 2])
    assert not len(Known(np.zeros(0, np.uint64)).places(np.array([5], np.uint64))[0])


def test_a_passage_copied_word_for_word_is_found_with_its_places():
    copied = words(30, 1)
    held_out = {"test": [("h", text(words(200, 2), copied, words(100, 3)))]}
    train = [("a", text(words(500, 4))), ("b", text(words(300, 5), copied, words(300, 6)))]
    found = overlap(held_out, train, 3)["test"]
    assert (found.words, found.same) == (330, 30)
    passage = found.passages[0]
    assert (passage.document, passage.train_document, passage.share) == ("h", "b", 1.0)
    assert passage.text == text(copied)


def test_a_stretch_a_word_shorter_is_chance():
    copied = words(STRETCH - 1, 1)
    held_out = {"test": [("h", text(words(200, 2), copied, words(100, 3)))]}
    assert overlap(held_out, [("a", text(words(90, 4), copied, words(90, 5)))], 3)["test"].either == 0


def test_a_copy_with_every_twelfth_word_changed_is_near():
    """No 13 words in a row are left; of 46 runs of five about 27 are."""
    original = words(150, 1)
    edited = [f"new{i}" if i % 12 == 11 else word for i, word in enumerate(original)]
    found = overlap({"val": [("h", text(edited))]}, [("a", text(words(77, 2), original, words(90, 3)))], 5)["val"]
    assert found.same == 0
    assert (found.near, found.either) == (150, 150)
    assert all(NEAR <= p.share < 1 and p.train_document == "a" for p in found.passages)
    assert len(found.passages) == 150 // PASSAGE


def test_the_share_of_a_near_copy_is_counted_by_hand():
    """One word changed in the middle of a passage: SHINGLE of its runs are gone."""
    original = words(PASSAGE, 1)
    edited = [*original[:25], "new", *original[26:]]
    # Shorter than STRETCH at both sides would be needed to be no stretch; here it is one as well.
    found = overlap({"val": [("h", text(edited))]}, [("a", text(original))], 5)["val"]
    runs = PASSAGE - SHINGLE + 1
    assert (found.same, found.near) == (49, 50)
    assert [round(p.share * runs) for p in found.passages if p.share < 1] == [runs - SHINGLE]


def test_a_copy_across_the_edge_of_two_documents_is_none():
    copied = words(60, 1)
    train = [("a", text(words(80, 2), copied[:10])), ("b", text(copied[10:20], words(80, 3)))]
    assert overlap({"val": [("h", text(copied))]}, train, 5)["val"].either == 0


def test_splits_are_told_apart_and_unrelated_text_shares_nothing():
    copied = words(40, 1)
    splits = {"val": [("v", text(words(300, 2)))], "test": [("t", text(copied))]}
    found = overlap(splits, [("a", text(copied)), ("empty", "")], 5)
    assert found["val"].either == 0
    assert found["val"].passages == []
    assert found["test"].share == 1


def test_formulas_that_are_everywhere_in_train_are_no_near_copies():
    """Twelve words in a row are too few for a stretch; fifty of them stand in two hundred places."""
    formula = words(12, 1)
    passage = [word for _ in range(5) for word in [*formula, f"n{RANDOM.integers(10**6)}"]]
    train = [("a", text(*([*formula, *words(60, 10 + i)] for i in range(200))))]
    assert overlap({"val": [("h", text(passage))]}, train, 5)["val"].near == 0


def plain(documents, train):
    """The straightforward computation of `same` and `near`: strings in sets, whole documents."""

    def items(source):
        return [word.lower() for word in re.findall(r"[明月]|[^\W_明月]+", source)]

    def counts(word):
        return 1 if word in "明月" else 2

    def runs_of(source):
        found, length = [], len(source)
        for a in range(length):
            total, b = 0, a
            while b < length and total < 2 * STRETCH:
                total, b = total + counts(source[b]), b + 1
            if total >= 2 * STRETCH:
                found.append((a, b))
        total = sum(map(counts, source))
        return found or ([(0, length)] if 8 <= total < 2 * STRETCH else [])

    held_out, train = list(map(items, documents)), list(map(items, train))
    known = {(tuple(t[a:b])) for t in train for a, b in runs_of(t)}
    same = [{i for a, b in runs_of(h) if tuple(h[a:b]) in known for i in range(a, b)} for h in held_out]
    near = []
    # Places are numbered through all documents.
    holds, first = {}, 0
    for t in train:
        for i in range(len(t) - SHINGLE + 1):
            holds.setdefault(tuple(t[i : i + SHINGLE]), set()).add(first + i // PASSAGE)
        first += len(t) // PASSAGE + 1
    for h in held_out:
        copied = set()
        for start in range(0, len(h), PASSAGE):
            passage = h[start : start + PASSAGE]
            if len(passage) < PASSAGE // 2:
                continue
            shingles = {tuple(passage[i : i + SHINGLE]) for i in range(len(passage) - SHINGLE + 1)}
            votes = {}
            for shingle in shingles:
                places = holds.get(shingle, set())
                if len(places) <= module.FORMULA:
                    for place in places | {p - 1 for p in places}:
                        votes[place] = votes.get(place, 0) + 1
            if max(votes.values(), default=0) >= NEAR * len(shingles):
                copied |= set(range(start, start + len(passage)))
        near.append(copied)
    words_ = sum(map(len, held_out))
    either = sum(len(a | b) for a, b in zip(same, near, strict=True))
    return words_, sum(map(len, same)), sum(map(len, near)), either


@pytest.mark.parametrize("seed", range(12))
def test_read_in_pieces_it_finds_what_the_straightforward_computation_finds(monkeypatch, seed):
    random = np.random.default_rng(seed)
    vocabulary = ["one", "Two", "three,", "月", "明明", "x", *(f"w{i}" for i in range(400))]

    def prose(n):
        return " ".join(random.choice(vocabulary, n).tolist())

    shared = [prose(n) for n in (2, 5, 12, 13, 20, 60, 130)]
    lengths = random.integers(1, 200, 30)
    train = [prose(n) + " " + shared[random.integers(7)] + " " + prose(n) for n in lengths] + shared
    edited = [" ".join(w if random.random() > 0.08 else "new" for w in t.split()) for t in train[:8]]
    documents = [
        *(prose(n) for n in lengths[:8]),
        *shared,
        *edited,
        prose(9) + " " + shared[5],
        "",
        "明月" * 3 + shared[6],
    ]

    def pieces(source):
        cuts = np.sort(random.integers(0, len(source) + 1, 3)).tolist()
        return [source[a:b] for a, b in pairwise([0, *cuts, len(source)])]

    monkeypatch.setattr(words_module, "BLOCK", int(random.integers(20, 4000)))
    monkeypatch.setattr(module, "STEP", int(random.integers(20, 4000)))
    monkeypatch.setattr(module, "FORMULA", int(random.integers(3, 100)))
    train_documents = [(f"t{i}", pieces(source)) for i, source in enumerate(train)]
    found = overlap({"val": [(f"h{i}", pieces(s)) for i, s in enumerate(documents)]}, train_documents, 99)["val"]
    assert (found.words, found.same, found.near, found.either) == plain(documents, train)
    assert 0 < found.same < found.either < found.words
    for passage in found.passages:
        assert passage.text in documents[int(passage.document[1:])]
        if passage.share == 1:
            # Its first stretch, or all of a short document, stands in the one that is named.
            first, theirs = (word_spans(s)[0] for s in (passage.text, train[int(passage.train_document[1:])]))
            n = min(STRETCH, len(first))
            assert any(np.array_equal(theirs[i : i + n], first[:n]) for i in range(len(theirs) - n + 1))


@pytest.mark.parametrize("row", ["I am fine, thank you.", "我很好谢谢你们的"])
def test_a_short_document_that_is_a_whole_one_of_train_is_shared(row):
    rows = [("a", text(words(40, 1))), ("b", row), ("c", "Yes.")]
    found = overlap({"val": [("h", row), ("i", "Yes."), ("j", "It is not so at all.")]}, rows, 3)["val"]
    n = len(word_spans(row)[0])
    assert (found.same, found.either) == (n, n)
    assert (found.short, found.unasked) == (n + 1 + 6, 1)
    assert [(p.document, p.train_document, p.share) for p in found.passages] == [("h", "b", 1.0)]


def test_a_short_document_within_a_longer_one_or_with_another_word_is_not_shared():
    row = text(words(8, 1))
    train = [("a", row + " more"), ("b", text(words(7, 1))), ("c", row.replace(" ", " more ", 1))]
    assert overlap({"val": [("h", row)]}, train, 3)["val"].either == 0


def test_a_stretch_of_chinese_is_as_long_as_one_of_words():
    characters = [chr(0x4E00 + i) for i in np.random.default_rng(0).permutation(3000)]
    copied = "".join(characters[:26])
    around = ["".join(characters[i : i + 40]) for i in (100, 200, 300, 400)]
    for length, same in ((25, 0), (26, 26)):
        held_out = {"val": [("h", around[0] + copied[:length] + around[1])]}
        assert overlap(held_out, [("a", around[2] + copied[:length] + around[3])], 3)["val"].same == same
