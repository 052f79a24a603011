"""Encoded once, mapped into memory, shared by all runs: the store of token ids and of what each token covers."""

import copy
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from lmlab.data.cache import locked
from lmlab.data.columns import checksum, column
from lmlab.data.corpora import Corpus
from lmlab.data.encode import SplitWriter
from lmlab.data.progress import Progress
from lmlab.seal import seal, unseal

if TYPE_CHECKING:
    from lmlab.tokenizers import Tokenizer

log = logging.getLogger(__name__)

# Raised when the files of a store change their meaning; part of the key, so old stores are left alone.
FORMAT = 2
MANIFEST, USED = "manifest.json", ".used"
# How `prepare` calls a store: the corpus and the first 64 bits of the key. What is called otherwise is not ours.
NAME = re.compile(r".+-[0-9a-f]{16}")
# Files up to here are checked by content on opening, which takes about a millisecond; larger ones by size and time of
# change, and by content where that time is another or training begins: some 0.3 s a gigabyte from memory, once.
CHECK_UP_TO = 4 << 20
# Bytes that a slow disk reads in some seconds.
TELL_FROM = 1 << 30
# Files, with their time of change, that were read and found to be what was written, where that could not be noted.
_unchanged: set[tuple[Path, int]] = set()
# By `Store.made`, what this process has read of a store: each trial of a sweep opens the same one.
_tokenizers: dict[tuple[Path, int], "Tokenizer"] = {}
_token_counts: dict[tuple[Path, int], np.ndarray] = {}
# By `Store.made`, the stores of which this process has read every byte, or has written it.
_whole: set[tuple[Path, int]] = set()


class DamagedStore(ValueError):
    """A store whose files are not what its manifest says."""


class Split:
    """One split's tokens, mapped into memory.

    ids: (n,) uint16 or uint32. n_bytes, n_chars, n_words: (n,) unsigned, what each token covers of the source.
    doc_starts: (documents,) int64, the first token of each document.
    totals: the sums over the split of tokens, bytes, chars and words.
    charges: (n,) float32, nats that a token costs besides its own nll under the protocol in use; None: none.
    text: hash of its documents' source, the same under every tokenizer; None: of a store that was made before there
    was one, or of a part of a split.
    """

    charges: np.ndarray | None = None
    text: str | None = None

    def __init__(self, folder: Path, name: str, entry: dict[str, Any]):
        columns = {key: column(folder / f"{name}.{key}", value) for key, value in entry["columns"].items()}
        self.ids, self.doc_starts = columns["ids"], columns["doc_starts"]
        self.n_bytes, self.n_chars, self.n_words = (columns[key] for key in ("n_bytes", "n_chars", "n_words"))
        self.totals: dict[str, int] = {key: entry["report"][key] for key in ("tokens", "bytes", "chars", "words")}
        self.text = entry.get("text")
        self._docs = folder / f"{name}.docs.jsonl"

    def __len__(self) -> int:
        return len(self.ids)

    def tail(self, n_tokens: int) -> "Split":
        """The last tokens of this split, perhaps from the middle of a document on; its documents have no names."""
        first = max(0, len(self) - n_tokens)
        part = copy.copy(self)
        for name in ("ids", "n_bytes", "n_chars", "n_words"):
            setattr(part, name, getattr(self, name)[first:])
        if self.charges is not None:
            part.charges = self.charges[first:]
        starts = np.asarray(self.doc_starts)
        part.doc_starts = np.unique(np.maximum(starts - first, 0))
        sums = {k: int(getattr(part, f"n_{k}").sum(dtype=np.int64)) for k in ("bytes", "chars", "words")}
        part.totals = {"tokens": len(part), **sums}
        part.__dict__["docs"], part.text = [], None
        return part

    @cached_property
    def docs(self) -> list[dict[str, Any]]:
        """What the corpus says of each document: its name, and more where the corpus knows more."""
        with self._docs.open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    @property
    def doc_names(self) -> list[str]:
        return [doc["name"] for doc in self.docs]


