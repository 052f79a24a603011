"""From bytes to pieces of text: decoding that knows where it failed, lines, documents at a separator, safe cuts."""

import codecs
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

# Characters: at four bytes each a piece is at most 1 MB, and ASCII text comes in quarters of it.
PIECE = 1 << 18
# How far past PIECE a cut may be looked for in text without a good place (a line of base64, Chinese without lines).
LONGEST = 4 * PIECE
# Bytes in a row that go on with a character as in UTF-8: of other encodings, GB18030's 1 of 6, it is no chance.
ENOUGH = 8

_SAFE = re.compile(r"[^\W_](?=[ \t\r\n])")


def decoded(blocks: Iterable[bytes], path: str) -> Iterator[str]:
    """Blocks of UTF-8 as text; a byte-order mark at the start is dropped, all else is kept (line ends too).

    Raises ValueError with the file, the byte's offset and the remedy when the bytes are binary or another encoding.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    done = characters = 0
    for block in blocks:
        if done == 0 and block[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise ValueError(f"{path} is UTF-16, not UTF-8; {_convert(path, 'UTF-16')}")
        if (nul := block.find(0)) >= 0:
            raise ValueError(
                f"{path} is not text: a NUL byte at offset {done + nul}; give a text file, or if it is UTF-16, "
                f"{_convert(path, 'UTF-16')}"
            )
        text = _decode(decoder, block, done, characters, path)
        yield text.removeprefix("\ufeff") if done == 0 else text
        done += len(block)
        characters += len(text)
    _decode(decoder, b"", done, characters, path, final=True)


def _decode(
    decoder: codecs.IncrementalDecoder, block: bytes, done: int, characters: int, path: str, final: bool = False
) -> str:
    """done, characters: bytes and characters before this block; the bytes may be one character ahead."""
    held = len(decoder.getstate()[0])
    try:
        return decoder.decode(block, final)
    except UnicodeDecodeError as error:
        place = f"byte 0x{error.object[error.start]:02x} at offset {done - held + error.start}"
        raise ValueError(f"{path} is not UTF-8: {place}; {remedy(path, error, done - held - characters)}") from None


def remedy(path: str | Path, error: UnicodeDecodeError, wide: int = 0) -> str:
    """What to do about a file that is no UTF-8. wide: bytes, before error.object, that go on with a character."""
    before = error.object[: error.start]
    if wide + len(before) - len(before.decode()) >= ENOUGH:
        # Converted from another encoding, all of it would turn into nonsense.
        return (
            "all before it is, so it is damaged or cut off; leave out what is no character with: "
            f"iconv -c -f UTF-8 -t UTF-8 {path} > utf8.txt"
        )
    return f"{_convert(path, likely_encoding(error.object))} (or whatever its encoding is)"


def likely_encoding(text: bytes) -> str:
    """What text that is no UTF-8 may be: GB18030, as much of what is written in Chinese, else the usual Western one."""
    try:
        # Its last character may be cut off.
        codecs.getincrementaldecoder("gb18030")("strict").decode(text)
    except UnicodeDecodeError:
        return "WINDOWS-1252"
    # The bytes of Chinese stand together; an accented letter stands among plain ones.
    runs = [len(run) for run in re.findall(rb"[\x80-\xff]+", text)]
    return "WINDOWS-1252" if 2 * runs.count(1) > len(runs) else "GB18030"


def _convert(path: str | Path, encoding: str) -> str:
    return f"convert it with: iconv -f {encoding} -t UTF-8 {path} > utf8.txt"


def lines(chunks: Iterable[str]) -> Iterator[str]:
    """Lines with their ends; only "\\n" ends a line (str.splitlines also breaks at U+2028 and others)."""
    rest: list[str] = []
    for chunk in chunks:
        *whole, last = chunk.split("\n")
        if whole:
            yield "".join(rest) + whole[0] + "\n"
            yield from (line + "\n" for line in whole[1:])
            rest = []
        if last:
            rest.append(last)
    if rest:
        yield "".join(rest)


def separated(chunks: Iterable[str], separator: str) -> Iterator[tuple[int, str]]:
    """(document number from 1, text): a document ends with the separator, which stays its own, so that no byte is lost.

    Repeated separators belong to the document before them. Where the text's first line ends in "\\r\\n", as Windows
    writes it, so do the separator's.
    """
    number, rest, unknown = 1, "", "\n" in separator
    for chunk in chunks:
        rest += chunk
        position = 0
        if unknown and (end := rest.find("\n")) >= 0:
            unknown = False
            separator = re.sub(r"(?<!\r)\n", "\r\n", separator) if rest[:end].endswith("\r") else separator
        while (found := rest.find(separator, position)) >= 0:
            end = found + len(separator)
            while rest.startswith(separator, end):
                end += len(separator)
            if separator.startswith(rest[end:]):
                break  # the next chunk may repeat the separator
            yield number, rest[position:end]
            number, position = number + 1, end
        if found < 0 and len(rest) - position > PIECE:
            # A long document goes out in parts, less what may be the beginning of a separator.
            keep = len(rest) - len(separator) + 1
            yield number, rest[position:keep]
            position = keep
        rest = rest[position:]
    # At most one document: what follows its separator is less than a separator.
    if rest:
        yield number, rest


def cut(chunks: Iterable[str]) -> Iterator[str]:
    """The same text in pieces of at most PIECE characters, cut between a letter or digit and the white space after it.

    No tokenizer here joins a word's last letter with the space that follows, so the cut changes no token. Text that
    offers no such place for LONGEST characters is cut after a line end, or anywhere when it has none: such a cut
    may change one token, never the text.
    """
    rest = ""
    for chunk in chain(chunks, [""]):
        rest += chunk
        start = 0
        while len(rest) - start > PIECE and (end := _place(rest, start)):
            yield rest[start:end]
            start = end
        rest = rest[start:]
    if rest:
        yield rest


def _place(text: str, start: int) -> int:
    """Where to cut the text that begins at `start`, 0 to wait for more of it."""
    for near in (start + PIECE - 1024, start):
        if ends := [match.end() for match in _SAFE.finditer(text, max(near, start), start + PIECE + 1)]:
            return ends[-1]
    if later := _SAFE.search(text, start + PIECE - 1, start + LONGEST):
        return later.end()
    if len(text) - start < LONGEST:
        return 0
    return text.rfind("\n", start, start + PIECE) + 1 or start + PIECE
