"""Text that stands both in train and in what is held out: the same stretches, and near copies, each with its passage.

Train is streamed, document by document; memory is that of the held-out text.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import xxhash

# Words of a stretch that two texts do not share by chance: Brown et al. 2020 (GPT-3), appendix C.
STRETCH = 13
# A near copy: a passage half of whose distinct runs of 5 words stand in one place of train. Each changed word breaks
# five of them, so about a word in ten may differ.
PASSAGE, SHINGLE, NEAR = 50, 5, 0.5
# Runs of words that stand in more places of train than this are formulas, which tell nothing.
FORMULA = 100
# 4 MB: small beside a core's share of cache, and an eighth full with half a million held-out tokens.
SIEVE_BITS = 22
# Odd, so that no power of it is lost modulo 2**64: of the golden ratio, and of the polynomials.
_ODD, BASE = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93
# Scripts without spaces: a character is a word.
_SINGLE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_SINGLE}]|[^\W_{_SINGLE}]+")


@dataclass(frozen=True)
class Passage:
    """A stretch of held-out text that train has too. share: of its runs of words, 1 where it is the same."""

    document: str
    text: str
    words: int
    train_document: str
    share: float


@dataclass(frozen=True)
class Overlap:
    """How many of the held-out words stand in a stretch that train has word for word, or in a near copy of train's.

    passages: the longest of the former, then the nearest of the latter.
    """

    words: int
    same: int
    near: int
    either: int
    passages: list[Passage] = field(default_factory=list)

    @property
    def share(self) -> float:
        return self.either / self.words if self.words else 0.0


def word_spans(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Words without case and punctuation: their hashes (n,) uint64, and where they stand in the text, (n, 2)."""
    known: dict[str, int] = {}
    hashes, spans = [], []
    for match in _WORD.finditer(text):
        word = match.group()
        if word not in known:
            known[word] = xxhash.xxh3_64_intdigest(word.lower().encode())
        hashes.append(known[word])
        spans.append(match.span())
    return np.array(hashes, np.uint64), np.array(spans, np.int64).reshape(-1, 2)


def windows(items: np.ndarray, n: int) -> np.ndarray:
    """A hash of each `n` items in a row, (len - n + 1,) uint64: sums of powers, by doubling; modulo 2**64."""
    if len(items) < n:
        return np.zeros(0, np.uint64)
    with np.errstate(over="ignore"):
        part = items.astype(np.uint64) * np.uint64(_ODD)
        part ^= part >> np.uint64(29)
        total, length, width = None, 0, 1
        while width <= n:
            if n & width:
                # What is added reaches from `length` on.
                total = part.copy() if total is None else _joined(total, part, length, width)
                length += width
            if 2 * width <= n:
                part = _joined(part, part, width, width)
            width *= 2
    return total[: len(items) - n + 1]


def _joined(left: np.ndarray, right: np.ndarray, n_left: int, n_right: int) -> np.ndarray:
    """Hashes of `n_left` items, and of the `n_right` that follow them, as one: left * BASE**n_right + right."""
    n = len(right) - n_left
    return left[:n] * np.uint64(pow(BASE, n_right, 2**64)) + right[n_left:]


def covered(held_out: Sequence[np.ndarray], train: Iterable[np.ndarray], n: int) -> tuple[list[np.ndarray], dict]:
    """Which items of each held-out text lie in a row of `n` that a text of train has too: (items,) bool each.

    Also the number of the text of train that has the row at a place: {(text, item): number}, of the first found.
    """
    rows = [windows(text, n) for text in held_out]
    known = np.unique(np.concatenate(rows)) if rows else np.zeros(0, np.uint64)
    found = np.full(len(known), -1, np.int64)
    for number, text in enumerate(train):
        at = _places(known, windows(text, n))[0]
        new = at[found[at] < 0]
        found[new] = number
    marks, where = [], {}
    for index, (text, row) in enumerate(zip(held_out, rows, strict=True)):
        source = found[np.searchsorted(known, row)] if len(row) else np.zeros(0, np.int64)
        hits = np.flatnonzero(source >= 0)
        steps = np.zeros(len(text) + 1, np.int64)
        np.add.at(steps, hits, 1)
        np.add.at(steps, hits + n, -1)
        mark = np.cumsum(steps[:-1]) > 0
        marks.append(mark)
        where |= {(index, int(i)): int(source[i]) for i in hits if not (i and source[i - 1] >= 0)}
    return marks, where


def _places(known: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the values that are among the sorted known ones: which of those they are, and their own places."""
    if not len(known) or not len(values):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    # Few values are known: a look into a table leaves a few per cent to be searched for, which takes ten times as long.
    sieve = np.zeros(1 << SIEVE_BITS, bool)
    low = np.uint64(len(sieve) - 1)
    sieve[known & low] = True
    likely = np.flatnonzero(sieve[values & low])
    at = np.minimum(np.searchsorted(known, values[likely]), len(known) - 1)
    right = known[at] == values[likely]
    return at[right], likely[right]


def stretches(mark: np.ndarray) -> np.ndarray:
    """First and past-the-last place of each run of True, (runs, 2)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mark, [False]]).astype(np.int8)))
    return edges.reshape(-1, 2)


