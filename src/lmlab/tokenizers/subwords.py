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
from lmlab.tokenizers.lexicon import SPACES, Lexicon, Ragged, n_bytes
from lmlab.tokenizers.protocol import Encoding
from lmlab.tokenizers.vocabulary import Vocabulary

# All cores here; in a forked child none, where Rust's threads are gone and waiting for them would hang.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: os.environ.__setitem__("TOKENIZERS_PARALLELISM", "false"))

# Characters that Rust is given at once: it spends some 150 bytes a token.
_GROUP = 2_000_000
# Characters of a batch from which on looking its words up is faster than encoding them.
REPEATS = 20_000
# Words are this long at most on average, or the text is none that repeats its words (Chinese).
WORD = 24
_STRETCHES = re.compile(f"(?s:.{{2048}}[{SPACES}]*[^{SPACES}]+|.+)")


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
        self._sizes = np.array([len(piece) for piece in self.pieces], np.int32)
        self._lexicon = Lexicon(self.encode_units)

    def to_json(self) -> str:
        return document.dumps(self.content)

    def encode(self, text: str) -> Encoding:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
        return [encoding for group in _groups(texts) for encoding in self._encode_group(group)]

    def _encode_group(self, texts: list[str]) -> list[Encoding]:
        size = sum(map(len, texts))
        if not self.cuts_at_space or size < REPEATS:
            found = self._one_by_one([[text] if text else [] for text in texts])
        elif sum(text.count(space) for text in texts for space in " \t") * WORD < size:
            # In stretches, so that all of Rust's threads have something to do.
            found = self._one_by_one([_STRETCHES.findall(text) for text in texts])
        else:
            found = self._lexicon(texts)
        return [Encoding(ids, np.cumsum(sizes, dtype=np.int64)) for ids, sizes in found]

    def _one_by_one(self, units: list[list[str]]) -> list[tuple[np.ndarray, np.ndarray]]:
        """(ids, sizes in bytes) of texts that are given in units."""
        ids, sizes, counts = self.encode_units(list(chain.from_iterable(units)))
        before = np.concatenate([[0], np.cumsum(counts)])
        bounds = before[np.cumsum([0, *map(len, units)])]
        return [(ids[a:b], sizes[a:b]) for a, b in pairwise(bounds.tolist())]

    def encode_units(self, units: list[str]) -> Ragged:
        """(ids, sizes in bytes, tokens per unit), the units one after the other."""
        rows = [e.ids for e in self.rust.encode_batch_fast(units, add_special_tokens=False)]
        counts = np.fromiter(map(len, rows), np.int64, len(rows))
        ids = np.fromiter(chain.from_iterable(rows), np.int32, int(counts.sum()))
        sizes = self._sizes[ids]
        ends = np.cumsum(counts)
        total = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        covered = total[ends] - total[ends - counts]
        source = np.fromiter(map(n_bytes, units), np.int64, len(units))
        # Normalised, unknown or prefixed text: the pieces do not spell the source, so ask Rust where they come from.
        asked = covered != source
        if self.unk_id is not None:
            # <unk> has no length of its own: several may add up to the right sum.
            asked[np.repeat(np.arange(len(units)), counts)[ids == self.unk_id]] = True
        for i in np.flatnonzero(asked).tolist():
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
