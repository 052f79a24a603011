"""White-space separated words as tokens, each newline an <eos>: the convention of PTB and WikiText-2."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from lmlab.tokenizers import document
from lmlab.tokenizers.codepoints import byte_ends, code_points, is_space
from lmlab.tokenizers.protocol import Encoding
from lmlab.tokenizers.vocabulary import Vocabulary

SPECIALS = {"<unk>": 0, "<eos>": 1}
NEWLINE = ord("\n")
# More distinct words than any softmax holds: text without spaces, or a web crawl. Bounds the memory of counting.
MAX_DISTINCT = 3_000_000


class _Ids(dict[str, int]):
    """Word -> id, <unk> for the others: half the time of `get` with a default."""

    def __missing__(self, word: str) -> int:
        return SPECIALS["<unk>"]


class WordTokenizer(Vocabulary):
    """<unk>, <eos>, then words by falling frequency. A literal "<unk>" in the text is <unk>, as in WikiText-2.

    Decoding puts one space between words and none around a newline.
    """

    kind = "word"

    def __init__(self, words: list[str]):
        if len(set(words)) != len(words) or any(w in SPECIALS or not w for w in words):
            raise ValueError("the vocabulary of a word tokenizer must be distinct words, without its specials")
        super().__init__([b"<unk>", b"\n", *(w.encode() for w in words)], SPECIALS, eos_id=1, unk_id=0)
        self.words = words
        self._ids = _Ids((w, i) for i, w in enumerate(words, len(SPECIALS)))

    def encode(self, text: str) -> Encoding:
        points = code_points(text)
        if not len(points):
            return Encoding(np.zeros(0, np.int32), np.zeros(0, np.int64))
        space = is_space(points)
        # A token ends where a word does, or after a newline; the white space before a word falls to the word.
        last = ~space
        last[:-1] &= space[1:]
        last |= points == NEWLINE
        at = np.flatnonzero(last)
        newline = points[at] == NEWLINE
        ids = np.full(len(at), self.eos_id, np.int32)
        words = text.split()
        ids[~newline] = np.fromiter(map(self._ids.__getitem__, words), np.int32, len(words))
        return Encoding(ids, byte_ends(points)[at])

    def needs_eos(self, tail: str) -> bool:
        """Not when the last line is closed already."""
        return bool(tail) and not tail.endswith("\n")

    def to_bytes(self, token: int, previous: int | None) -> bytes:
        joined = previous is None or previous == self.eos_id or token == self.eos_id
        return self.pieces[token] if joined else b" " + self.pieces[token]

    def unknown(self, text: str) -> list[str]:
        return list(dict.fromkeys(w for w in text.split() if w not in self._ids and w != "<unk>"))

    def to_json(self) -> str:
        return document.dumps(
            document.spec(
                {
                    "type": "WordLevel",
                    "vocab": {w: i for i, w in enumerate([*SPECIALS, *self.words])},
                    "unk_token": "<unk>",
                },
                self.kind,
                SPECIALS,
                normalizer={"type": "Replace", "pattern": {"String": "\n"}, "content": " <eos> "},
                pre_tokenizer={"type": "WhitespaceSplit"},
            )
        )

    @classmethod
    def from_document(cls, content: dict[str, Any]) -> "WordTokenizer":
        return cls(document.in_order(content["model"]["vocab"], SPECIALS))


def train(documents: Iterable[str], min_count: int, max_vocab: int | None) -> WordTokenizer:
    """Words that occur at least `min_count` times, the most frequent first, ties by code point; all text is counted.

    max_vocab: entries in all, <unk> and <eos> among them; None for no limit.
    """
    if max_vocab is not None and max_vocab <= len(SPECIALS):
        raise ValueError(
            f"tokenizer.max_vocab={max_vocab} must be more than the {len(SPECIALS)} specials, or null for all words"
        )
    counts = _count(documents, prune=min_count > 1 or max_vocab is not None)
    for name in SPECIALS:
        counts.pop(name, None)
    kept = [w for w, n in counts.items() if n >= min_count]
    if not kept:
        remedy = "lower tokenizer.min_count, or take tokenizer=char or bpe, which text without spaces needs"
        raise ValueError(
            f"no word occurs tokenizer.min_count={min_count} times in the train split: "
            + (remedy if counts else "is it empty?")
        )
    kept.sort(key=lambda w: (-counts[w], w))
    return WordTokenizer(kept[: None if max_vocab is None else max_vocab - len(SPECIALS)])


def _count(documents: Iterable[str], prune: bool) -> Counter[str]:
    """Frequencies; past MAX_DISTINCT the rarest so far are forgotten (lossy counting, Manku and Motwani 2002)."""
    counts: Counter[str] = Counter()
    threshold = 1
    for text in documents:
        counts.update(text.split())
        if len(counts) <= MAX_DISTINCT:
            continue
        if not prune:
            raise ValueError(
                f"more than {MAX_DISTINCT:,} distinct words with min_count=1 and max_vocab=null: "
                "set tokenizer.max_vocab, or use tokenizer=bpe (text without spaces needs it)"
            )
        while len(counts) > MAX_DISTINCT // 2:
            counts = Counter({w: n for w, n in counts.items() if n > threshold})
            threshold += 1
    return counts
