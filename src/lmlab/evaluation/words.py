"""Words of text as hashes, block by block: how much each counts, where it stands, and in which document."""

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from lmlab.tokenizers.codepoints import code_points

# Characters that are read at once: their arrays fit a core's cache, and a thousand of NumPy's calls pay.
BLOCK = 1 << 16
# A longer word is cut where a block ends, or text without white space were carried from block to block.
LONGEST = 4096
# What a word counts, and a character of a script that puts no spaces between words: of these two say about as much.
NONE, CHARACTER, WORD, MARK = range(4)
# Scripts without spaces: Thai, Lao, Myanmar, Khmer, Chinese, Japanese.
_SINGLE = [(0xE00, 0xEFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0xA9E0, 0xA9FF), (0xAA60, 0xAA7F), (0x3005, 0x3007)]
_SINGLE += [(0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)]
# No letter has a code point from here on.
_END = 0x40000
# Odd, so that no power of it is lost modulo 2**64.
BASE = 0xD6E8FEB86659FD93
_INVERSE = pow(BASE, -1, 2**64)


@dataclass(frozen=True)
class Block:
    """Items (words or tokens) of documents that stand one after the other.

    items: (n,) unsigned. sizes: (n,) uint8, what each counts; None: one. edges: (documents + 1,), where each document
    begins, and the end. numbers: (documents,), which they are. whole: (documents,) bool, those of which all is here.
    spans: (n, 2) uint32, the characters of its document that each word is. offset: items of the first document that
    are not here, being before. repeated: so many items, the first, were in the block before as well.
    """

    items: np.ndarray
    sizes: np.ndarray | None
    edges: np.ndarray
    numbers: np.ndarray
    whole: np.ndarray
    spans: np.ndarray | None = None
    offset: int = 0
    repeated: int = 0


