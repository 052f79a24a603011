"""What every tokenizer offers: the protocol, and the Encoding that it gives."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, SupportsIndex, runtime_checkable

import numpy as np


@dataclass(frozen=True, slots=True)
class Encoding:
    """Token ids and the stretch of source text that each token stands for.

    ids: (T,) int32. ends: (T,) int64, the end of each token's span in bytes of `text.encode()`, non-decreasing;
    token i covers [ends[i - 1], ends[i]), so that bytes which no token claims (the space before a word) fall to the
    token after them. Bytes after `ends[-1]` are still unclaimed (a `word` text that ends in spaces; one of spaces
    alone has no token): whoever joins encodings gives them to the document's next token, or to its closing <eos>.
    """

    ids: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


@runtime_checkable
class Tokenizer(Protocol):
    """Text to ids and back; text is never parsed as a special token, so "<eos>" in a text is five characters."""

    kind: str
    vocab_size: int
    # Names of the tokens that no text is made of, e.g. {"<unk>": 0, "<eos>": 1}; `load` keeps them.
    specials: dict[str, int]
    eos_id: int
    # What the first token of a text is predicted from: <bos> if there is one, else <eos>.
    start_id: int
    unk_id: int | None
    # Decode after encode is the identity for any text that UTF-8 can hold.
    lossless: bool
    # Steps of somebody else's tokenizer that change or drop text, by name: what they fold costs nothing. Our own kinds
    # have none; that `word` drops white space is known of it.
    lossy_steps: tuple[str, ...]

    def encode(self, text: str) -> Encoding:
        """Exactly the text, no closing <eos> (but in `word` each newline is an <eos>)."""

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
        """`encode` of each text, faster: on all cores where Rust does the work."""

    def needs_eos(self, tail: str) -> bool:
        """Whether a document whose text ends with `tail` is still to be closed with an <eos> of no bytes."""

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """The text; specials stand for nothing (in `word`: <unk>, newline), what is no UTF-8 or unknown for U+FFFD."""

    def to_bytes(self, token: int, previous: int | None) -> bytes:
        """What `token` adds to a text whose last token is `previous` (None at the start)."""

    def token(self, id: SupportsIndex) -> str:
        """One token for display: specials by name, control characters escaped, bytes that are no UTF-8 as \\xNN."""

    def unknown(self, text: str) -> list[str]:
        """The distinct characters or words of the text that become <unk>, in order of appearance."""

    def to_json(self) -> str:
        """What `save` writes; two tokenizers are the same exactly when these are equal."""

    def save(self, path: str | Path) -> None:
        """Write the one tokenizer.json, atomically."""
