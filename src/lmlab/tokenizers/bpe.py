"""Byte-level byte-pair encoding (Sennrich et al. 2016; on bytes, as in Radford et al. 2019): lossless for any text."""

import json
from collections.abc import Iterable
from typing import Any

import tokenizers
from lmlab.tokenizers import bytelevel, document
from lmlab.tokenizers.sample import sample, tell_fewer
from lmlab.tokenizers.subwords import Subwords, rust

SPECIALS = {"<eos>": 0}
MIN_VOCAB = 256 + len(SPECIALS)


class BPETokenizer(Subwords):
    """<eos>, the 256 bytes, then merges in the order in which they were learnt."""

    kind = "bpe"
    lossless = True
    # GPT-2's expression lets no token pass from a non-space to white space.
    cuts_at_space = True

    @classmethod
    def from_document(cls, content: dict[str, Any]) -> "BPETokenizer":
        names = document.in_order(content["model"]["vocab"], SPECIALS)
        if not set(bytelevel.CHARACTERS) <= set(names):
            raise ValueError("a byte-level vocabulary must hold all 256 bytes")
        return cls(content, [b"", *map(bytelevel.to_bytes, names)], SPECIALS, eos_id=0)


def train(documents: Iterable[str], vocab_size: int, min_frequency: int, sample_bytes: int) -> BPETokenizer:
    """Learn merges until there are `vocab_size` tokens, or no pair occurs `min_frequency` times: then fewer.

    sample_bytes: see `sample`; training keeps in memory some 10 bytes for each byte of English, 60 of Chinese.
    """
    if vocab_size < MIN_VOCAB:
        raise ValueError(f"tokenizer.vocab_size={vocab_size} must be at least {MIN_VOCAB}: the 256 bytes and <eos>")
    texts = sample(documents, sample_bytes)
    if not any(texts):
        raise ValueError("no text in the train split to learn merges from")
    empty = document.spec(
        {"type": "BPE", "vocab": {}, "merges": []},
        BPETokenizer.kind,
        {},
        pre_tokenizer=bytelevel.WORDS,
        decoder=bytelevel.DECODER,
    )
    learner = rust(empty)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(bytelevel.CHARACTERS),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    model = json.loads(learner.to_str())["model"]
    found = BPETokenizer.from_document(
        document.spec(model, BPETokenizer.kind, SPECIALS, pre_tokenizer=bytelevel.WORDS, decoder=bytelevel.DECODER)
    )
    tell_fewer(found.vocab_size, vocab_size)
    return found
