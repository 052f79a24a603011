import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lmlab.evaluation.overlap import NEAR, PASSAGE, SHINGLE, STRETCH, covered, overlap, stretches, windows, word_spans

RANDOM = np.random.default_rng(0)


def words(n, seed):
    return [f"w{i}" for i in np.random.default_rng(seed).integers(0, 5000, n)]


def text(*parts):
    return " ".join(word for part in parts for word in part)


def test_words_have_neither_case_nor_punctuation_and_a_chinese_character_is_one():
    hashes, spans = word_spans("It's the End, the 明月 end.")
    shown = ["It's the End, the 明月 end."[a:b] for a, b in spans]
    assert shown == ["It", "s", "the", "End", "the", "明", "月", "end"]
    assert hashes[3] == hashes[7]
    assert len(set(hashes.tolist())) == 6


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 17))
def test_windows_are_the_same_exactly_where_their_items_are(items, n):
    found = windows(np.array(items, np.uint16), n)
    tuples = [tuple(items[i : i + n]) for i in range(len(items) - n + 1)]
    assert len(found) == len(tuples)
    for i, a in enumerate(tuples):
        for j, b in enumerate(tuples):
            assert (found[i] == found[j]) == (a == b)


def test_coverage_is_of_whole_stretches_and_names_the_text_that_has_them():
    held_out = np.arange(20)
    marks, where = covered([held_out], [np.arange(100, 130), np.array([99, 5, 6, 7, 8, 98]), np.arange(5, 9)], 4)
    assert np.flatnonzero(marks[0]).tolist() == [5, 6, 7, 8]
    assert where == {(0, 5): 1}
    assert stretches(marks[0]).tolist() == [[5, 9]]


def test_stretches_that_meet_are_one():
    marks, _ = covered([np.arange(12)], [np.arange(0, 5), np.arange(3, 9)], 4)
    assert stretches(marks[0]).tolist() == [[0, 9]]


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
