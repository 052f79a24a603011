"""Any Hugging Face data set: on the Hub, in its cache, or in a folder."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import combinations, product
from pathlib import Path
from typing import Any

import xxhash

from lmlab.data.cache import file_hash
from lmlab.data.corpora.document import SPLITS, Document, check_fields, check_split, named_fields, told
from lmlab.data.corpora.text import cut

# Raised when the same data gives other documents.
RULES = 1
# A part of a split's name, as datasets reads it: `train`, `train[:100]`, `train[-5%:]`, `train[10%:20%](closest)`.
PART = re.compile(r"(?P<name>[\w.]+)(\[(?P<low>-?[\d_]+%?)?:(?P<high>-?[\d_]+%?)?\])?(\([^)]*\))?")
# Where a slice begins or ends: what is counted, and how far; None: at the split's own beginning or end.
Edge = tuple[str, int] | None
# What datasets calls all splits together.
EVERY = ("all", None, None)


class HuggingFace:
    """Each row's text field is a document; rows without text are skipped.

    path: a data set's name on the Hub, or a folder (of data files, or made by `save_to_disk`).
    name: its configuration. revision: a branch, tag or commit; with a commit opening a store needs no network.
    streaming: read without downloading the whole first. train, val, test: the data set's own names of the splits
    (its slices too, `train[:95%]`, unless streaming), None for one that is not used.
    meta_fields: more columns, which each document keeps beside its text.
    Raises FileNotFoundError when the data set is not there, ValueError for a split or field that it lacks.
    """

    name = "hf"

    def __init__(
        self,
        path: str,
        name: str | None,
        revision: str | None,
        streaming: bool,
        text_field: str,
        train: str | None,
        val: str | None,
        test: str | None,
        meta_fields: str | Sequence[str] = (),
    ):
        given = dict(zip(SPLITS, (train, val, test), strict=True))
        self._names = {split: which for split, which in given.items() if which}
        if not self._names:
            raise ValueError("corpus=hf needs a split: corpus.train=train (and corpus.val=, corpus.test=)")
        for (split, which), (other, rest) in combinations(self._names.items(), 2):
            if name := _shared(which, rest):
                raise ValueError(
                    f"corpus.{split}={which} and corpus.{other}={rest} name the same rows; slice them apart, as in "
                    f"{name}[5%:] and {name}[:5%]"
                )
        self.splits = tuple(self._names)
        self._where, self._config, self._revision = path, name, revision
        self._streaming, self._text_field = streaming, text_field
        self._meta_fields = named_fields(meta_fields, text_field)
        self._folder = folder if (folder := Path(os.path.expanduser(path))).is_dir() else None

    def fingerprint(self) -> str:
        parts = [RULES, self._content(), self._config, self._names, self._text_field]
        parts += [self._meta_fields] if self._meta_fields else []
        return xxhash.xxh3_128_hexdigest(json.dumps(parts).encode())

    def _content(self) -> Any:
        if self._folder:
            inside = [(path.relative_to(self._folder), path) for path in sorted(self._folder.rglob("*"))]
            return [(at.as_posix(), file_hash(path)) for at, path in inside if path.is_file() and not _by_use(at)]
        if re.fullmatch(r"[0-9a-f]{40}", self._revision or ""):
            return [self._where, self._revision]
        # The builder's identity holds the commit that the branch or tag stands for, or the cached copy's.
        builder = self._load("load_dataset_builder", self._where, self._config, revision=self._revision)
        return [self._where, builder.hash, builder.config_id]

    def provenance(self) -> str:
        config = f", {self._config}" if self._config else ""
        return f"{self._where}{config}, revision {self._revision or 'newest'}, field {self._text_field}"

    def approximate_bytes(self) -> int | None:
        return None

    def documents(self, split: str) -> Iterator[Document]:
        check_split(self, split)
        empty, number = True, -1
        fields = (self._text_field, *self._meta_fields)
        for batch in self._tables[split].select_columns(list(fields)).iter(batch_size=256):
            for text, *others in zip(*(batch[field] for field in fields), strict=True):
                number += 1
                place = f"{self._where}, {split} row {number}"
                if not isinstance(text, str):
                    raise ValueError(f"{place}: {self._text_field}={text!r:.40} is not text")
                if text:
                    empty = False
                    meta = told(place, dict(zip(self._meta_fields, others, strict=True)))
                    yield Document(f"{self._names[split]}:{number}", cut([text]), meta)
        if empty:
            raise ValueError(f"split {split} has no text: {self._names[split]!r} of {self._where} has none")

    @cached_property
    def _tables(self) -> dict[str, Any]:
        """Each split's rows, all of them opened before one is read: a split or field that is missing is told first."""
        tables = {split: self._rows(split, which) for split, which in self._names.items()}
        for split, rows in tables.items():
            # Of some data a stream knows its columns by its rows alone.
            columns = rows.column_names or list(next(iter(rows), {}))
            if columns:
                check_fields(f"{self._where}, {split},", self._text_field, self._meta_fields, columns)
        return tables

    def _rows(self, split: str, which: str) -> Any:
        """The rows of one of the data set's splits."""
        if self._folder and any((self._folder / mark).exists() for mark in ("dataset_dict.json", "state.json")):
            return self._saved(split, which)
        options = {"split": which, "revision": self._revision, "streaming": self._streaming}
        try:
            return self._load("load_dataset", str(self._folder or self._where), self._config, **options)
        except ValueError as error:
            if re.search(r"(Unknown|Bad) split", str(error)):
                raise ValueError(f"{str(error).rstrip('.')}; {_other(split)}") from None
            raise

    def _saved(self, split: str, which: str) -> Any:
        saved = self._load("load_from_disk", str(self._folder))
        name = which.partition("[")[0]
        if hasattr(saved, "keys"):
            if name not in saved:
                raise ValueError(f"{self._where} has no split {name!r}, it has {', '.join(saved)}; {_other(split)}")
            saved = saved[name]
        if which != name:
            raise ValueError(f"{which!r}: a data set made by save_to_disk cannot be sliced; name a whole split")
        return saved

    def _load(self, function: str, *args: Any, **options: Any) -> Any:
        try:
            import datasets
        except ImportError:
            raise ModuleNotFoundError("corpus=hf needs datasets: pip install 'lmlab[hf]'") from None
        try:
            return getattr(datasets, function)(*args, **options)
        except (FileNotFoundError, ConnectionError) as error:
            reason = str(error).splitlines()[0]
            raise FileNotFoundError(
                f"corpus.path={self._where} could not be loaded ({reason}); without network give corpus.path=FOLDER"
            ) from None
        except ValueError as error:
            raise ValueError(f"corpus.path={self._where}: {' '.join(str(error).split())}") from None


