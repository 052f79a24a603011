"""Your own text: files, folders and globs, split by document or by contiguous share."""

import glob
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, cached_property
from itertools import takewhile
from pathlib import Path

import xxhash

from lmlab.data.cache import file_hash
from lmlab.data.corpora import formats
from lmlab.data.corpora.document import SPLITS, Document, Fragment, as_documents, check_split, named_fields

log = logging.getLogger(__name__)

# Raised when the same files give other documents or another split.
RULES = 2
# From here on split_by=auto goes by document: both held-out splits of 5 % then hold several.
MANY = 100
# 2^64 / golden ratio: multiples of it spread evenly over 2^64 (Knuth, TAOCP 3, 6.4), whatever the order's period.
GOLDEN = 0x9E3779B97F4A7C15


class Files:
    """Text files; a .txt or .md file is a document, and so is each row of a .jsonl, .csv or .parquet file.

    train, val, test: a file, folder or glob, or a list of them (`path` is another word for `train`). When only
    train is given, val and test are split off it: `split_by=document` takes whole documents, spread evenly over the
    corpus; `share` takes the corpus's end, test last, cut at a line end near the share of characters; `auto` goes by
    document from 100 documents on. With train and test given, val is split off train in the same way; with val given,
    the splits are what was given.
    A folder stands for every file under it of a known kind, in order of name. A file that a split is given twice, as
    by a folder and a glob, is read once, where it comes first.
    text_field: the field of .jsonl, .csv and .parquet that holds the text.
    meta_fields: of those, more fields that each document keeps beside its text, by which its loss can be told apart.
    document_separator: a .txt or .md file is several documents, each ending with it ("\\n\\n": a blank line).
    """

    name = "files"

    def __init__(
        self,
        path: str | Sequence[str] | None,
        train: str | Sequence[str] | None,
        val: str | Sequence[str] | None,
        test: str | Sequence[str] | None,
        split_by: str,
        val_share: float,
        test_share: float,
        text_field: str,
        document_separator: str | None,
        meta_fields: str | Sequence[str] = (),
    ):
        if path and train:
            raise ValueError(f"corpus.path={path} and corpus.train={train} mean the same; give one of them")
        given = {"train": train or path, "val": val, "test": test}
        if not any(given.values()):
            raise ValueError(
                "corpus=files needs text: corpus.train=FILE, FOLDER or GLOB (and corpus.val=, corpus.test=)"
            )
        if split_by not in ("auto", "document", "share"):
            raise ValueError(f"split_by={split_by!r} must be auto, document or share")
        self._files = {split: _find(split, what) for split, what in given.items() if what}
        _check_apart(self._files)
        self._shares: dict[str, float] | None = None
        if set(self._files) == {"train"}:
            self._shares = _check_shares(val_share, test_share)
        elif set(self._files) == {"train", "test"} and val_share:
            self._shares = _check_shares(val_share, 0.0)
        self.splits = tuple(split for split in SPLITS if split in self._files or self._is_cut(split))
        self._split_by, self._text_field, self._separator = split_by, text_field, document_separator
        self._meta_fields = named_fields(meta_fields, text_field)
        if self._meta_fields and not any(formats.kind(path)[0] in formats.ROWS for path in self._paths):
            raise ValueError(
                f"corpus.meta_fields={','.join(self._meta_fields)}: .txt and .md files have no fields; leave it out, "
                f"or give files of {', '.join(formats.ROWS)}"
            )

    def fingerprint(self) -> str:
        content = {s: [(name, file_hash(path)) for name, path in files] for s, files in self._files.items()}
        how = (self._split_by, self._shares) if self._shares else None
        rules = [RULES, content, how, self._text_field, self._separator]
        rules += [self._meta_fields] if self._meta_fields else []
        return xxhash.xxh3_128_hexdigest(json.dumps(rules).encode())

    def provenance(self) -> str:
        n = sum(map(len, self._files.values()))
        return f"{n} file{'s' if n > 1 else ''}" + (f", split by {self._way}" if self._shares else "")

    def approximate_bytes(self) -> int | None:
        plain = all(formats.kind(path)[1] == "" and path.suffix != ".parquet" for path in self._paths)
        return sum(path.stat().st_size for path in self._paths) if plain else None

    def file_bytes(self) -> int | None:
        """The size that all splits together must have: of plain files that are the text itself, else None."""
        if any(formats.kind(path) not in ((".txt", ""), (".md", "")) for path in self._paths):
            return None
        return sum(path.stat().st_size - formats.mark_bytes(path) for path in self._paths)

    def documents(self, split: str) -> Iterator[Document]:
        """Raises ValueError when the split turns out to have no text, FileNotFoundError when a file is gone."""
        check_split(self, split)
        if not self._is_cut(split):
            fragments = self._fragments(split)
        elif self._way == "document":
            fragments = self._spread(split)
        else:
            fragments = self._contiguous(split)
        empty = True
        for document in as_documents(fragments):
            empty = False
            yield document
        if empty:
            raise ValueError(self._too_short(split))

    @property
    def _paths(self) -> list[Path]:
        return [path for files in self._files.values() for _, path in files]

    def _is_cut(self, split: str) -> bool:
        """Is the split a part of train's files?"""
        return bool(self._shares and self._shares[split])

    def _fragments(self, split: str) -> Iterator[Fragment]:
        """All text of what was given for a split; documents without any text are no documents."""
        number, last = -1, None
        for index, (name, path) in enumerate(self._files[split]):
            rows = formats.kind(path)[0] in formats.ROWS or self._separator
            for row, piece, meta in formats.read(path, self._text_field, self._separator, self._meta_fields):
                if (index, row) != last:
                    number, last = number + 1, (index, row)
                yield Fragment(number, f"{name}:{row}" if rows else name, piece, meta)

    @cached_property
    def _way(self) -> str:
        if self._split_by != "auto":
            return self._split_by
        return "document" if any(fragment.number + 1 >= MANY for fragment in self._fragments("train")) else "share"

    @cached_property
    def _total(self) -> int:
        return sum(len(fragment.text) for fragment in self._fragments("train"))

    def _spread(self, split: str) -> Iterator[Fragment]:
        low = {"test": 0.0, "val": self._shares["test"], "train": self._shares["test"] + self._shares["val"]}[split]
        high = low + self._shares[split] if split != "train" else 1.0
        for fragment in self._fragments("train"):
            if low <= (fragment.number * GOLDEN % 2**64) / 2**64 < high:
                yield fragment

    def _contiguous(self, split: str) -> Iterator[Fragment]:
        held_out = [split for split in ("val", "test") if self._shares[split]]
        sizes = [self._shares[split] * self._total for split in held_out]
        bounds = [round(self._total - sum(sizes[i:])) for i in range(len(sizes))]
        # A quarter at either end: no snapping takes more than half of a held-out split.
        slack = int(min(sizes, default=0) / 4)
        for part, fragment in _cut_at(self._fragments("train"), bounds, slack):
            if ["train", *held_out][part] == split:
                yield fragment

    def _too_short(self, split: str) -> str:
        files = ", ".join(name for name, _ in self._files.get(split, self._files.get("train", [])))
        if not self._is_cut(split):
            return f"split {split} has no text: {files:.80} holds none"
        if self._way == "document":
            return f"split {split} has no document: {files:.80} holds too few; use corpus.split_by=share"
        return (
            f"corpus too short to split: {files:.80} has {self._total} characters, and {split} gets none; give more "
            f"text, a larger corpus.{split}_share, or corpus.val= and corpus.test="
        )


