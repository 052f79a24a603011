"""Text that stands both in train and in what is held out: the same stretches, and near copies, each with its passage.

Train is streamed, block by block; memory is that of the held-out text.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lmlab.evaluation.words import CHARACTER, WORD, Block, blocks, mixed, run_hashes

# Words of a stretch that two texts do not share by chance: Brown et al. 2020 (GPT-3), appendix C. A character of a
# script without spaces counts half a word: 26 of them are as many bytes of text as 13 words are.
STRETCH = 13
# A document that is shorter than a stretch is asked for as a whole if it has so many words, or twice as many such
# characters: "Yes." stands in every text.
LEAST = 4
# A near copy: a passage half of whose distinct runs of 5 words stand in one place of train. Each changed word breaks
# five of them, so about a word in ten may differ.
PASSAGE, SHINGLE, NEAR = 50, 5, 0.5
# Runs of words that stand in more places of train than this are formulas, which tell nothing.
FORMULA = 100
# 4 MB: small beside a core's share of cache, and an eighth full with half a million held-out tokens.
SIEVE_BITS = 22
# A stretch as `Block.sizes` count it, and words that blocks of a document have in common, which hold one.
SIZE = STRETCH * WORD
KEPT = SIZE // CHARACTER
# Items that are hashed at once.
STEP = 1 << 16


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
    """How many of the held-out words stand in what train has word for word, or in a near copy of train's.

    same: in a stretch, or in a document that is shorter than one and is a whole document of train. short: words of such
    documents; unasked: words of those that have too few words even for that.
    passages: the longest of `same`, then the nearest of `near`.
    """

    words: int
    same: int
    near: int
    either: int
    short: int = 0
    unasked: int = 0
    passages: list[Passage] = field(default_factory=list)

    @property
    def share(self) -> float:
        return self.either / self.words if self.words else 0.0


class Known:
    """Hashes that are sought, sorted: (n,) uint64."""

    def __init__(self, hashes: np.ndarray):
        # NumPy's unique takes several times as long, by a table.
        hashes = np.sort(hashes)
        self.hashes = hashes[np.append(True, hashes[1:] != hashes[:-1])[: len(hashes)]]
        # Few values are known: a look into a table leaves a few per cent to be searched for, which takes ten times as
        # long.
        self._sieve = np.zeros(1 << SIEVE_BITS, bool)
        self._low = np.uint64(len(self._sieve) - 1)
        self._sieve[self.hashes & self._low] = True

    def places(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of the values that are among the known ones: which of those they are, and their own places."""
        likely = np.flatnonzero(self._sieve[values & self._low])
        if not len(likely):
            return likely, likely
        at = np.minimum(np.searchsorted(self.hashes, values[likely]), len(self.hashes) - 1)
        right = self.hashes[at] == values[likely]
        return at[right], likely[right]


def windows(items: np.ndarray, n: int) -> np.ndarray:
    """A hash of each `n` items in a row, (len - n + 1,) uint64."""
    first = np.arange(max(len(items) - n + 1, 0))
    return run_hashes(mixed(items), first, first + n)


