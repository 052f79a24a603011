import subprocess
import sys

import pytest

from lmlab.tokenizers import unigram

TEXT = ["the cat sat on the mat , the dog sat too .\n", "明月几时有？把酒问青天。\n"] * 10


def train(documents=TEXT, vocab_size=400, byte_fallback=True, character_coverage=1.0, sample_bytes=10_000):
    return unigram.train(documents, vocab_size, byte_fallback, character_coverage, sample_bytes)


def test_specials_then_bytes_then_pieces_by_falling_probability():
    tokenizer = train()
    assert [tokenizer.token(i) for i in (0, 1, 2, 12, 257)] == ["<unk>", "<eos>", "\\x00", "\\n", "\\xff"]
    scores = [score for _, score in tokenizer.content["model"]["vocab"][258:]]
    assert scores == sorted(scores, reverse=True)


def test_rare_characters_are_spelt_in_bytes():
    tokenizer = train()
    encoding = tokenizer.encode("the 龘")
    assert encoding.ids[-3:].tolist() == [b + 2 for b in "龘".encode()]
    assert encoding.ends.tolist()[-4:] == [4, 5, 6, 7]


def test_without_fallback_a_run_of_unknown_characters_is_one_unk_with_all_their_bytes():
    tokenizer = train(vocab_size=120, byte_fallback=False)
    encoding = tokenizer.encode("龘龘 the")
    assert encoding.ids[0] == tokenizer.unk_id
    assert encoding.ends[0] == 6
    assert tokenizer.decode(encoding.ids) == "\ufffd the"
    assert not tokenizer.lossless


def test_characters_beyond_the_coverage_get_no_piece():
    pieces = {name for name, _ in train(["a" * 98 + " bc"], character_coverage=0.98).content["model"]["vocab"]}
    assert "a" in pieces
    assert not pieces & {"b", "c"}


def test_text_with_nul_trains():
    tokenizer = train(["a\0b the cat"] * 5)
    assert tokenizer.decode(tokenizer.encode("a\0b").ids) == "a\0b"


def test_a_vocabulary_too_small_for_the_characters_is_refused_with_the_size_it_needs():
    with pytest.raises(ValueError, match=r"vocab_size=260 cannot hold the \d+ characters.*raise it to \d+"):
        train(vocab_size=260)


@pytest.mark.parametrize("coverage", [0.0, 1.5])
def test_an_impossible_coverage_is_refused(coverage):
    with pytest.raises(ValueError, match=f"character_coverage={coverage}"):
        train(character_coverage=coverage)


def test_an_empty_train_split_is_refused():
    with pytest.raises(ValueError, match="no text in the train split"):
        train([""])


PRINT = """
from lmlab.tokenizers import unigram
text = ["the cat sat on the mat , the dog sat too and so did all the other dogs and cats .\\n"] * 3
text += [" ".join(str(i * 7919) for i in range(200))]
print(unigram.train(text, 330, True, 1.0, 10_000).to_json())
"""


def test_another_process_trains_the_same_tokenizer():
    # Rust seeds its hashes anew in each process, and sums in their order.
    one, two = (subprocess.check_output([sys.executable, "-c", PRINT], timeout=60) for _ in range(2))
    assert one == two


def test_an_unknown_stretch_spans_its_own_bytes_whatever_the_others_add_up_to(kinds):
    text = "龘龘 the \x01\u00e9"  # in bytes 6, 1, 3, 1, then 1 and 2 in one: <unk> is written with 3 each time
    tokenizer = kinds["unigram_unk"]
    encoding, source = tokenizer.encode(text), text.encode()
    starts = [0, *encoding.ends.tolist()]
    unknown = [source[starts[i] : starts[i + 1]].decode() for i in range(len(encoding)) if encoding.ids[i] == 0]
    assert unknown[0] == "龘龘"
    assert "".join(unknown[1:]).endswith("\x01é")