def _check_shares(val: float, test: float) -> dict[str, float]:
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
        raise ValueError(f"val_share={val} and test_share={test} must be from 0 on and leave some for train")
    return {"train": 1 - val - test, "val": val, "test": test}


def _cut_at(fragments: Iterable[Fragment], bounds: list[int], slack: int) -> Iterator[tuple[int, Fragment]]:
    """(part, fragment): part 0 up to the first bound (in characters), and so on, each bound moved by at most slack.

    To a line's or document's end if one is near enough, else to the end of a word, else not at all.
    """
    part = position = 0
    before = None
    for fragment, after in _with_next(fragments):
        number, text = fragment.number, fragment.text
        while part < len(bounds) and bounds[part] <= position + len(text):
            at = max(bounds[part] - position, 0)
            edges = [0] * (before != number) + [len(text)] * (after != number)
            end = _place(text, at, edges, slack)
            if end:
                yield part, fragment._replace(text=text[:end])
            part, position, text, before = part + 1, position + end, text[end:], number
        if text:
            yield part, fragment._replace(text=text)
        position, before = position + len(text), number


def _with_next(fragments: Iterable[Fragment]) -> Iterator[tuple[Fragment, int | None]]:
    """Each fragment with the number of the one after it."""
    last = None
    for fragment in fragments:
        if last is not None:
            yield last, fragment.number
        last = fragment
    if last is not None:
        yield last, None


