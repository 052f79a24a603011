import numpy as np

from lmlab.tokenizers import byte


def test_ids_are_byte_values_and_eos_is_256():
    tokenizer = byte.train([])
    assert tokenizer.vocab_size == 257
    assert tokenizer.eos_id == tokenizer.start_id == 256
    encoding = tokenizer.encode("é\0")
    assert encoding.ids.tolist() == [0xC3, 0xA9, 0]
    assert encoding.ends.tolist() == [1, 2, 3]


def test_bytes_that_are_no_text_are_shown_as_hex():
    tokenizer = byte.train([])
    assert [tokenizer.token(i) for i in (0xC3, 65, 32, 10, 256)] == ["\\xc3", "A", " ", "\\n", "<eos>"]


def test_eos_stands_for_no_text():
    assert byte.train([]).decode(np.array([65, 256, 66])) == "AB"
