import pytest

from lmlab.tokenizers import word


def tokens(tokenizer, text):
    return [tokenizer.token(i) for i in tokenizer.encode(text).ids]


@pytest.fixture(scope="module")
def small():
    return word.train([" the cat \n the <unk> dog \n", "the dog"], min_count=1, max_vocab=None)


def test_specials_come_first_then_words_by_falling_count(small):
    assert [small.token(i) for i in range(small.vocab_size)] == ["<unk>", "<eos>", "the", "dog", "cat"]


def test_each_newline_is_an_eos_and_a_literal_unk_is_unk(small):
    assert tokens(small, " \n the <unk> zebra \n\n") == ["<eos>", "the", "<unk>", "<unk>", "<eos>", "<eos>"]


def test_a_literal_eos_is_an_unknown_word(small):
    assert tokens(small, "the <eos> dog") == ["the", "<unk>", "dog"]
    assert "<eos>" not in word.train(["<eos> a"], min_count=1, max_vocab=None).words


def test_white_space_falls_to_the_token_after_it(small):
    #            0123456789..
    encoding = small.encode("  the\u3000cat \n dog  ")
    assert encoding.ends.tolist() == [5, 11, 13, 17]
    assert encoding.ends[-1] + 2 == len("  the\u3000cat \n dog  ".encode())


def test_a_text_of_spaces_has_no_tokens(small):
    assert len(small.encode("  \t ")) == len(small.encode("")) == 0


def test_only_an_open_line_needs_an_eos(small):
    assert small.needs_eos("the dog")
    assert small.needs_eos("the dog \n ")
    assert not small.needs_eos("the dog \n")
    assert not small.needs_eos("")


def test_counts_are_words_and_lines():
    lines = [" = Title = \n", " \n", " one <unk> two . \n"]
    tokenizer = word.train(lines, min_count=1, max_vocab=None)
    assert len(tokenizer.encode("".join(lines))) == sum(len(line.split()) + 1 for line in lines)


def test_rare_words_become_unk(small):
    tokenizer = word.train(["a a b b c"], min_count=2, max_vocab=None)
    assert tokens(tokenizer, "a b c") == ["a", "b", "<unk>"]


def test_max_vocab_counts_the_specials():
    tokenizer = word.train(["a a a b b c"], min_count=1, max_vocab=4)
    assert tokenizer.vocab_size == 4
    assert tokens(tokenizer, "a b c") == ["a", "b", "<unk>"]
    with pytest.raises(ValueError, match=r"tokenizer\.max_vocab=2"):
        word.train(["a"], min_count=1, max_vocab=2)


def test_too_many_distinct_words_are_refused_or_the_rarest_forgotten(monkeypatch):
    monkeypatch.setattr(word, "MAX_DISTINCT", 10)
    texts = ["often often"] + [f"w{i} often" for i in range(50)]
    with pytest.raises(ValueError, match=r"min_count=1 and max_vocab=null.*tokenizer=bpe"):
        word.train(texts, min_count=1, max_vocab=None)
    assert word.train(texts, min_count=20, max_vocab=None).words == ["often"]


def test_an_empty_train_split_is_refused():
    with pytest.raises(ValueError, match=r"tokenizer\.min_count=1 .* is it empty"):
        word.train([" \n "], min_count=1, max_vocab=None)


def test_text_without_spaces_has_no_word_twice_and_is_told_what_suits_it():
    with pytest.raises(ValueError, match=r"tokenizer\.min_count=2 .* lower tokenizer\.min_count, or .*=char or bpe"):
        word.train(["明月几时有\n", "把酒问青天\n"], min_count=2, max_vocab=None)
