"""The cache on disk: where it is, how files get there whole or not at all, content hashes, and the lock."""

import json
import logging
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import xxhash

try:
    import fcntl
except ImportError:  # Windows: without the lock two processes may do the same work, and one result is kept
    fcntl = None

log = logging.getLogger(__name__)

# Smaller files are hashed faster than a note about their hash is read.
REMEMBER_FROM = 16 << 20
# A file that was written this lately may be written again within the clock's tick.
SETTLED_S = 2.0

_hashes: dict[tuple[str, int, int], str] = {}


def cache_root() -> Path:
    """LMLAB_CACHE, or ~/.cache/lmlab."""
    return Path(os.environ.get("LMLAB_CACHE") or Path.home() / ".cache" / "lmlab")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place on leaving; after an error what was there before still is.

    Others may read the file as the umask says: `tempfile`'s are for their owner alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def file_hash(path: Path) -> str:
    """xxh3 (128 bits) of a file's bytes, remembered by path, size and time of change; big files' also on disk."""
    info = path.stat()
    key = (str(path.resolve()), info.st_size, info.st_mtime_ns)
    if key in _hashes:
        return _hashes[key]
    note = cache_root() / "hashes" / f"{xxhash.xxh3_128_hexdigest(repr(key).encode())}.json"
    big = info.st_size >= REMEMBER_FROM
    if big and (known := _read_note(note)):
        _hashes[key] = known
        return known
    with path.open("rb") as file:
        digest = xxhash.xxh3_128()
        while block := file.read(1 << 20):
            digest.update(block)
    if time.time() - info.st_mtime > SETTLED_S:
        _hashes[key] = digest.hexdigest()
        if big:
            _write_note(note, digest.hexdigest())
    return digest.hexdigest()


def _read_note(note: Path) -> str | None:
    try:
        return json.loads(note.read_text(encoding="utf-8"))["xxh3_128"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_note(note: Path, digest: str) -> None:
    try:
        with whole_file(note) as temporary:
            temporary.write_text(json.dumps({"xxh3_128": digest}), encoding="utf-8")
    except OSError:
        log.debug("could not write %s: the hash will be computed again", note)


@contextmanager
def locked(path: Path, waiting: str | None) -> Iterator[bool]:
    """Hold an exclusive lock on `path`; says `waiting` when somebody else has it, and with None does not wait.

    The system drops the lock with the process, so a crash leaves nothing to clean. Yields whether the lock is held:
    False where locks do not exist (Windows, some network file systems) and where somebody else has it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        yield fcntl is not None and _lock(file.fileno(), path, waiting)  # closing the file lets the lock go


def _lock(file: int, path: Path, waiting: str | None) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if waiting is None:
            return False
        log.warning(waiting)
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        log.debug("no locks on the file system of %s", path)
        return False
    return True