class Store:
    """A prepared corpus: open it with its path, make it with `prepare`.

    fingerprint: the corpus's.
    report: vocabulary, seconds, and per split tokens, bytes, chars, words, documents, bytes_per_token, unk_share.
    Raises DamagedStore when files are missing, cut off or changed.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        manifest = _check(self.path)
        self.report: dict[str, Any] = manifest["report"]
        self.fingerprint: str = self.report["fingerprint"]
        self._entries: dict[str, Any] = manifest["splits"]
        self.splits: tuple[str, ...] = tuple(self._entries)
        self._opened: dict[str, Split] = {}

    @property
    def tokenizer_path(self) -> Path:
        return self.path / "tokenizer.json"

    @property
    def texts(self) -> dict[str, str]:
        """{split: its `text`}, of the splits that tell it."""
        return {split: entry["text"] for split, entry in self._entries.items() if "text" in entry}

    @cached_property
    def made(self) -> tuple[Path, int]:
        """The same for as long as the store is the same files: where it is, and when it was made."""
        return self.path.resolve(), (self.path / MANIFEST).stat().st_mtime_ns

    @cached_property
    def tokenizer(self) -> "Tokenizer":
        from lmlab import tokenizers

        if self.made not in _tokenizers:
            _tokenizers[self.made] = tokenizers.load(self.tokenizer_path)
        return _tokenizers[self.made]

    def token_counts(self) -> np.ndarray:
        """(V,) int64, how often each id occurs in the train split. Not to be changed: it is shared."""
        if self.made not in _token_counts:
            ids = self.split("train").ids
            _token_counts[self.made] = np.bincount(ids, minlength=self.tokenizer.vocab_size)
        return _token_counts[self.made]

    def split(self, name: str) -> Split:
        if name not in self._entries:
            raise ValueError(f"split={name!r} is not in the store, which has {', '.join(self.splits)}")
        if name not in self._opened:
            self._opened[name] = Split(self.path, name, self._entries[name])
        return self._opened[name]

    def verify(self) -> None:
        """Check every file's content; raises DamagedStore. Reads the whole store."""
        _check(self.path, whole=True)
        _whole.add(self.made)