def word_spans(text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Words without case and punctuation: their hashes (n,) uint64, their sizes (n,), where they stand, (n, 2).

    A word is letters and digits in a row, with their combining marks. In scripts without spaces each letter is one.
    """
    points = code_points(text)
    if points.dtype != np.uint8:
        points = np.minimum(points, _END - 1)
    kinds, values = _tables()
    kind = kinds[points]
    first, last = _bounds(kind)
    return run_hashes(values[points], first, last), kind[first], np.stack([first, last], 1).astype(np.uint32)


def _bounds(kind: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and past-the-last character of each word."""
    carrier = kind
    if (kind == MARK).any():
        # A mark belongs to what it stands on; after no letter (an emoji) it is nothing.
        carrier = kind[np.maximum.accumulate(np.where(kind == MARK, 0, np.arange(len(kind))))]
        carrier[carrier == MARK] = NONE
    before = np.append(np.uint8(NONE), carrier)[:-1]
    begins = (kind == CHARACTER) | ((kind == WORD) & (before != WORD))
    edges = np.append(np.flatnonzero(begins | ((carrier == NONE) & (before != NONE))), len(kind))
    chosen = begins[edges[:-1]]
    return edges[:-1][chosen], edges[1:][chosen]


@cache
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """Of each code point: what it is, and a hash of it without case."""
    kinds, folded = np.zeros(_END, np.uint8), np.arange(_END, dtype=np.uint64)
    for i, c in enumerate(map(chr, range(_END))):
        if c.isalnum():
            kinds[i] = WORD
            # Where a letter's other case is several (ß), it is left as it is.
            lower = c.casefold() if len(c.casefold()) == 1 else c.lower()
            if lower != c and len(lower) == 1:
                folded[i] = ord(lower)
        elif unicodedata.category(c) in ("Mn", "Mc"):
            kinds[i] = MARK
    for low, high in _SINGLE:
        part = kinds[low : high + 1]
        part[part == WORD] = CHARACTER
    return kinds, mixed(folded)


def mixed(items: np.ndarray) -> np.ndarray:
    """Unsigned integers as uint64 of which all bits are as if by chance, and zero is none (Steele et al. 2014)."""
    part = items.astype(np.uint64)
    part += np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        part ^= part >> np.uint64(shift)
        part *= np.uint64(factor)
    part ^= part >> np.uint64(31)
    return part


def run_hashes(items: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """A hash of items[first:last] for each pair, (pairs,) uint64: polynomials modulo 2**64. items: mixed."""
    powers = np.full(len(items) + 1, BASE, np.uint64)
    powers[0] = 1
    np.multiply.accumulate(powers, out=powers)
    sums = np.zeros(len(items) + 1, np.uint64)
    np.cumsum(items * powers[:-1], out=sums[1:])
    found = sums[last] - sums[first]
    powers[1:] = _INVERSE
    np.multiply.accumulate(powers, out=powers)
    return found * powers[first]


def blocks(documents: Iterable[Iterable[str]], kept: int, spans: bool) -> Iterator[Block]:
    """The words of documents, each given in pieces that may be cut anywhere.

    kept: words of an unfinished document that the next block has again; a document of no more is whole in one block.
    """
    reader = _Reader(kept, spans)
    for number, pieces in enumerate(documents):
        done = 0
        for piece in pieces:
            for start in range(0, len(piece), BLOCK):
                part = piece[start : start + BLOCK]
                reader.parts.append((number, done, part))
                done, reader.size = done + len(part), reader.size + len(part)
                if reader.size >= BLOCK:
                    yield from reader.block(finished=False)
    yield from reader.block(finished=True)


class _Reader:
    """What waits for the next block. parts: (document, characters of it before, text)."""

    def __init__(self, kept: int, spans: bool):
        self.kept, self.spans = kept, spans
        self.parts: list[tuple[int, int, str]] = []
        self.size = self.offset = 0
        none = np.zeros(0, np.uint64)
        self.waiting = Block(none, none, none, none, none, np.zeros((0, 2), np.uint32))

    def block(self, finished: bool) -> Iterator[Block]:
        """finished: whether the last document is at its end."""
        if not self.parts:
            return
        parts, self.parts, self.size = self.parts, [], 0
        number, done = np.array([part[0] for part in parts]), np.array([part[1] for part in parts])
        # A line's end between documents, so that no word is in two.
        new = np.append(False, number[1:] != number[:-1])
        starts = np.cumsum([0, *(len(part[2]) for part in parts)])[:-1] + np.cumsum(new)
        text = "".join("\n" + part[2] if first else part[2] for part, first in zip(parts, new.tolist(), strict=True))
        items, sizes, places = word_spans(text)
        shift = (done - starts)[np.searchsorted(starts, places[:, 0], side="right") - 1]
        spans = (places + shift[:, None]).astype(np.uint32)
        if not finished:
            rest = (int(number[-1]), int(done[-1]) + len(parts[-1][2]), "")
            if len(items) and places[-1, 1] == len(text) and places[-1, 1] - places[-1, 0] <= LONGEST:
                # The last word may go on.
                rest = (int(number[-1]), int(spans[-1, 0]), text[places[-1, 0] :])
                items, sizes, places, spans = items[:-1], sizes[:-1], places[:-1], spans[:-1]
            self.parts = [rest]
        first = np.append(0, np.flatnonzero(new))
        edges = np.append(np.searchsorted(places[:, 0], starts[first]), len(items))
        yield from self._joined(items, sizes, spans, edges, number[first], finished)

    def _joined(self, items, sizes, spans, edges, numbers, finished: bool) -> Iterator[Block]:
        """With what was kept of the first document before it, and without what is kept of the last."""
        old = self.waiting
        edges = edges + len(old.items)
        edges[0] = 0
        items = np.concatenate([old.items, items])
        sizes = np.concatenate([old.sizes.astype(np.uint8), sizes])
        spans = np.concatenate([old.spans, spans])
        whole = np.ones(len(numbers), bool)
        whole[0] = self.offset == 0
        repeated, offset = (len(old.items), self.offset) if self.offset else (0, 0)
        if not finished:
            whole[-1] = False
            n, before = int(edges[-1] - edges[-2]), self.offset if len(numbers) == 1 else 0
            keep = min(n, self.kept)
            rest = slice(len(items) - keep, None)
            self.waiting = Block(items[rest], sizes[rest], edges[:0], numbers[:0], whole[:0], spans[rest])
            self.offset = before + n - keep
            if self.offset == 0:
                # All of it waits.
                end = int(edges[-2])
                items, sizes, spans = items[:end], sizes[:end], spans[:end]
                edges, numbers, whole = edges[:-1], numbers[:-1], whole[:-1]
        if len(numbers):
            yield Block(items, sizes, edges, numbers, whole, spans if self.spans else None, offset, repeated)
