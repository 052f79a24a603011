"""Characters (Unicode code points) as tokens."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from lmlab.tokenizers import document
from lmlab.tokenizers.codepoints import N_CODE_POINTS, byte_ends, code_points, count_characters
from lmlab.tokenizers.protocol import Encoding
from lmlab.tokenizers.vocabulary import REPLACEMENT, Vocabulary

SPECIALS = {"<unk>": 0, "<eos>": 1}


class CharTokenizer(Vocabulary):
    """<unk>, <eos>, then the characters of the training text by code point; others become <unk>."""

    kind = "char"

    def __init__(self, characters: list[str]):
        if any(len(c) != 1 for c in characters) or len(set(characters)) != len(characters):
            raise ValueError("the vocabulary of a char tokenizer must be distinct single characters")
        super().__init__([REPLACEMENT, b"", *(c.encode() for c in characters)], SPECIALS, eos_id=1, unk_id=0)
        self.characters = characters
        self._ids = np.zeros(N_CODE_POINTS, np.int32)
        self._ids[[ord(c) for c in characters]] = np.arange(2, self.vocab_size)

    def encode(self, text: str) -> Encoding:
        points = code_points(text)
        return Encoding(self._ids[points], byte_ends(points))

    def to_json(self) -> str:
        names = [*SPECIALS, *self.characters]
        return document.dumps(
            document.spec(
                {"type": "WordLevel", "vocab": {c: i for i, c in enumerate(names)}, "unk_token": "<unk>"},
                self.kind,
                SPECIALS,
                pre_tokenizer={
                    "type": "Split",
                    "pattern": {"Regex": r"[\s\S]"},
                    "behavior": "Isolated",
                    "invert": False,
                },
                decoder={"type": "Fuse"},
            )
        )

    @classmethod
    def from_document(cls, content: dict[str, Any]) -> "CharTokenizer":
        return cls(document.in_order(content["model"]["vocab"], SPECIALS))


def train(documents: Iterable[str], min_count: int) -> CharTokenizer:
    """The characters that occur at least `min_count` times; all text is counted."""
    counts = count_characters(documents)
    characters = [c for c, n in counts.items() if n >= min_count]
    if not characters:
        remedy = "lower tokenizer.min_count" if counts else "is it empty?"
        raise ValueError(f"no character occurs tokenizer.min_count={min_count} times in the train split: {remedy}")
    return CharTokenizer(characters)