def runs(block: Block, size: int, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What of a block is compared: hashes (n,) uint64, first and past-the-last items (n,).

    Stretches within a document whose items count `size` together, and the documents that count less, each as a whole
    (its items and their number) if it is `asked`, (documents,) bool. Neither is ever the other: their sizes differ.
    """
    before = _before(block)
    # Where the items are enough; of tokens, of which there are most, without a search.
    last = np.searchsorted(before, before[:-1] + size) if block.sizes is not None else before[:-1] + size
    first = np.flatnonzero(last <= np.repeat(block.edges[1:], np.diff(block.edges)))
    a, b = block.edges[:-1], block.edges[1:]
    short = asked & (a < b) & (before[b] - before[a] < size)
    first, last = np.concatenate([first, a[short]]), np.concatenate([last[first], b[short]])
    return run_hashes(mixed(block.items), first, last), first, last


def _before(block: Block) -> np.ndarray:
    """(n + 1,): what the items before each one count."""
    if block.sizes is None:
        return np.arange(len(block.items) + 1)
    return np.concatenate([[0], np.cumsum(block.sizes, dtype=np.int64)])


def document_sizes(block: Block) -> np.ndarray:
    before = _before(block)
    return before[block.edges[1:]] - before[block.edges[:-1]]


def parts(block: Block, size: int) -> Iterator[tuple[int, Block]]:
    """(first item, STEP items and `size` that follow them): all of a block that is too large to be hashed at once."""
    edges = block.edges
    for start in range(0, len(block.items), STEP):
        stop = min(start + STEP + size, len(block.items))
        low, high = np.searchsorted(edges, start, side="right") - 1, np.searchsorted(edges, stop)
        whole = block.whole[low:high] & (edges[low:high] >= start) & (edges[low + 1 : high + 1] <= stop)
        sizes = None if block.sizes is None else block.sizes[start:stop]
        inside = np.clip(edges[low : high + 1], start, stop) - start
        yield start, Block(block.items[start:stop], sizes, inside, block.numbers[low:high], whole)


def covered(held_out: Sequence[Block], train: Iterable[Block], size: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Which items of each held-out block lie in what train has too, (items,) bool each: see `runs`.

    Of held-out documents those that are `whole` are asked for as a whole. Also, where such a run begins, the number of
    the first document of train that has it, (items,) int64 each, else -1.
    """
    asked = []
    for block in held_out:
        found = [(start, *runs(part, size, part.whole)) for start, part in parts(block, size)]
        asked.append([(hashes, start + first, start + last) for start, hashes, first, last in found])
    known = Known(np.concatenate([np.zeros(0, np.uint64), *(part[0] for found in asked for part in found)]))
    number = np.full(len(known.hashes), -1, np.int64)
    for block in train:
        hashes, first, _ = runs(block, size, block.whole)
        at, places = known.places(hashes)
        new = np.flatnonzero(number[at] < 0)
        # From the last on, so that the first of several stays.
        at, first = at[new][::-1], first[places[new]][::-1]
        number[at] = block.numbers[np.searchsorted(block.edges, first, side="right") - 1]
    # Of all that is known little is found, if anything.
    shared, number = Known(known.hashes[number >= 0]), number[number >= 0]
    marks, sources = [], []
    for block, found in zip(held_out, asked, strict=True):
        steps, source = np.zeros(len(block.items) + 1, np.int64), np.full(len(block.items), -1, np.int64)
        for hashes, first, last in found:
            at, hit = shared.places(hashes)
            # Parts of a block have some in common: each adds one and takes one away, which marks the same.
            np.add.at(steps, first[hit], 1)
            np.add.at(steps, last[hit], -1)
            source[first[hit]] = number[at]
        marks.append(np.cumsum(steps[:-1]) > 0)
        sources.append(source)
    return marks, sources


def stretches(mark: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """First and past-the-last place of each run of True, (runs, 2), none of which reaches over an edge."""
    apart = np.zeros(len(mark) + 1, bool)
    apart[edges] = True
    padded = np.concatenate([[False], mark, [False]])
    first = np.flatnonzero(mark & (apart[:-1] | ~padded[:-2]))
    last = np.flatnonzero(mark & (apart[1:] | ~padded[2:]))
    return np.stack([first, last + 1], 1)


class _Near:
    """Passages of the held-out text, and in which places of train their runs of words stand.

    passages: (passages, 2), first and past-the-last word. A place of train is PASSAGE words; places are numbered
    through all documents.
    """

    def __init__(self, held_out: Block):
        bounds = [np.zeros((0, 2), np.int64)]
        lengths = np.diff(held_out.edges)
        for i in np.flatnonzero(lengths >= PASSAGE // 2):
            start = np.arange(held_out.edges[i], held_out.edges[i + 1], PASSAGE)
            bounds.append(np.stack([start, np.minimum(start + PASSAGE, held_out.edges[i + 1])], 1))
        self.passages = np.concatenate(bounds)
        # What is left at the end is a passage of its own if it is half of one.
        self.passages = self.passages[self.passages[:, 1] - self.passages[:, 0] >= PASSAGE // 2]
        rows = [np.unique(windows(held_out.items[a:b], SHINGLE)) for a, b in self.passages]
        self._known = Known(np.concatenate([np.zeros(0, np.uint64), *rows]))
        shingle = np.searchsorted(self._known.hashes, np.concatenate([np.zeros(0, np.uint64), *rows]))
        passage = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        order = np.argsort(shingle, kind="stable")
        # The passages that have each distinct run, one run after the other.
        self._shingle, self._passage = shingle[order], passage[order]
        self._sizes = np.bincount(passage, minlength=len(rows))
        # place * runs + run, of those that were found; and in how many places each run was.
        self._hits: list[np.ndarray] = []
        self._counts = np.zeros(len(self._known.hashes), np.int64)
        # The first place of each document that has a hit, and its number.
        self._documents: list[tuple[np.ndarray, np.ndarray]] = []
        self._first = self._next = 0

    def read(self, block: Block) -> None:
        """A block of train."""
        lengths = np.diff(block.edges)
        lengths[0] += block.offset
        n_places = lengths // PASSAGE + 1
        begin = self._first if block.offset else self._next
        firsts = begin + np.cumsum(n_places) - n_places
        self._first, self._next = int(firsts[-1]), int(firsts[-1] + n_places[-1])
        start = np.arange(max(block.repeated - SHINGLE + 1, 0), len(block.items) - SHINGLE + 1)
        document = np.searchsorted(block.edges, start, side="right") - 1
        inside = start + SHINGLE <= block.edges[document + 1]
        start, document = start[inside], document[inside]
        at, found = self._known.places(run_hashes(mixed(block.items), start, start + SHINGLE))
        # More places of a formula need not be known.
        rare = self._counts[at] <= FORMULA
        at, found = at[rare], found[rare]
        if not len(at):
            return
        start, document = start[found], document[found]
        place = (start - block.edges[document] + np.where(document == 0, block.offset, 0)) // PASSAGE + firsts[document]
        self._hits.append(hits := np.unique(place * len(self._counts) + at))
        np.add.at(self._counts, hits % len(self._counts), 1)
        document = np.unique(document)
        self._documents.append((firsts[document], block.numbers[document]))

    def nearest(self) -> tuple[np.ndarray, np.ndarray]:
        """For each passage the largest share of its runs that two neighbouring places of train hold, and the first."""
        shares, places = np.zeros(len(self.passages)), np.full(len(self.passages), -1)
        if not self._hits:
            return shares, places
        hits = np.unique(np.concatenate(self._hits))
        place, run = np.divmod(hits, len(self._counts))
        rare = np.bincount(run, minlength=len(self._counts))[run] <= FORMULA
        run, place = run[rare], place[rare]
        # A passage of train begins anywhere: it lies in a place and the next.
        pairs = np.unique(np.concatenate([place + 1, place]) * len(self._counts) + np.tile(run, 2))
        place, run = np.divmod(pairs, len(self._counts))
        place -= 1
        low = np.searchsorted(self._shingle, run)
        times = np.searchsorted(self._shingle, run, side="right") - low
        row = np.repeat(np.arange(len(run)), times)
        passage = self._passage[low[row] + np.arange(len(row)) - np.repeat(np.cumsum(times) - times, times)]
        width = int(place.max(initial=0)) + 2
        pairs, votes = np.unique(passage * width + place[row] + 1, return_counts=True)
        passage, place = np.divmod(pairs, width)
        share = votes / self._sizes[passage]
        # The last that is written to a place stays.
        order = np.argsort(share, kind="stable")
        shares[passage[order]], places[passage[order]] = share[order], place[order] - 1
        return shares, places

    def documents(self, places: np.ndarray) -> list[int]:
        """The number of the document of train that has hits in this place or the next, for each."""
        if not self._documents:
            return []
        first, at = np.unique(np.concatenate([d[0] for d in self._documents]), return_index=True)
        number = np.concatenate([d[1] for d in self._documents])[at]
        return number[np.maximum(np.searchsorted(first, places, side="right") - 1, 0)].tolist()


class _HeldOut:
    """The texts of all held-out splits, their words one after the other, and where these stand."""

    def __init__(self, splits: Mapping[str, Iterable[tuple[str, Iterable[str]]]]):
        self.names, self.texts, counts = [], [], []
        # The first document of each split, and past the last.
        self.bounds: dict[str, tuple[int, int]] = {}

        def read() -> Iterator[list[str]]:
            for split, documents in splits.items():
                first = len(self.texts)
                for name, pieces in documents:
                    self.names.append(name)
                    self.texts.append("".join(pieces))
                    counts.append(0)
                    yield self.texts[-1:]
                self.bounds[split] = first, len(self.texts)

        words, sizes, spans = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint8)], [np.zeros((0, 2), np.uint32)]
        for block in blocks(read(), KEPT, spans=True):
            new = np.diff(block.edges)
            new[0] -= block.repeated
            for number, n in zip(block.numbers.tolist(), new.tolist(), strict=True):
                counts[number] += n
            words.append(block.items[block.repeated :])
            sizes.append(block.sizes[block.repeated :])
            spans.append(block.spans[block.repeated :])
        edges = np.cumsum([0, *counts])
        items, numbers = np.concatenate(words), np.arange(len(counts))
        self.block = Block(items, np.concatenate(sizes), edges, numbers, np.ones(len(counts), bool))
        self.spans = np.concatenate(spans)

    def document(self, word: int) -> int:
        return int(np.searchsorted(self.block.edges, word, side="right")) - 1

    def passage(self, start: int, stop: int, train_document: str, share: float) -> Passage:
        index, begin, end = self.document(start), self.spans[start, 0], self.spans[stop - 1, 1]
        return Passage(self.names[index], self.texts[index][begin:end], stop - start, train_document, share)


def overlap(
    splits: Mapping[str, Iterable[tuple[str, Iterable[str]]]], train: Iterable[tuple[str, Iterable[str]]], shown: int
) -> dict[str, Overlap]:
    """{split: what it shares with train}, of documents (name, pieces of its text), each read once.

    A document of less than STRETCH words counts as shared if train has one of just these words, and it has LEAST of
    them; a character of a script without spaces counts half a word everywhere.
    shown: so many passages of each kind are kept of a split.
    """
    held_out = _HeldOut(splits)
    block = held_out.block
    sizes = document_sizes(block)
    short = (sizes > 0) & (sizes < SIZE)
    unasked = short & (sizes < LEAST * WORD)
    near, train_names = _Near(block), []

    def texts() -> Iterator[Iterable[str]]:
        for name, pieces in train:
            train_names.append(name)
            yield pieces

    def read() -> Iterator[Block]:
        for part in blocks(texts(), KEPT, spans=False):
            near.read(part)
            yield part

    (same,), (source,) = covered([replace(block, whole=~unasked)], read(), SIZE)
    found = stretches(same, block.edges)
    found = found[np.argsort(found[:, 0] - found[:, 1], kind="stable")]
    either, copied = same.copy(), np.zeros(len(same), bool)
    shares, places = near.nearest()
    copies = np.flatnonzero(shares >= NEAR)
    for start, stop in near.passages[copies]:
        copied[start:stop] = either[start:stop] = True
    # Those that are the same word for word are shown as such.
    copies = np.array([i for i in copies.tolist() if not same[slice(*near.passages[i])].all()], int)
    copies = copies[np.argsort(-shares[copies], kind="stable")]
    results = {}
    for split, (low, high) in held_out.bounds.items():
        a, b = block.edges[[low, high]]
        lengths = np.diff(block.edges[low : high + 1])
        own = found[(a <= found[:, 0]) & (found[:, 0] < b)][:shown].tolist()
        passages = [held_out.passage(start, stop, train_names[source[start]], 1.0) for start, stop in own]
        own = copies[(a <= near.passages[copies, 0]) & (near.passages[copies, 0] < b)][:shown]
        passages += [
            held_out.passage(start, stop, train_names[number], share)
            for (start, stop), number, share in zip(
                near.passages[own].tolist(), near.documents(places[own]), shares[own].tolist(), strict=True
            )
        ]
        sums = (int(mark[a:b].sum()) for mark in (same, copied, either))
        less = (int(lengths[mark[low:high]].sum()) for mark in (short, unasked))
        results[split] = Overlap(int(b - a), *sums, *less, passages)
    return results
