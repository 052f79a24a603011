from lmlab.tokenizers import StreamDecoder


def test_an_unfinished_character_waits(kinds):
    stream = StreamDecoder(kinds["byte"])
    assert [stream.push(b) for b in "明a".encode()] == ["", "", "明", "a"]
    assert stream.flush() == ""


def test_a_character_that_never_ends_is_replaced(kinds):
    stream = StreamDecoder(kinds["byte"])
    assert stream.push(0xE6) == ""
    assert stream.flush() == "\ufffd"


def test_words_get_their_spaces_as_they_come(kinds):
    word = kinds["word"]
    stream = StreamDecoder(word)
    ids = word.encode("The people\nof times").ids
    assert [stream.push(i) for i in ids] == ["The", " people", "\n", "of", " times"]


def test_a_prompt_that_was_pushed_is_continued_with_a_space(kinds):
    word = kinds["word"]
    prompt, rest = word.encode("The people").ids, word.encode("of times").ids
    stream = StreamDecoder(word)
    for i in prompt:
        stream.push(i)
    assert "".join(map(stream.push, rest)) == " of times"


def test_several_at_once_are_the_same_as_one_by_one(kinds):
    for tokenizer in kinds.values():
        ids = tokenizer.encode("The people 明月\nof times").ids
        stream = StreamDecoder(tokenizer)
        parts = [stream.push_all(ids[:2]), stream.push_all([]), stream.push_all(ids[2:5]), stream.push_all(ids[5:])]
        assert "".join(parts) + stream.flush() == tokenizer.decode(ids)
