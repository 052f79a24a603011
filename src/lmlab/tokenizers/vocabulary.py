"""What the kinds share: tokens as stretches of bytes, hence decoding, display and naming the unknown."""

import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from operator import index
from pathlib import Path
from typing import SupportsIndex

import numpy as np

from lmlab.tokenizers import document
from lmlab.tokenizers.protocol import Encoding

REPLACEMENT = "\ufffd".encode()


class Vocabulary(ABC):
    """A tokenizer over `pieces`, the bytes that each id stands for; specials stand for none."""

    kind: str
    lossless = False
    lossy_steps: tuple[str, ...] = ()

    def __init__(
        self,
        pieces: Sequence[bytes],
        specials: dict[str, int],
        eos_id: int,
        unk_id: int | None = None,
        start_id: int | None = None,
    ):
        self.pieces = list(pieces)
        self.vocab_size = len(self.pieces)
        self.specials = specials
        self.eos_id = eos_id
        self.start_id = eos_id if start_id is None else start_id
        self.unk_id = unk_id
        self._names = {i: name for name, i in specials.items()}

    @abstractmethod
    def encode(self, text: str) -> Encoding: ...

    @abstractmethod
    def to_json(self) -> str: ...

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
        return [self.encode(text) for text in texts]

    def needs_eos(self, tail: str) -> bool:
        return True

    def to_bytes(self, token: int, previous: int | None) -> bytes:
        return self.pieces[token]

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        return self._bytes(list(map(index, ids))).decode("utf-8", "replace")

    def _bytes(self, ids: list[int]) -> bytes:
        if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            bad = min(ids) if min(ids) < 0 else max(ids)
            raise ValueError(f"token id {bad} is outside the {self.kind} vocabulary of {self.vocab_size}")
        return b"".join(map(self.to_bytes, ids, [None, *ids[:-1]]))

    def token(self, id: SupportsIndex) -> str:
        name = self._names.get(index(id))
        if name is not None:
            return name
        text = self.pieces[id].decode("utf-8", "backslashreplace")
        return "".join(_escape(c) if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in text)

    def unknown(self, text: str) -> list[str]:
        if self.unk_id is None:
            return []
        encoding, source = self.encode(text), text.encode()
        starts = np.concatenate([[0], encoding.ends[:-1]])
        at = np.flatnonzero(encoding.ids == self.unk_id)
        return list(dict.fromkeys(source[starts[i] : encoding.ends[i]].decode() for i in at))

    def save(self, path: str | Path) -> None:
        document.write(self.to_json(), path)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()
