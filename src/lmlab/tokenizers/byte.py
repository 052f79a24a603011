"""Bytes of UTF-8 as tokens: nothing to train, nothing unknown."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from lmlab.tokenizers import bytelevel, document
from lmlab.tokenizers.protocol import Encoding
from lmlab.tokenizers.vocabulary import Vocabulary

SPECIALS = {"<eos>": 256}


class ByteTokenizer(Vocabulary):
    """The 256 bytes, id equal to value, and <eos>."""

    kind = "byte"
    lossless = True

    def __init__(self):
        super().__init__([*(bytes([b]) for b in range(256)), b""], SPECIALS, eos_id=256)

    def encode(self, text: str) -> Encoding:
        ids = np.frombuffer(text.encode(), np.uint8).astype(np.int32)
        return Encoding(ids, np.arange(1, len(ids) + 1))

    def to_json(self) -> str:
        vocab = {c: b for b, c in enumerate(bytelevel.CHARACTERS)} | SPECIALS
        return document.dumps(
            document.spec(
                {"type": "BPE", "vocab": vocab, "merges": []},
                self.kind,
                SPECIALS,
                pre_tokenizer=bytelevel.WHOLE,
                decoder=bytelevel.DECODER,
            )
        )

    @classmethod
    def from_document(cls, content: dict[str, Any]) -> "ByteTokenizer":
        if len(content["model"]["vocab"]) != 257:
            raise ValueError(f"a byte vocabulary has 257 entries, not {len(content['model']['vocab'])}")
        return cls()


def train(documents: Iterable[str]) -> ByteTokenizer:
    """Reads nothing: the vocabulary is the same for every text."""
    return ByteTokenizer()
