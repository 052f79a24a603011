"""From bytes to pieces: errors name the byte, cuts change no text and no word, separators lose nothing."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlab.data.corpora import text
from lmlab.data.corpora.text import cut, decoded, lines, separated


def chunked(data, size):
    return [data[i : i + size] for i in range(0, len(data), size)]


@given(st.text(), st.integers(1, 7))
def test_decoding_in_blocks_gives_the_text(content, size):
    content = content.replace("\0", "").removeprefix("\ufeff")
    assert "".join(decoded(chunked(content.encode(), size), "a.txt")) == content


def test_line_ends_are_kept_and_a_byte_order_mark_is_not_text():
    assert "".join(decoded([b"\xef\xbb\xbfa\r\nb\rc\n"], "a.txt")) == "a\r\nb\rc\n"


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_a_byte_that_is_no_utf8_is_named_with_its_offset(size):
    data = "né".encode() * 3 + b"caf\xe9 au lait"
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8: byte 0xe9 at offset 12; convert it with: iconv"):
        list(decoded(chunked(data, size), "a.txt"))


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        ("第一回　甄士隐梦幻识通灵，贾雨村风尘怀闺秀。\n", "gb18030"),
        ("明月几时有？He asked the sky.\n把酒问青天。", "gb18030"),
        ("L'été dernier, nous étions à la plage; où êtes-vous allés?\n", "windows-1252"),
        ("Größere Städte prägten früh schon das Gefühl für Weite.", "windows-1252"),
    ],
)
def test_the_remedy_for_other_bytes_gives_the_text_back(content, encoding):
    data = content.encode(encoding) * 20
    with pytest.raises(ValueError, match="is not UTF-8") as raised:
        list(decoded([data[:777]], "a.txt"))
    assert data.decode(re.search(r"iconv -f (\S+)", str(raised.value))[1]) == content * 20


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("damaged", [b"\xff", b"\xe7\x94"], ids=["a stray byte", "half a character"])
def test_damaged_utf8_is_not_taken_for_another_encoding(damaged, size):
    """Converted from another, all of the text would turn into nonsense."""
    content = "第一回　甄士隐梦幻识通灵，贾雨村风尘怀闺秀。\n"
    for data in (content.encode() + damaged, content.encode() + damaged + content.encode()):
        with pytest.raises(ValueError, match=r"damaged or cut off; .* iconv -c -f UTF-8 -t UTF-8 a\.txt"):
            list(decoded(chunked(data, size), "a.txt"))


def test_a_character_that_is_cut_off_at_the_end_is_named():
    with pytest.raises(ValueError, match="byte 0xe4 at offset 2"):
        list(decoded([b"ab\xe4\xb8"], "a.txt"))


def test_binary_and_utf16_are_named():
    with pytest.raises(ValueError, match="NUL byte at offset 4"):
        list(decoded([b"ab", b"cd\0e"], "a.txt"))
    with pytest.raises(ValueError, match=r"UTF-16.*iconv -f UTF-16"):
        list(decoded(["hi".encode("utf-16")], "a.txt"))


@given(st.text(alphabet="ab\n\u2028\r"), st.integers(1, 5))
def test_only_a_newline_ends_a_line(content, size):
    found = list(lines(chunked(content, size)))
    assert "".join(found) == content
    assert found == re.findall(r"[^\n]*\n|[^\n]+", content)


@given(st.text(alphabet="ab\n"), st.integers(1, 4))
def test_line_ends_of_windows_end_documents_as_others_do(content, size):
    ours, theirs = (
        [part.replace("\r", "") for _, part in separated(chunked(text, size), "\n\n")]
        for text in (content, content.replace("\n", "\r\n"))
    )
    assert theirs == ours


@given(st.text(alphabet="ab\n"), st.integers(1, 4), st.sampled_from(["\n\n", "\n", "ab"]))
def test_a_document_ends_with_its_separators_wherever_chunks_end(content, size, separator):
    whole = [d for d in re.findall(rf"(?s).*?(?:{separator})+|.+", content) if d]
    # What is left after the last separator and is only a part of one is no document.
    if len(whole) > 1 and separator.startswith(whole[-1]):
        whole[-2:] = [whole[-2] + whole[-1]]
    documents = {}
    for number, part in separated(chunked(content, size), separator):
        documents[number] = documents.get(number, "") + part
    assert list(documents.values()) == whole
    assert list(documents) == list(range(1, len(whole) + 1))


def test_a_long_document_leaves_in_parts(monkeypatch):
    monkeypatch.setattr(text, "PIECE", 10)
    parts = list(separated(chunked("x" * 95 + "\n\n" + "y", 8), "\n\n"))
    assert max(len(part) for _, part in parts) <= 20
    assert "".join(part for number, part in parts if number == 1) == "x" * 95 + "\n\n"
    assert parts[-1] == (2, "y")


@given(st.lists(st.sampled_from(["word ", "42\n", "x.  ", "词", "-"]), max_size=80).map("".join), st.integers(1, 50))
def test_pieces_are_bounded_and_join_to_the_text(content, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "PIECE", 16)
        patch.setattr(text, "LONGEST", 64)
        pieces = list(cut(chunked(content, size)))
    assert "".join(pieces) == content
    assert all(0 < len(piece) <= 64 for piece in pieces)


def test_a_piece_ends_with_a_word_and_the_next_begins_with_its_space(monkeypatch):
    monkeypatch.setattr(text, "PIECE", 16)
    monkeypatch.setattr(text, "LONGEST", 64)
    content = "one, two (three) four five; six\n" * 20
    pieces = list(cut([content]))
    assert len(pieces) > 20
    for left, right in pairwise(pieces):
        assert left[-1].isalnum()
        assert right[0] in " \n"


def test_text_without_spaces_is_cut_after_a_line_or_anywhere(monkeypatch):
    monkeypatch.setattr(text, "PIECE", 16)
    monkeypatch.setattr(text, "LONGEST", 64)
    assert all(piece.endswith("。\n") for piece in cut(["气和玉烛。\n" * 40]))
    assert list(map(len, cut(["x" * 100])))[:3] == [16, 16, 16]
