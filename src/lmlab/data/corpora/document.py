"""The protocol: a corpus is named splits of documents, and a fingerprint of their content."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol, runtime_checkable

SPLITS = ("train", "val", "test")

# One stretch of text on its way through a corpus: (number of its document, the document's name, the text).
Fragment = tuple[int, str, str]


@dataclass
class Document:
    """A text that stands on its own.

    pieces: concatenated they are the text; each at most about 1 MB, cut where no tokenizer joins. They are read from
    the source as they are asked for, once, and before the next document.
    meta: what the source says about the document (a year, an author), plain data.
    """

    name: str
    pieces: Iterable[str]
    meta: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class Corpus(Protocol):
    """Text in splits; `documents` may be called again and again and gives the same each time.

    fingerprint: changes when the content, or the way of splitting it, changes; never with where it lies.
    provenance: a phrase for reports: what the text is and what was verified.
    approximate_bytes: the size of all splits, for a progress bar; None when it is not known beforehand.
    A corpus that is plain files may also have `file_bytes`: their size to the byte, which an audit asks for.
    """

    name: str
    splits: tuple[str, ...]

    def fingerprint(self) -> str: ...
    def documents(self, split: str) -> Iterator[Document]: ...
    def provenance(self) -> str: ...
    def approximate_bytes(self) -> int | None: ...


def as_documents(fragments: Iterable[Fragment]) -> Iterator[Document]:
    """Fragments of the same number, which stand together, become one document."""
    for (_, name), group in groupby(fragments, key=lambda fragment: fragment[:2]):
        yield Document(name, (text for _, _, text in group))


def check_split(corpus: Corpus, split: str) -> None:
    """Raise ValueError unless the corpus has the split."""
    if split not in corpus.splits:
        raise ValueError(f"split={split!r} is not in corpus {corpus.name}, which has {', '.join(corpus.splits)}")
