import pytest

from lmlab.tokenizers import char


def test_specials_come_first_then_characters_by_code_point():
    tokenizer = char.train(["b明a"], min_count=1)
    assert [tokenizer.token(i) for i in range(tokenizer.vocab_size)] == ["<unk>", "<eos>", "a", "b", "明"]
    assert (tokenizer.unk_id, tokenizer.eos_id, tokenizer.start_id) == (0, 1, 1)


def test_characters_of_the_train_split_come_back():
    tokenizer = char.train(["It's\na 明月\0"], min_count=1)
    assert tokenizer.decode(tokenizer.encode("明's\0\n").ids) == "明's\0\n"


def test_others_become_unk_of_their_own_bytes():
    tokenizer = char.train(["ab"], min_count=1)
    encoding = tokenizer.encode("a明\U0010ffffb")
    assert encoding.ids.tolist() == [2, 0, 0, 3]
    assert encoding.ends.tolist() == [1, 4, 8, 9]
    assert tokenizer.decode(encoding.ids) == "a\ufffd\ufffdb"


def test_rare_characters_become_unk():
    assert char.train(["aab"], min_count=2).vocab_size == 3


def test_control_characters_are_shown_escaped_and_spaces_as_they_are():
    tokenizer = char.train(["\n \0\u3000"], min_count=1)
    assert [tokenizer.token(i) for i in range(2, 6)] == ["\\x00", "\\n", " ", "\u3000"]


def test_an_empty_train_split_is_refused():
    with pytest.raises(ValueError, match=r"tokenizer\.min_count=1 .* is it empty"):
        char.train(["", ""], min_count=1)
    with pytest.raises(ValueError, match=r"tokenizer\.min_count=2 .* lower tokenizer\.min_count"):
        char.train(["ab"], min_count=2)
