"""Units that are looked up give what the tokenizer gives for the whole text."""

import threading

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lmlab.tokenizers import lexicon
from lmlab.tokenizers.lexicon import Lexicon

NAMES = ["bpe", "unigram", "unigram_unk", "pretrained"]
SPACES = [" ", "  ", "\n", "\t", "\r\n", "\xa0", "\x85", "\u3000", "\u2028", "\x1c", "\x1f", "\0"]
WORDS = ["the", "people", "!", "'s", "3", "明月", "，", "龘", "e\u0301", "😀", "<unk>", " of the", " the\n"]
FRAGMENTS = st.sampled_from(SPACES + WORDS)
TEXTS = st.lists(st.one_of(st.lists(FRAGMENTS, max_size=15).map("".join), st.text(max_size=20)), max_size=4)


def whole(tokenizer, texts):
    """Ids and sizes of each text, by Rust from the text as it is."""
    found = []
    for text in texts:
        ids, sizes, _ = tokenizer.encode_units([text])
        assert ids.tolist() == tokenizer.rust.encode(text, add_special_tokens=False).ids
        found.append((ids.tolist(), sizes.tolist()))
    return found


def plain(found):
    return [(ids.tolist(), sizes.tolist()) for ids, sizes in found]


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(NAMES), texts=TEXTS)
@example(name="bpe", texts=["a\n b", "a\n \nb", " \n", "a  ", "\x1c b!\x1c c"])
@example(name="unigram_unk", texts=["龘龘 the 龘 \x01 é of", "龘 龘龘"])
def test_looking_units_up_equals_encoding_the_text(kinds, name, texts):
    known = Lexicon(kinds[name].encode_units)
    for _ in range(2):  # the second time nothing is new
        assert plain(known(texts)) == whole(kinds[name], texts)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_remembered_from_other_texts_changes_nothing(kinds, name):
    known, texts = Lexicon(kinds[name].encode_units), ["the people of", "of the  people\n", "明月 the of"]
    for text in [*texts, *texts[::-1]]:
        assert plain(known([text])) == whole(kinds[name], [text])


def test_a_unit_is_encoded_once(kinds):
    asked = []

    def encode(units):
        asked.extend(units)
        return kinds["bpe"].encode_units(units)

    known = Lexicon(encode)
    known(["the people of the people of the United"])
    known(["the people of States"])
    # "the" begins a text, " the" stands inside one.
    assert "".join(asked) == "the people of the United States"


def test_it_forgets_when_it_is_full(kinds, monkeypatch):
    monkeypatch.setattr(lexicon, "REMEMBERED", 12)
    known = Lexicon(kinds["bpe"].encode_units)
    for text in ["the people of", "a few other words", "the people of"]:
        assert plain(known([text])) == whole(kinds["bpe"], [text])
        assert known._remembered <= 12


def test_it_goes_on_after_an_error(kinds):
    fails = [True]

    def encode(units):
        if fails:
            raise ValueError(fails.pop())
        return kinds["bpe"].encode_units(units)

    known = Lexicon(encode)
    with pytest.raises(ValueError, match="True"):
        known(["the people"])
    assert plain(known(["the people"])) == whole(kinds["bpe"], ["the people"])


def test_threads_share_one(kinds):
    known, got = Lexicon(kinds["bpe"].encode_units), {}
    texts = [" ".join(f"the{i * j % 97} people" for j in range(500)) for i in range(8)]

    def ask(i):
        got[i] = [plain(known([text])) for text in texts]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = [whole(kinds["bpe"], [text]) for text in texts]
    assert [got[i] for i in range(4)] == [expected] * 4


def test_white_space_is_unicodes_and_not_pythons():
    assert lexicon._LIST.isspace()
    others = {c for c in map(chr, range(0x110000)) if c.isspace()} - set(lexicon._LIST)
    assert others == set("\x1c\x1d\x1e\x1f")
    assert np.flatnonzero(lexicon._IS_SPACE).tolist() == sorted(map(ord, lexicon._LIST))