def prepare(
    corpus: Corpus,
    train_tokenizer: Callable[..., "Tokenizer"],
    recipe: dict[str, Any],
    cache_dir: Path,
    progress: bool,
    whole: bool = False,
) -> Store:
    """The store of a corpus under a tokenizer: opened if there is one, else made, once, whoever else asks for it.

    train_tokenizer(documents=texts) gives the tokenizer; texts, of the train split, may be read more than once.
    recipe: plain data that tells this tokenizer from others; with the corpus's fingerprint it is the store's key.
    whole: one that is there has every byte checked, once a process.
    A damaged store is made again, and said so. After an error (a full disk: OSError; text that changed meanwhile:
    ValueError) nothing is left behind.
    """
    fingerprint = corpus.fingerprint()
    key = xxhash.xxh3_128_hexdigest(json.dumps([FORMAT, fingerprint, recipe], sort_keys=True).encode())
    path = Path(cache_dir) / "stores" / f"{corpus.name}-{key[:16]}"
    if store := _open(path, whole):
        return store
    with locked(path.with_name(f".{path.name}.lock"), f"waiting for another process that prepares {path}") as alone:
        if store := _open(path, whole):
            return store
        if alone:
            _sweep(path)
        if path.exists():
            log.warning("%s is damaged; it is made again", path)
            remove(path)
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=_prefix(path)))
        try:
            tokenizer = _make(folder, corpus, fingerprint, train_tokenizer, progress)
            _publish(folder, path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    store = Store(path)
    store.tokenizer = tokenizer
    _whole.add(store.made)
    return store


def _open(path: Path, whole: bool) -> Store | None:
    try:
        store = Store(path)
        if whole and store.made not in _whole:
            if (size := sum(file.stat().st_size for file in path.iterdir())) > TELL_FROM:
                log.info("reading the %.1f GB of %s through, once", size / 1e9, path)
            store.verify()
    except FileNotFoundError:
        return None
    except DamagedStore as error:
        log.warning("%s", error)
        return None
    try:
        (path / USED).touch()
    except OSError:
        log.debug("%s is read-only: its last use is not noted", path)
    return store


def _check(path: Path, whole: bool = False) -> dict[str, Any]:
    """The manifest, after comparing the files with it. whole: read all of every file."""
    try:
        manifest = json.loads(unseal((path / MANIFEST).read_text(encoding="utf-8")))
        files = manifest["files"]
        _ = manifest["report"]["fingerprint"], manifest["splits"]
    except FileNotFoundError:
        if path.is_dir():
            raise DamagedStore(f"{path} has no {MANIFEST}") from None
        raise
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DamagedStore(f"{path / MANIFEST} cannot be read") from None
    for name, entry in files.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != entry["bytes"]:
            size = file.stat().st_size if file.is_file() else "no"
            raise DamagedStore(f"{file} has {size} bytes, not {entry['bytes']}")
        told = file.stat()
        # A store of an older version does not say when its files were written.
        untouched = entry.get("mtime_ns") in (None, told.st_mtime_ns) or (file, told.st_mtime_ns) in _unchanged
        if untouched and entry["bytes"] > CHECK_UP_TO and not whole:
            continue
        if checksum(file) != entry["xxh3_64"]:
            raise DamagedStore(f"{file} was changed: its checksum differs")
        if not untouched:
            # Copied or moved, and still what was written: it need not be read again.
            try:
                os.utime(file, ns=(told.st_atime_ns, entry["mtime_ns"]))
            except OSError:
                # A cache that is read-only: at least not again by this process.
                _unchanged.add((file, told.st_mtime_ns))
    return manifest


class _Texts:
    """The train split's pieces, as often as they are asked for."""

    def __init__(self, corpus: Corpus, shown: Progress):
        self._corpus, self._shown = corpus, shown

    def __iter__(self) -> Iterator[str]:
        if "train" in self._corpus.splits:
            for document in self._corpus.documents("train"):
                for piece in document.pieces:
                    self._shown.advance(0)
                    yield piece


def _make(
    folder: Path, corpus: Corpus, fingerprint: str, train_tokenizer: Callable[..., "Tokenizer"], progress: bool
) -> "Tokenizer":
    """Write a whole store into an empty folder, the manifest last.

    Raises ValueError where the corpus no longer has the fingerprint under which the store will be looked for.
    """
    began = time.perf_counter()
    with Progress(f"preparing {corpus.name}", corpus.approximate_bytes() if progress else None, progress) as shown:
        shown.say("training the tokenizer")
        tokenizer = train_tokenizer(documents=_Texts(corpus, shown))
        tokenizer.save(folder / "tokenizer.json")
        trained = time.perf_counter()
        splits = {}
        for split in corpus.splits:
            shown.say(f"encoding {split}")
            writer = SplitWriter(folder, split, tokenizer, shown.advance)
            try:
                splits[split] = writer.write(corpus.documents(split))
            except BaseException:
                writer.abandon()
                raise
    if corpus.fingerprint() != fingerprint:
        raise ValueError(f"{corpus.name}: its text changed while it was encoded; run the same again")
    report = {
        "corpus": corpus.name,
        "fingerprint": fingerprint,
        "provenance": corpus.provenance(),
        "tokenizer": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "splits": {split: entry["report"] for split, entry in splits.items()},
        "seconds": {"tokenizer": trained - began, "encoding": time.perf_counter() - trained},
    }
    files = {file.name: _described(file) for file in sorted(folder.iterdir())}
    manifest = {"format": FORMAT, "report": report, "splits": splits, "files": files}
    (folder / MANIFEST).write_text(seal(json.dumps(manifest, indent=1, ensure_ascii=False)), encoding="utf-8")
    (folder / USED).touch()
    folder.chmod(0o755)  # mkdtemp's own is for one user only
    return tokenizer


def _described(file: Path) -> dict[str, Any]:
    told = file.stat()
    return {"bytes": told.st_size, "mtime_ns": told.st_mtime_ns, "xxh3_64": checksum(file)}


def _publish(folder: Path, path: Path) -> None:
    """Rename into place; where another process was first (no locks on this file system), its store is used."""
    try:
        os.rename(folder, path)
    except OSError:
        if not (path / MANIFEST).exists():
            raise


def _prefix(path: Path) -> str:
    return f".{path.name}-"


def _sweep(path: Path) -> None:
    """Remove what killed preparations of this store left; only the holder of its lock may."""
    for folder in path.parent.glob(f"{_prefix(path)}*"):
        shutil.rmtree(folder, ignore_errors=True)


def remove(path: Path) -> None:
    """Take a store away at once for whoever looks for it, then free its space."""
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=_prefix(path)))
    os.rename(path, aside / path.name)
    shutil.rmtree(aside, ignore_errors=True)