def _place(text: str, at: int, edges: list[int], slack: int) -> int:
    ends = [text.rfind("\n", 0, at) + 1, text.find("\n", at) + 1]
    near = [end for end in edges + [end for end in ends if end] if abs(end - at) <= slack]
    if near:
        return min(near, key=lambda end: abs(end - at))
    space = re.compile(r"\s").search(text, at, at + slack)
    return space.start() if space else at


def _find(split: str, given: str | Sequence[str]) -> list[tuple[str, Path]]:
    """(name, path) of every file that was asked for, once; names do not tell where on the machine the files lie."""
    kept: dict[Path, tuple[str, Path]] = {}
    again: list[Path] = []
    for one in [given] if isinstance(given, str | Path) else given:
        for name, path in _find_one(split, str(one)):
            # Names are stored: bytes of them that are no UTF-8 become question marks.
            found = name.encode("utf-8", "replace").decode(), path
            if kept.setdefault(path.resolve(), found) is not found:
                again.append(path)
    if again:
        them = f"{len(again):,} files that were" if len(again) > 1 else "a file that was"
        _tell(f"corpus.{split}: passed over {them} given before: {again[0]}")
    return list(kept.values())


@cache
def _tell(line: str) -> None:
    """Log it once: a command reads its corpus's settings several times."""
    log.info("%s", line)


def _find_one(split: str, given: str) -> list[tuple[str, Path]]:
    # Unlike pathlib's, it leaves "~backup.txt" as it is where nobody is called so.
    path = Path(os.path.expanduser(given))
    if path.is_dir():
        inside = sorted(p for p in _below(path) if p.is_file() and formats.kind(p))
        found = [(p.relative_to(path).as_posix(), p) for p in inside]
        if not found:
            raise ValueError(f"corpus.{split}={given} is a folder without text files ({formats.KNOWN})")
        return found
    if not path.exists() and glob.has_magic(given):
        fixed = takewhile(lambda part: not glob.has_magic(part), path.parts)
        root = Path(*fixed)
        matches = sorted(Path(p) for p in glob.glob(str(path), recursive=True))
        found = [(p.relative_to(root).as_posix(), p) for p in matches if p.is_file()]
        if not found:
            raise FileNotFoundError(f"corpus.{split}={given} matches no file; check the pattern from {Path.cwd()}")
    elif not path.exists():
        raise FileNotFoundError(f"corpus.{split}={given} does not exist; check the path from {Path.cwd()}")
    else:
        if path.stat().st_size == 0:
            raise ValueError(f"corpus.{split}={given} is empty; give a file with text")
        found = [(path.name, path)]
    for _, p in found:
        if formats.kind(p) is None:
            raise ValueError(f"corpus.{split}: {p} has an unknown extension; rename it to one of {formats.KNOWN}")
    return found


def _below(folder: Path) -> Iterator[Path]:
    """What lies in a folder and the folders below it, hidden ones aside; raises OSError where one cannot be read.

    Behind links, too, each real folder once: by a path without links where it has one, lest names hang on the links.
    """
    tops, seen = [folder], set()
    for top in tops:
        for at, folders, names in os.walk(top, onerror=_refuse):
            if (real := os.path.realpath(at)) in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            # A walk lists links to folders and does not enter them.
            tops += [Path(at, name) for name in folders if os.path.islink(os.path.join(at, name))]
            yield from (Path(at, name) for name in names if not name.startswith("."))


def _refuse(error: OSError) -> None:
    raise error


def _check_apart(files: dict[str, list[tuple[str, Path]]]) -> None:
    """No file in two splits: what was trained on would be tested on."""
    seen: dict[Path, str] = {}
    for split, found in files.items():
        for _, path in found:
            if seen.setdefault(path.resolve(), split) != split:
                raise ValueError(f"{path} is in corpus.{seen[path.resolve()]} and in corpus.{split}; leave it in one")