@dataclass
class _Near:
    """Passages of the held-out text, and in which places of train their runs of words stand.

    passage: (pairs,) and shingle: (pairs,), which distinct runs each passage has. hits: arrays (2, n) of a run and a
    place of train, a place being PASSAGE words; places are numbered through all documents.
    """

    passages: list[tuple[int, int, int]]
    known: np.ndarray
    passage: np.ndarray
    shingle: np.ndarray
    hits: list[np.ndarray] = field(default_factory=list)
    first_places: list[int] = field(default_factory=lambda: [0])

    @classmethod
    def of(cls, held_out: Sequence[np.ndarray]) -> "_Near":
        passages, rows = [], []
        for index, text in enumerate(held_out):
            for start in range(0, len(text), PASSAGE):
                stop = min(start + PASSAGE, len(text))
                # What is left at the end is a passage of its own if it is half of one.
                if stop - start >= PASSAGE // 2:
                    passages.append((index, start, stop))
                    rows.append(np.unique(windows(text[start:stop], SHINGLE)))
        runs = np.concatenate(rows) if rows else np.zeros(0, np.uint64)
        known, shingle = np.unique(runs, return_inverse=True)
        return cls(passages, known, np.repeat(np.arange(len(rows)), [len(row) for row in rows]), shingle)

    def read(self, text: np.ndarray) -> None:
        """A document of train."""
        at, places = _places(self.known, windows(text, SHINGLE))
        first = self.first_places[-1]
        if len(at):
            self.hits.append(np.unique(np.stack([at, first + places // PASSAGE]), axis=1))
        self.first_places.append(first + len(text) // PASSAGE + 1)

    def nearest(self) -> list[tuple[float, int]]:
        """For each passage the largest share of its runs that two neighbouring places of train hold, and the first."""
        best = [(0.0, -1)] * len(self.passages)
        if not self.hits:
            return best
        run, place = np.concatenate(self.hits, axis=1)
        common = np.bincount(run, minlength=len(self.known)) > FORMULA
        run, place = run[~common[run]], place[~common[run]]
        # A passage of train begins anywhere: it lies in a place and the next.
        run, place = np.unique(np.stack([np.tile(run, 2), np.concatenate([place, place - 1])]), axis=1)
        order = np.argsort(self.shingle, kind="stable")
        low = np.searchsorted(self.shingle[order], run)
        times = np.searchsorted(self.shingle[order], run, side="right") - low
        row = np.repeat(np.arange(len(run)), times)
        passage = self.passage[order][low[row] + np.arange(len(row)) - np.repeat(np.cumsum(times) - times, times)]
        pairs, votes = np.unique(np.stack([passage, place[row]]), axis=1, return_counts=True)
        sizes = np.bincount(self.passage, minlength=len(self.passages))
        shares = votes / sizes[pairs[0]]
        for i in np.argsort(shares, kind="stable"):
            best[pairs[0, i]] = float(shares[i]), int(pairs[1, i])
        return best

    def document(self, place: int) -> int:
        return int(np.searchsorted(self.first_places, max(place, 0), side="right")) - 1


class _HeldOut:
    """The texts of all held-out splits, their words, and where these stand."""

    def __init__(self, splits: Mapping[str, Iterable[tuple[str, str]]]):
        self.splits, self.names, self.texts, self.words, self.spans = [], [], [], [], []
        for split, documents in splits.items():
            for name, text in documents:
                hashes, spans = word_spans(text)
                self.splits.append(split)
                self.names.append(name)
                self.texts.append(text)
                self.words.append(hashes)
                self.spans.append(spans)

    def passage(self, index: int, start: int, stop: int, train_document: str, share: float) -> Passage:
        begin, end = self.spans[index][start, 0], self.spans[index][stop - 1, 1]
        return Passage(self.names[index], self.texts[index][begin:end], stop - start, train_document, share)


def overlap(
    splits: Mapping[str, Iterable[tuple[str, str]]], train: Iterable[tuple[str, str]], shown: int
) -> dict[str, Overlap]:
    """{split: what it shares with train}, of texts (name, text), each read once.

    shown: so many passages of each kind are kept of a split.
    """
    held_out = _HeldOut(splits)
    near, train_names = _Near.of(held_out.words), []

    def read() -> Iterator[np.ndarray]:
        for name, text in train:
            train_names.append(name)
            hashes = word_spans(text)[0]
            near.read(hashes)
            yield hashes

    same, where = covered(held_out.words, read(), STRETCH)
    runs = [(index, int(a), int(b)) for index, mark in enumerate(same) for a, b in stretches(mark)]
    runs.sort(key=lambda run: run[1] - run[2])
    either, copied, copies = [mark.copy() for mark in same], np.zeros(len(same), np.int64), []
    for (index, start, stop), (share, place) in zip(near.passages, near.nearest(), strict=True):
        if share >= NEAR:
            copied[index] += stop - start
            either[index][start:stop] = True
            # Those that are the same word for word are shown as such.
            if not same[index][start:stop].all():
                copies.append((share, index, start, stop, train_names[near.document(place)]))
    copies.sort(key=lambda copy: -copy[0])
    results = {}
    for split in splits:
        own = [i for i, name in enumerate(held_out.splits) if name == split]
        found = [held_out.passage(i, a, b, train_names[where[i, a]], 1.0) for i, a, b in runs if i in own][:shown]
        found += [held_out.passage(i, a, b, name, share) for share, i, a, b, name in copies if i in own][:shown]
        sums = (sum(len(held_out.words[i]) for i in own), sum(int(same[i].sum()) for i in own))
        results[split] = Overlap(*sums, int(copied[own].sum()), sum(int(either[i].sum()) for i in own), found)
    return results
