"""What every kind promises."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import tokenizers
from lmlab.tokenizers import StreamDecoder, Tokenizer, load

LOOK_ALIKES = "<eos><unk><|endoftext|><0x0A> <eos> ▁ Ġ Ċ"
ODD = [
    "",
    " ",
    "\n",
    "\0",
    "\u0301",
    "e\u0301",
    "\u3000",
    "\x85\x1c",
    "😀\U0010ffff",
    "  \n \t x  ",
    "a\r\nb",
    LOOK_ALIKES,
]
FRAGMENTS = st.sampled_from([*ODD, "the ", "people", " of", "明月", "，", "\n", "  ", "3", "'s", "<unk> "])
TEXTS = st.one_of(st.text(max_size=30), st.lists(FRAGMENTS, max_size=12).map("".join))
few = settings(max_examples=40, deadline=None)


def spans(encoding):
    return np.diff(encoding.ends, prepend=0)


def test_fits_the_protocol(tokenizer):
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.specials[tokenizer.token(tokenizer.eos_id)] == tokenizer.eos_id
    assert tokenizer.start_id in tokenizer.specials.values()


@few
@given(text=TEXTS)
@example(text=LOOK_ALIKES)
def test_decode_after_encode_is_the_identity_where_promised(lossless, text):
    assert lossless.lossless
    assert lossless.decode(lossless.encode(text).ids) == text


def test_others_promise_no_identity(kinds):
    assert not any(kinds[name].lossless for name in ("char", "word", "unigram_unk"))


@few
@given(text=TEXTS)
def test_ends_partition_the_bytes_of_the_source(tokenizer, text):
    encoding = tokenizer.encode(text)
    assert encoding.ids.dtype == np.int32
    assert encoding.ends.dtype == np.int64
    assert len(encoding.ids) == len(encoding.ends)
    assert (spans(encoding) >= 0).all()
    claimed = encoding.ends[-1] if len(encoding) else 0
    if tokenizer.kind == "word":
        assert text.encode()[claimed:].decode().strip() == ""
    else:
        assert claimed == len(text.encode())


@few
@given(text=TEXTS)
def test_no_text_becomes_a_special_token(tokenizer, text):
    allowed = {tokenizer.unk_id, tokenizer.eos_id if tokenizer.kind == "word" else None}
    found = set(tokenizer.encode(text).ids.tolist()) & set(tokenizer.specials.values())
    assert found <= allowed
    if tokenizer.kind == "word":
        ids = tokenizer.encode(text).ids
        assert (ids == tokenizer.eos_id).sum() == text.count("\n")


@few
@given(texts=st.lists(TEXTS, max_size=5))
def test_a_batch_equals_its_texts(tokenizer, texts):
    for one, text in zip(tokenizer.encode_batch(texts), texts, strict=True):
        np.testing.assert_array_equal(one.ids, tokenizer.encode(text).ids)
        np.testing.assert_array_equal(one.ends, tokenizer.encode(text).ends)


def test_a_cut_before_white_space_after_a_letter_changes_no_token(tokenizer):
    text = "The people of the United States know it .\n明月几时有\n" * 3
    cuts = [i for i in range(1, len(text)) if text[i - 1].isalnum() and text[i].isspace()]
    whole = tokenizer.encode(text)
    for i in cuts:
        a, b = tokenizer.encode_batch([text[:i], text[i:]])
        np.testing.assert_array_equal(np.concatenate([a.ids, b.ids]), whole.ids)
        np.testing.assert_array_equal(np.concatenate([a.ends, len(text[:i].encode()) + b.ends]), whole.ends)


@few
@given(data=st.data())
def test_pushed_text_equals_decoded_text(tokenizer, data):
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=20))
    stream = StreamDecoder(tokenizer)
    assert "".join(map(stream.push, ids)) + stream.flush() == tokenizer.decode(ids)


def test_chinese_comes_back(tokenizer):
    text = "明月几时有？把酒问青天。"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_save_then_load_is_exact(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = load(tmp_path / "tokenizer.json")
    assert loaded.to_json() == tokenizer.to_json()
    for name in ("kind", "vocab_size", "specials", "eos_id", "start_id", "unk_id", "lossless"):
        assert getattr(loaded, name) == getattr(tokenizer, name)
    for text in [*ODD, "The Union, 明月 xyz"]:
        np.testing.assert_array_equal(loaded.encode(text).ids, tokenizer.encode(text).ids)
    ids = range(tokenizer.vocab_size)
    assert [loaded.token(i) for i in ids] == [tokenizer.token(i) for i in ids]
    assert loaded.decode(ids) == tokenizer.decode(ids)
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"]


def test_other_tools_read_the_file_and_agree(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    other = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = "The people, of 1859 :  明月 é\nof the\n"
    assert other.encode(text, add_special_tokens=False).ids == tokenizer.encode(text).ids.tolist()
    assert other.token_to_id(tokenizer.token(tokenizer.eos_id)) == tokenizer.eos_id


def test_unknown_names_each_once_in_order(kinds):
    text = "The Zebra 龘 of Zebra\n"
    assert kinds["char"].unknown(text) == ["Z", "龘"]
    assert kinds["word"].unknown(text + "<unk>") == ["Zebra", "龘"]
    assert kinds["unigram_unk"].unknown("龘 of") == ["龘"]
    for name in ("byte", "bpe", "unigram", "pretrained"):
        assert kinds[name].unknown(text) == []


def test_ids_outside_the_vocabulary_are_refused(tokenizer):
    for bad in (-100, tokenizer.vocab_size):
        with pytest.raises(ValueError, match=f"token id {bad} is outside"):
            tokenizer.decode([0, bad])