def _by_use(path: Path) -> bool:
    """Is it a file that datasets or `hf download` put there, which is no part of the data?"""
    hidden = any(part.startswith(".") for part in path.parts)
    return hidden or path.suffix == ".lock" or path.match("cache-*.arrow")


def _other(split: str) -> str:
    return f"choose with corpus.{split}=; corpus.{split}=null leaves it out"


def _shared(which: str, other: str) -> str | None:
    """The data set's split of which both names take some of the same rows, where the names alone tell it.

    Whether a share and a number of rows meet, or a number from the start and one from the end, only the data knows.
    """
    for one, two in product(_parts(which), _parts(other)):
        (name, low, high), (same, bottom, top) = one, two
        if (name == same or EVERY in (one, two)) and _below(low, top) and _below(bottom, high):
            return same if one == EVERY else name
    return None


def _parts(which: str) -> list[tuple[str, Edge, Edge]]:
    """(name, first, end) of each part of `a+b[:5%]`; what datasets will not read is a name."""
    parts = []
    for part in map(str.strip, which.split("+")):
        m = PART.fullmatch(part)
        parts.append((m["name"], _edge(m["low"], "0", "0%"), _edge(m["high"], "100%")) if m else (part, None, None))
    return parts


def _edge(text: str | None, *outermost: str) -> Edge:
    if text is None or text in outermost:
        return None
    value = int(text.rstrip("%"))
    if text.endswith("%"):
        return "%", value % 100 if value < 0 else value
    return ("from the end" if value < 0 else "from the start"), value


def _below(first: Edge, end: Edge) -> bool:
    return first is None or end is None or (first[0] == end[0] and first[1] < end[1])
