"""Sub-words by Rust's `tokenizers`: fast batches, and spans in bytes without a loop over tokens."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np

import tokenizers
from lmlab.tokenizers import document
from lmlab.tokenizers.codepoints import byte_ends, code_points
from lmlab.tokenizers.protocol import Encoding
from lmlab.tokenizers.vocabulary import Vocabulary

# All cores here; in a forked child none, where Rust's threads are gone and waiting for them would hang.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: os.environ.__setitem__("TOKENIZERS_PARALLELISM", "false"))

# Unicode's White_Space, which is what \s means in Rust; Python's \s has four control characters more.
_W = "\t\n\v\f\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_UNITS = re.compile(f"[{_W}]*[^{_W}]+|[{_W}]+")
_LONG_UNITS = re.compile(f"(?s:.{{2048}}[{_W}]*[^{_W}]+|.+)")
# Characters that Rust is given at once: it spends some 150 bytes a token.
_GROUP = 2_000_000

Ragged = tuple[np.ndarray, np.ndarray, np.ndarray]


class Subwords(Vocabulary):
    """A tokenizer.json run by Rust.

    cuts_at_space: no token holds a non-space followed by white space and none looks across such a place, so that
    text may be cut there and equal stretches encoded once.
    """

    cuts_at_space = False

    def __init__(self, content: dict[str, Any], pieces: Sequence[bytes], specials: dict[str, int], **ids: int | None):
        super().__init__(pieces, specials, **ids)
        self.content = content
        self.rust = rust(content)
        self._sizes = np.array([len(piece) for piece in self.pieces], np.int64)

    def to_json(self) -> str:
        return document.dumps(self.content)

    def encode(self, text: str) -> Encoding:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
        return [encoding for group in _groups(texts) for encoding in self._encode_group(group)]

    def _encode_group(self, texts: list[str]) -> list[Encoding]:
        units = _units(texts) if self.cuts_at_space else [[text] if text else [] for text in texts]
        flat = list(chain.from_iterable(units))
        index = {unit: i for i, unit in enumerate(dict.fromkeys(flat))}
        table = self.encode_units(list(index))
        rows = np.fromiter(map(index.__getitem__, flat), np.int64, len(flat))
        ids, sizes, counts = _gather(table, rows)
        # Tokens before each text: through the tokens before each of its units.
        before = np.concatenate([[0], np.cumsum(counts)])
        bounds = before[np.cumsum([0, *map(len, units)])]
        return [Encoding(ids[a:b], np.cumsum(sizes[a:b])) for a, b in pairwise(bounds.tolist())]

    def encode_units(self, units: list[str]) -> Ragged:
        """(ids, sizes in bytes, tokens per unit), the units one after the other."""
        rows = [e.ids for e in self.rust.encode_batch_fast(units, add_special_tokens=False)]
        counts = np.fromiter(map(len, rows), np.int64, len(rows))
        ids = np.fromiter(chain.from_iterable(rows), np.int32, int(counts.sum()))
        sizes = self._sizes[ids]
        ends = np.cumsum(counts)
        total = np.concatenate([[0], np.cumsum(sizes)])
        covered = total[ends] - total[ends - counts]
        spelt = (len(unit) if unit.isascii() else len(unit.encode()) for unit in units)
        source = np.fromiter(spelt, np.int64, len(units))
        # Normalised, unknown or prefixed text: the pieces do not spell the source, so ask Rust where they come from.
        for i in np.flatnonzero(covered != source).tolist():
            sizes[ends[i] - counts[i] : ends[i]] = self._sizes_by_offset(units[i])
        return ids, sizes, counts

    def _sizes_by_offset(self, text: str) -> np.ndarray:
        encoding = self.rust.encode(text, add_special_tokens=False)
        # Tokens of one character all report that whole character: the first of them takes it.
        last = np.maximum.accumulate(np.array([end for _, end in encoding.offsets], np.int64))
        ends = np.concatenate([[0], byte_ends(code_points(text))])[last]
        return np.diff(ends, prepend=0)


def rust(content: dict[str, Any]) -> tokenizers.Tokenizer:
    """Raises ValueError where Rust refuses the document."""
    try:
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # the binding raises bare Exception
        raise ValueError(f"no valid tokenizer.json: {error}") from error
    # Text that looks like a special token is text.
    tokenizer.encode_special_tokens = True
    # Sentence encoders ship files that cut at 128 tokens.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _groups(texts: Sequence[str]) -> Iterator[list[str]]:
    group: list[str] = []
    size = 0
    for text in texts:
        group.append(text)
        size += len(text)
        if size >= _GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group


def _units(texts: list[str]) -> list[list[str]]:
    """Each text cut before white space: into words if they repeat (English), else into long stretches (Chinese)."""
    units = [_UNITS.findall(text) for text in texts]
    if sum(map(len, set(chain.from_iterable(units)))) * 2 > sum(map(len, texts)):
        return [_LONG_UNITS.findall(text) for text in texts]
    return units


def _gather(table: Ragged, rows: np.ndarray) -> Ragged:
    """The table's rows in the given order, with repeats."""
    ids, sizes, counts = table
    starts = np.cumsum(counts) - counts
    n = counts[rows]
    total = int(n.sum())
    at = np.arange(total) + np.repeat(starts[rows] - (np.cumsum(n) - n), n)
    return ids[at], sizes[at], n
