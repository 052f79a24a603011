"""The protocol: a corpus is named splits of documents, and a fingerprint of their content."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby
from operator import attrgetter
from typing import Any, NamedTuple, Protocol, runtime_checkable

SPLITS = ("train", "val", "test")

# What tables of documents have as columns or groups of their own; no field of a source may be called so.
TAKEN = frozenset(["name", "document", "split", "position", "frequency", "tokens", "bytes", "nll", "ppl", "bpb"])


class Fragment(NamedTuple):
    """One stretch of text on its way through a corpus; number, name and meta are its document's."""

    number: int
    name: str
    text: str
    meta: dict[str, Any]


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
    for _, group in groupby(fragments, key=attrgetter("number", "name")):
        first = next(group)
        yield Document(first.name, (fragment.text for fragment in chain([first], group)), first.meta)


def check_split(corpus: Corpus, split: str) -> None:
    """Raise ValueError unless the corpus has the split."""
    if split not in corpus.splits:
        raise ValueError(f"split={split!r} is not in corpus {corpus.name}, which has {', '.join(corpus.splits)}")


def named_fields(meta_fields: str | Iterable[str], text_field: str) -> tuple[str, ...]:
    """The fields of a source that are kept beside its text; ValueError for names that mean something else."""
    fields = (meta_fields,) if isinstance(meta_fields, str) else tuple(dict.fromkeys(meta_fields))
    if taken := [field for field in fields if field in TAKEN or field == text_field]:
        raise ValueError(f"corpus.meta_fields={taken[0]} means something else already; rename that field in your data")
    return fields


def check_fields(place: str, text_field: str, meta_fields: Sequence[str], has: Sequence[str]) -> None:
    """Raise ValueError unless a source has the fields."""
    for name in (text_field, *meta_fields):
        if name not in has:
            key = "text_field" if name == text_field else "meta_fields"
            raise ValueError(f"{place} has no {name!r}, it has {', '.join(map(repr, has))}; choose with corpus.{key}=")


def told(place: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """A document's meta from a row's fields, without empty ones; ValueError for what is no text, number or truth."""
    meta = {name: value for name, value in fields.items() if value not in (None, "") and value == value}
    for name, value in meta.items():
        if not isinstance(value, str | int | float):
            raise ValueError(
                f"{place}: {name}={value!r:.40} is not text, a number, true or false; choose with corpus.meta_fields="
            )
        if isinstance(value, str):
            check_whole(place, name, value)
    return meta


def check_whole(place: str, name: str, text: str) -> None:
    """Raise ValueError for a string that JSON can write and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{place}: {name} holds half of a surrogate pair at character {error.start}") from None
