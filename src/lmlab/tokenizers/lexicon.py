"""Stretches of text that were met before, each encoded once: text repeats its words, and Rust need not."""

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np

from lmlab.tokenizers.codepoints import code_points

# ids, their sizes in bytes, tokens per text; the texts one after the other.
Ragged = tuple[np.ndarray, np.ndarray, np.ndarray]

# Unicode's White_Space, which is what \s means in Rust; Python's \s has four control characters more.
SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_RUN = re.compile(f"[{SPACES}]+[^{SPACES}]*")
_JOINS = re.compile(f"(?s:[{SPACES}].*[^{SPACES}])")
_LIST = re.sub("(.)-(.)", lambda m: "".join(map(chr, range(ord(m[1]), ord(m[2]) + 1))), SPACES)
# The entry after the last white space stands for all other characters.
_IS_SPACE = np.zeros(max(map(ord, _LIST)) + 2, bool)
_IS_SPACE[list(map(ord, _LIST))] = True
# Characters that are remembered at most (some 150 bytes of memory for each word of five), and that Rust gets as one
# text: it spends ten times as long on a text as on a word.
REMEMBERED, JOINED = 4_000_000, 4_096


class Lexicon:
    """Encodes texts by their units: stretches that begin with white space (the text's first one perhaps not).

    For a tokenizer of which no token holds a non-space followed by white space and none looks across such a place.
    encode: texts -> Ragged, each by itself. Safe to share between threads.
    """

    def __init__(self, encode: Callable[[list[str]], Ragged]):
        self._encode = encode
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._new: list[str] = []
        self._rows = _Rows(self._row)
        self._ids, self._sizes = np.zeros(0, np.int32), np.zeros(0, np.int32)
        self._starts, self._counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self._remembered = 0

    def _row(self, unit: str) -> int:
        self._new.append(unit)
        return len(self._counts) + len(self._new) - 1

    def __call__(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """(ids, sizes in bytes) of each text."""
        with self._lock:
            try:
                rows, bounds = self._look_up(texts)
                self._learn()
            except BaseException:
                self._forget()
                raise
            ids, sizes, before = self._gather(rows)
            if self._remembered > REMEMBERED:
                self._forget()
        ends = before[bounds].tolist()
        return [(ids[a:b], sizes[a:b]) for a, b in pairwise(ends)]

    def _look_up(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Rows of all units, and where each text's begin, the end of the last one too."""
        keys: list[str] = []
        bounds = [0]
        for text in texts:
            for run, part in _parts(text):
                if run:
                    keys.append(" " + part)
                    continue
                words = part.split(" ")
                if words[0]:
                    words[0] = " " + words[0]
                else:
                    del words[0]
                keys += words
            bounds.append(len(keys))
        return np.fromiter(map(self._rows.__getitem__, keys), np.int64, len(keys)), np.array(bounds)

    def _learn(self) -> None:
        """Encode the new units, many as one text where they join."""
        units, self._new = self._new, []
        if not units:
            return
        joins = [_JOINS.fullmatch(unit) is not None for unit in units]
        texts: list[list[str]] = []
        length = JOINED
        for unit, joined, before in zip(units, joins, [False, *joins], strict=False):
            if length >= JOINED or not (joined and before):
                texts.append([])
                length = 0
            texts[-1].append(unit)
            length += len(unit)
        ids, sizes, _ = self._encode(list(map("".join, texts)))
        ends = np.cumsum(np.fromiter(map(n_bytes, units), np.int64, len(units)))
        token_ends = np.cumsum(sizes, dtype=np.int64)
        last = np.searchsorted(token_ends, ends, side="right")
        if not np.array_equal(np.append(0, token_ends)[last], ends):
            ids, sizes, counts = self._encode(units)
        else:
            counts = np.diff(last, prepend=0)
        self._starts = np.append(self._starts, len(self._ids) + np.cumsum(counts) - counts)
        self._counts = np.append(self._counts, counts)
        self._ids, self._sizes = np.append(self._ids, ids), np.append(self._sizes, sizes)
        self._remembered += int(ends[-1])

    def _gather(self, rows: np.ndarray) -> Ragged:
        """ids, sizes, and how many tokens come before each row and after all, (rows + 1,)."""
        n = self._counts[rows]
        before = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(n, out=before[1:])
        at = np.repeat(self._starts[rows] - before[:-1], n)
        at += np.arange(len(at))
        return self._ids[at], self._sizes[at], before


class _Rows(dict[str, int]):
    """Key of a unit -> its row; a new unit gets the next row and waits to be encoded.

    The usual unit is a space and a word, and its key is the word: not having to put the space there saves half the
    time. A word has no space, so the keys of all other units, which are a space and the unit, are none of these.
    """

    def __init__(self, row: Callable[[str], int]):
        super().__init__()
        self._row = row

    def __missing__(self, key: str) -> int:
        row = self[key] = self._row(key[1:] if " " in key else " " + key)
        return row


def _parts(text: str) -> Iterator[tuple[bool, str]]:
    """(False, text whose white space is single spaces), (True, other white space and the word after it)."""
    start = 0
    for at in _other_spaces(text):
        if at < start:
            continue
        if plain := text[start:at].rstrip(_LIST):
            yield False, plain
        run = _RUN.match(text, start + len(plain))
        yield True, run[0]
        start = run.end()
    if start < len(text):
        yield False, text[start:]


def _other_spaces(text: str) -> list[int]:
    """Where white space is no single " " after a non-space.

    There str.split(" ") would cut white space in two, or leave a line's last word and the next one's first in one unit.
    """
    points = code_points(text)
    blank = points == ord(" ")
    if points.dtype != np.uint8:
        points = np.minimum(points, len(_IS_SPACE) - 1)
    space = _IS_SPACE[points]
    blank[1:] &= ~space[:-1]
    return np.flatnonzero(space > blank).tolist()


def n_bytes(text: str) -> int:
    """Of its UTF-8."""
    return len(text) if text.isascii() else len(text.encode())
