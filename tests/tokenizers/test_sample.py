import pytest

from lmlab.tokenizers.sample import CHUNK, sample

WORDS = "the quick brown fox "


def test_all_of_a_small_corpus_is_taken():
    documents = ["a b", "", "c\n"]
    assert sample(documents, 100) == documents


def test_a_long_document_is_cut_before_white_space():
    text = WORDS * 5_000
    chunks = sample([text], len(text))
    assert "".join(chunks) == text
    assert len(chunks) > 3
    assert all(chunk[0] == " " and chunk[-1] != " " for chunk in chunks[1:-1])


def test_text_without_white_space_is_cut_too():
    text = "明" * (5 * CHUNK)
    chunks = sample([text], 10 * len(text))
    assert "".join(chunks) == text
    assert max(map(len, chunks)) <= 2 * CHUNK


def test_the_sample_is_nearly_full_never_over_and_evenly_spread():
    documents = [f"{i:07d}" * 10 for i in range(10_000)]
    kept = sample(iter(documents), 140_000)
    size = sum(map(len, kept))
    assert 0.9 * 140_000 < size <= 140_000
    at = [int(chunk[:7]) for chunk in kept]
    assert at == sorted(at)
    tenths = [sum(lo <= i < lo + 1_000 for i in at) for lo in range(0, 10_000, 1_000)]
    assert max(tenths) - min(tenths) <= 0.1 * len(at) / 10 + 2
    assert kept == sample(iter(documents), 140_000)


def test_no_size_is_refused():
    with pytest.raises(ValueError, match="sample_bytes=0"):
        sample(["a"], 0)
