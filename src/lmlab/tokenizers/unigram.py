"""Unigram language model of sub-words (Kudo 2018): the segmentation of highest probability."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

import tokenizers
from lmlab.tokenizers import document
from lmlab.tokenizers.codepoints import count_characters
from lmlab.tokenizers.sample import sample, tell_fewer
from lmlab.tokenizers.subwords import Subwords, rust
from lmlab.tokenizers.vocabulary import REPLACEMENT

SPECIALS = {"<unk>": 0, "<eos>": 1}
BYTES = {f"<0x{b:02X}>": bytes([b]) for b in range(256)}
# A word with the space before it, a number, a run of signs, white space: pieces never cross these. A "<" and the
# letters after it fall apart, so that no text can spell <unk> or <0x0A>.
PATTERN = r" ?[\p{L}\p{M}]+| ?\p{N}+| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+"
PARTS: dict[str, Any] = {
    "pre_tokenizer": {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False},
    "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
}
# Later rounds change the bits in the fifth digit (WikiText-2 and Song lyrics).
ROUNDS = 3


class UnigramTokenizer(Subwords):
    """<unk>, <eos>, with byte fallback the 256 bytes, then pieces by falling probability.

    Spaces are spelt as they are, nothing is normalised: with byte fallback every text comes back.
    """

    kind = "unigram"
    cuts_at_space = True

    @classmethod
    def from_document(cls, content: dict[str, Any]) -> "UnigramTokenizer":
        model = content["model"]
        names = [name for name, _ in model["vocab"]]
        in_order = document.in_order({name: i for i, name in enumerate(names)}, SPECIALS)
        pieces = [BYTES.get(n, n.encode()) if model["byte_fallback"] else n.encode() for n in in_order]
        tokenizer = cls(content, [REPLACEMENT, b"", *pieces], SPECIALS, eos_id=1, unk_id=0)
        tokenizer.lossless = model["byte_fallback"]
        return tokenizer


def train(
    documents: Iterable[str], vocab_size: int, byte_fallback: bool, character_coverage: float, sample_bytes: int
) -> UnigramTokenizer:
    """Choose pieces with Rust's trainer, then estimate their probabilities so that every training gives the same.

    character_coverage: the most frequent characters that make up this share of the text become pieces; the others
    are spelt in bytes, or are <unk>. The vocabulary may come out smaller where the text is short.
    """
    texts = sample(documents, sample_bytes)
    kept, dropped = _cover(texts, character_coverage)
    specials = [*SPECIALS, *BYTES] if byte_fallback else [*SPECIALS]
    if len(kept) + len(specials) > vocab_size:
        raise ValueError(
            f"tokenizer.vocab_size={vocab_size} cannot hold the {len(kept)} characters that cover "
            f"{character_coverage} of the text beside {len(specials)} other entries: raise it to "
            f"{len(kept) + len(specials)} or more, or lower tokenizer.character_coverage"
        )
    if dropped:
        cut = re.compile("[" + re.escape("".join(dropped)) + "]+")
        texts = [part for text in texts for part in cut.split(text) if part]
    pieces = _choose(texts, vocab_size - len(specials) + len(SPECIALS))
    found = _estimate(texts, specials, pieces, byte_fallback)
    tell_fewer(found.vocab_size, vocab_size)
    return found


def _cover(texts: list[str], coverage: float) -> tuple[list[str], list[str]]:
    """Characters that become pieces and those that do not."""
    if not 0 < coverage <= 1:
        raise ValueError(f"tokenizer.character_coverage={coverage} must be more than 0 and at most 1")
    counts = count_characters(texts)
    # Rust's trainer marks the ends of sentences with it.
    nul = [c for c in ("\0",) if counts.pop(c, 0)]
    if not counts:
        raise ValueError("no text in the train split to choose pieces from")
    by_count = sorted(counts, key=lambda c: (-counts[c], c))
    share = np.cumsum([counts[c] for c in by_count]) / sum(counts.values())
    n = int(np.searchsorted(share, coverage - 1e-12)) + 1
    return by_count[:n], by_count[n:] + nul


def _choose(texts: list[str], size: int) -> list[str]:
    model = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0]], "byte_fallback": False}
    learner = rust(document.spec(model, UnigramTokenizer.kind, {}, **PARTS))
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=size, special_tokens=list(SPECIALS), unk_token="<unk>", show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    vocab = json.loads(learner.to_str())["model"]["vocab"]
    return sorted({name for name, _ in vocab} - {*SPECIALS, *BYTES})


def _estimate(texts: list[str], specials: list[str], pieces: list[str], byte_fallback: bool) -> UnigramTokenizer:
    """Viterbi training from equal probabilities.

    Rust's own come out of sums in the order of a hash that is seeded anew in each process: the pieces agree, the
    probabilities do not, nor do the ids. These are the same every time and segment as well (within 0.1 % of the bits).
    """
    units = Counter(unit for text in texts for unit in re.findall(r"\s*\S+|\s+", text))
    words, times = list(units), np.fromiter(units.values(), np.int64, len(units))
    scores = np.full(len(pieces), -10.0)
    for _ in range(ROUNDS):
        tokenizer = _tokenizer(specials, pieces, scores, byte_fallback)
        ids, _, counts = tokenizer.encode_units(words)
        seen = np.bincount(ids, np.repeat(times, counts), tokenizer.vocab_size)[len(specials) :] + 0.1
        scores = np.log(seen / seen.sum())
    order = sorted(range(len(pieces)), key=lambda i: (-scores[i], pieces[i]))
    return _tokenizer(specials, [pieces[i] for i in order], scores[order], byte_fallback)


def _tokenizer(specials: list[str], pieces: list[str], scores: np.ndarray, byte_fallback: bool) -> UnigramTokenizer:
    vocab = [*([name, 0.0] for name in specials), *([p, float(s)] for p, s in zip(pieces, scores, strict=True))]
    model = {"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": byte_fallback}
    return UnigramTokenizer.from_document(document.spec(model, UnigramTokenizer.kind, SPECIALS, **PARTS))
