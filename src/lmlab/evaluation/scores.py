"""What each token of a split cost: kept compactly, in the order of the text, and asked without a second pass."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from lmlab.data.cache import whole_file
from lmlab.data.store import Split
from lmlab.evaluation.protocol import Protocol
from lmlab.metrics import Likelihood
from lmlab.types import NLL, Batch

# Raised when a column changes its meaning.
FORMAT = 2
NEEDS = "scores.parquet needs pyarrow: pip install 'lmlab[files]'"
COLUMNS = ("ids", "nats", "charges", "positions", "counts", "documents", "n_bytes", "n_chars", "n_words")


@dataclass(frozen=True)
class Scores:
    """Each scored token of a split, in the order of the text; (n,) arrays.

    ids. nats: float32, -ln P(token). charges: float32, what it costs besides (letters of an <unk>).
    positions: tokens of its text that it was predicted from: 0 for the first of the text, and 1 for the first of a lane
    or window that begins inside it, which is read from the token before.
    counts: how often its id occurs in what the run was trained on; None where nobody asked.
    documents: the number of its document in the split.
    n_bytes, n_chars, n_words: what it covers of the source; bytes add up to its place in the text.
    about: what was measured, as plain data: protocol, split, text, weights, the documents' names and dates.
    """

    ids: np.ndarray
    nats: np.ndarray
    charges: np.ndarray
    positions: np.ndarray
    counts: np.ndarray | None
    documents: np.ndarray
    n_bytes: np.ndarray
    n_chars: np.ndarray
    n_words: np.ndarray
    about: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def costs(self) -> np.ndarray:
        """Nats with charges, float64."""
        return self.nats.astype(np.float64) + self.charges

    def likelihood(self, chosen: np.ndarray | slice = slice(None)) -> Likelihood:
        """Of the chosen tokens."""
        sizes = (int(column[chosen].sum(dtype=np.int64)) for column in (self.n_bytes, self.n_chars, self.n_words))
        costs = self.costs[chosen]
        return Likelihood(float(costs.sum()), len(costs), *sizes)


class Keeper:
    """Called by `evaluate` with each batch: puts its tokens in the order of the text."""

    def __init__(self, split: Split, protocol: Protocol):
        n = len(split) if protocol.limit_tokens is None else min(len(split), protocol.limit_tokens)
        self._split, self._most = split, protocol.max_context
        self._texts = np.asarray(split.doc_starts) if protocol.policy == "documents" else np.zeros(1, np.int64)
        self.nats, self._scored = np.zeros(n, np.float32), np.zeros(n, bool)
        self._positions = np.zeros(n, np.int32)
        self._begun = np.zeros(0, np.int64)

    def __call__(self, batch: Batch, nll: NLL) -> None:
        starts = batch.starts.numpy()
        if batch.reset is None or bool(batch.reset.all()):
            self._begun = np.where(np.isin(starts, self._texts), starts, starts - 1)
        columns = np.arange(batch.targets.shape[1])
        counted = batch.counted.cpu().numpy()
        at = (starts[:, None] + columns)[counted]
        self.nats[at], self._scored[at] = nll.float().cpu().numpy()[counted], True
        seen = ((starts - self._begun)[:, None] + columns)[counted]
        self._positions[at] = seen if self._most is None else np.minimum(seen, self._most)

    def scores(self, train_counts: np.ndarray | None, about: Mapping[str, Any]) -> Scores:
        """train_counts: (V,), or None. Raises ValueError where the model gave no number."""
        assert self._scored.all(), "a token was not scored"
        n, split, none = len(self.nats), self._split, np.flatnonzero(np.isnan(self.nats))
        if len(none):
            raise ValueError(
                f"the model gave no number for {len(none):,} of {n:,} tokens, token {none[0] + 1:,} the first: its "
                "weights diverged (take another checkpoint), or a dynamic.lr or temperature takes it out of range"
            )
        ids = np.array(split.ids[:n])
        sizes = {name: np.array(getattr(split, name)[:n]) for name in ("n_bytes", "n_chars", "n_words")}
        documents = np.searchsorted(np.asarray(split.doc_starts), np.arange(n), side="right") - 1
        charges = np.zeros(n, np.float32) if split.charges is None else split.charges[:n]
        return Scores(
            ids=ids,
            nats=self.nats,
            charges=charges,
            positions=self._positions,
            counts=None if train_counts is None else counts_of(ids, train_counts),
            documents=documents.astype(np.uint32),
            **sizes,
            about={"format": FORMAT, **about, "documents": split.docs[: int(documents[-1]) + 1]},
        )


def counts_of(ids: np.ndarray, train_counts: np.ndarray) -> np.ndarray:
    """The column `counts` of these tokens."""
    return train_counts[ids].astype(np.uint32)


def write(scores: Scores, path: Path) -> None:
    """As Parquet, whole or not at all; constant columns take no space. Raises ImportError naming the extra."""
    pa, pq = _pyarrow()
    columns = {name: getattr(scores, name) for name in COLUMNS}
    told = json.dumps(scores.about, ensure_ascii=False)
    table = pa.table(columns).replace_schema_metadata({"lmlab": told, "checksum": checksum(told, columns)})
    with whole_file(path) as beside:
        pq.write_table(table, beside, compression="zstd", use_dictionary=[name for name in COLUMNS if name != "nats"])


def read(path: Path, expected: Mapping[str, Any] | None = None) -> Scores | None:
    """The stored scores; None where there are none, or not of what is expected. expected: entries of `about`.

    Raises ValueError where the file is damaged.
    """
    if not path.is_file():
        return None
    pa, pq = _pyarrow()
    try:
        stored = pq.read_schema(path).metadata or {}
        about = json.loads(stored[b"lmlab"])
        if about["format"] != FORMAT or any(about.get(key) != value for key, value in (expected or {}).items()):
            return None
        table = pq.read_table(path)
        columns = {name: table[name].to_numpy() for name in COLUMNS}
        # Parquet itself would read a changed byte as another number.
        known = stored.get(b"checksum")
        if known is not None and known.decode() != checksum(stored[b"lmlab"].decode(), columns):
            raise ValueError("its checksum differs: it was changed since it was written")
        return Scores(**columns, about=about)
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); scores=true makes it again") from error


def checksum(about: str, columns: Mapping[str, np.ndarray]) -> str:
    """xxh3 (64 bits) of all that is stored."""
    found = xxhash.xxh3_64(about.encode())
    for name in COLUMNS:
        found.update(f"{name} {columns[name].dtype} {len(columns[name])}".encode())
        found.update(np.ascontiguousarray(columns[name]).view(np.uint8))
    return found.hexdigest()


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(NEEDS) from error
    return pyarrow, pyarrow.parquet
