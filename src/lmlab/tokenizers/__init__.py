"""Text to ids and back: six kinds behind one protocol, each stored as one tokenizer.json."""

import importlib
from pathlib import Path

import xxhash

from lmlab.tokenizers import document
from lmlab.tokenizers.protocol import Encoding, Tokenizer
from lmlab.tokenizers.streaming import StreamDecoder

__all__ = ["Encoding", "StreamDecoder", "Tokenizer", "content_hash", "load"]

# Imported when met: Rust's library and its neighbours are not needed to read bytes.
KINDS = {
    "char": "CharTokenizer",
    "byte": "ByteTokenizer",
    "word": "WordTokenizer",
    "bpe": "BPETokenizer",
    "unigram": "UnigramTokenizer",
    "pretrained": "PretrainedTokenizer",
}


def content_hash(tokenizer: Tokenizer) -> str:
    """Sixteen hex digits of all that it does."""
    return xxhash.xxh3_64_hexdigest(tokenizer.to_json().encode())


def load(path: str | Path) -> Tokenizer:
    """Any kind from its tokenizer.json; a file that another tool wrote is read as `pretrained`.

    Raises FileNotFoundError, and ValueError with the path where the file is damaged.
    """
    content, note = document.read(path)
    kind = "pretrained" if note is None else note.get("kind")
    if kind not in KINDS:
        raise ValueError(f"{path} holds a tokenizer of kind {kind!r}, this lmlab knows {', '.join(KINDS)}")
    if note is None:
        from lmlab.tokenizers.pretrained import adopt

        return adopt(Path(path))
    cls = getattr(importlib.import_module(f"lmlab.tokenizers.{kind}"), KINDS[kind])
    try:
        return cls.from_document(content)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise document.damaged(path, error) from error
