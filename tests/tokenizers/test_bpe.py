import os
import subprocess
import sys

import numpy as np
import pytest

import tokenizers
from lmlab.tokenizers import bpe, bytelevel, subwords


def test_bytes_are_spelt_as_gpt2_spells_them():
    assert sorted(bytelevel.CHARACTERS) == sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    whole = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    text = "".join(map(chr, range(0x800)))
    assert bytelevel.to_bytes("".join(piece for piece, _ in whole.pre_tokenize_str(text))) == text.encode()


def test_the_most_frequent_pair_is_merged_first():
    # "ab" four times, "bc" twice.
    tokenizer = bpe.train(["ab ab abc abc"], vocab_size=258, min_frequency=2, sample_bytes=100)
    assert tokenizer.token(257) == "ab"


def test_a_character_split_between_tokens_is_split_between_their_spans():
    tokenizer = bpe.train(["abc"], vocab_size=257, min_frequency=2, sample_bytes=100)
    encoding = tokenizer.encode("明")
    assert encoding.ends.tolist() == [1, 2, 3]
    assert [tokenizer.token(i) for i in encoding.ids] == ["\\xe6", "\\x98", "\\x8e"]


def test_text_full_of_look_alikes_teaches_no_special_token():
    tokenizer = bpe.train(["a<eos>b <eos>" * 50], vocab_size=300, min_frequency=2, sample_bytes=10_000)
    assert tokenizer.eos_id not in tokenizer.encode("<eos> a<eos>").ids
    assert tokenizer.decode(tokenizer.encode("<eos>").ids) == "<eos>"


def test_training_again_gives_the_same_tokenizer(kinds):
    text = ["the state of the Union, 明月几时有 " * 20]
    one, two = (bpe.train(text, vocab_size=300, min_frequency=2, sample_bytes=10_000) for _ in range(2))
    assert one.to_json() == two.to_json()


def test_short_text_gives_fewer_tokens_than_asked_and_that_is_said(caplog):
    caplog.set_level("INFO", "lmlab")
    assert bpe.train(["ab"], vocab_size=257, min_frequency=2, sample_bytes=100).vocab_size == 257
    assert caplog.messages == []
    assert bpe.train(["ab"], vocab_size=4096, min_frequency=2, sample_bytes=100).vocab_size == 257
    assert caplog.messages == ["tokenizer.vocab_size=4096: the train split gives 257 entries, no more"]


def test_a_vocabulary_without_room_for_bytes_is_refused():
    with pytest.raises(ValueError, match=r"tokenizer\.vocab_size=256 must be at least 257"):
        bpe.train(["ab"], vocab_size=256, min_frequency=2, sample_bytes=100)


def test_an_empty_train_split_is_refused():
    with pytest.raises(ValueError, match="no text in the train split"):
        bpe.train([""], vocab_size=300, min_frequency=2, sample_bytes=100)


@pytest.mark.parametrize("name", ["bpe", "unigram", "pretrained"])
@pytest.mark.parametrize(
    "text", ["the people , of\n  the times .\n" * 300, "明月几时有？\n把酒问青天。　今夕\n" * 2 + "月" * 5000]
)
@pytest.mark.parametrize("repeats", [1, 10**9])
def test_cutting_at_spaces_changes_no_token(kinds, name, text, repeats, monkeypatch):
    monkeypatch.setattr(subwords, "REPEATS", repeats)
    tokenizer = kinds[name]
    assert tokenizer.cuts_at_space
    whole = tokenizer.rust.encode(text, add_special_tokens=False).ids
    np.testing.assert_array_equal(tokenizer.encode(text).ids, whole)


def test_large_batches_are_encoded_in_groups(kinds, monkeypatch):
    texts = ["the people", "", "of the times", "明月"]
    before = kinds["bpe"].encode_batch(texts)
    monkeypatch.setattr(subwords, "_GROUP", 3)
    for one, other in zip(before, kinds["bpe"].encode_batch(texts), strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)


FORK = """
import os
from lmlab.tokenizers import bpe
tokenizer = bpe.train(["some text, more text"] * 9, vocab_size=270, min_frequency=2, sample_bytes=1000)
texts = [f"text {i}" for i in range(200)]
tokenizer.encode_batch(texts)
child = os.fork()
if not child:
    tokenizer.encode_batch(texts)
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_encodes_without_hanging_or_warning():
    environment = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"}
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=True)
    assert done.stdout.strip() == "7"
    assert done.stderr == ""


@pytest.mark.parametrize("name", ["bpe", "unigram", "unigram_unk", "pretrained"])
def test_ways_of_encoding_agree(kinds, name, monkeypatch):
    words = [
        "the people , of\n  the 龘 times .\n",
        "\n \n\tState of  it's 1859\r\n",
        "明月几时有？ ",
        " \x1c !\x1c of the ",
    ]
    texts = [*(word * 40 for word in words), "", "明月" * 3000, "".join(words * 9)]
    found = []
    # Every text as it is; words looked up; long stretches.
    for repeats, word in [(10**9, 1), (1, 10**9), (1, 0)]:
        monkeypatch.setattr(subwords, "REPEATS", repeats)
        monkeypatch.setattr(subwords, "WORD", word)
        found.append([(e.ids.tolist(), e.ends.tolist()) for e in kinds[name].encode_batch(texts)])
    assert found[0] == found[1] == found[2]
