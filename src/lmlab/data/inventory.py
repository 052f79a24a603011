"""What lies in the cache: the stores with their size and last use, and how to free space."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from lmlab.data.cache import locked
from lmlab.data.store import MANIFEST, NAME, USED, DamagedStore, Store, remove

DAY_S = 86400.0


@dataclass(frozen=True)
class Entry:
    """A store in the cache. bytes: its size on disk; used: when it was last opened, seconds since 1970.

    corpus, tokenizer: what it was made from; empty when it is damaged.
    """

    path: Path
    corpus: str
    tokenizer: str
    bytes: int
    used: float


def stores(cache_dir: Path) -> list[Entry]:
    """All stores in a cache, the last used first: directories that are called as stores are, and nothing else there."""
    found = []
    for path in Path(cache_dir, "stores").glob("[!.]*"):
        if not NAME.fullmatch(path.name) or not path.is_dir():
            continue
        try:
            report = Store(path).report
            corpus, tokenizer = report["corpus"], report["tokenizer"]
        except DamagedStore:
            corpus = tokenizer = ""
        except FileNotFoundError:  # pruned by somebody else just now
            continue
        mark = next((path / name for name in (USED, MANIFEST) if (path / name).exists()), path)
        found.append(Entry(path, corpus, tokenizer, _size(path), mark.stat().st_mtime))
    return sorted(found, key=lambda entry: -entry.used)


def prune(cache_dir: Path, unused_days: float | int) -> list[Entry]:
    """Remove damaged stores, and those not opened for `unused_days`; returns those that went.

    What killed preparations left is removed too, and a store that is being made is never touched. Any that went is
    made again when it is needed.
    """
    now = time.time()
    gone = [entry for entry in stores(cache_dir) if not entry.corpus or now - entry.used > unused_days * DAY_S]
    for entry in gone:
        remove(entry.path)
    _sweep(Path(cache_dir, "stores"))
    return gone


def _sweep(folder: Path) -> None:
    """Remove the leavings of preparations that nobody is at work on."""
    for lock in folder.glob(".*.lock"):
        own = lock.name.removesuffix(".lock")
        if not NAME.fullmatch(own.removeprefix(".")):
            continue
        with locked(lock, None) as alone:
            if alone:
                for left in folder.glob(f"{own}-*"):
                    shutil.rmtree(left, ignore_errors=True)


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
