"""From documents to columns: pieces are encoded in batches, each token gets its share of the source, sums agree."""

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from lmlab.data.columns import Column
from lmlab.data.corpora import Document
from lmlab.data.spans import span_counts

if TYPE_CHECKING:
    from lmlab.tokenizers import Encoding, Tokenizer

# Bytes of text that encode_batch sees at once: enough for its threads, and their encodings stay under 1 GB.
BATCH = 4 << 20

COUNTS = ("n_bytes", "n_chars", "n_words")

# Begins each document where a split's text is hashed: a byte that UTF-8 does not have.
BEGIN = b"\xff"

# A piece with its document's name and meta if it is the first one, and whether it is the last one.
Step = tuple[str, dict[str, Any] | None, bool]


class SplitWriter:
    """Encodes one split into `<split>.ids`, `.n_bytes`, `.n_chars`, `.n_words`, `.doc_starts` and `.docs.jsonl`."""

    def __init__(self, folder: Path, split: str, tokenizer: "Tokenizer", advance: Callable[[int], None]):
        self._tokenizer, self._split, self._advance = tokenizer, split, advance
        small = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
        dtypes = {"ids": small, **dict.fromkeys(COUNTS, np.uint8), "doc_starts": np.int64}
        self._columns = {name: Column(folder / f"{split}.{name}", dtype) for name, dtype in dtypes.items()}
        self._docs = (folder / f"{split}.docs.jsonl").open("w", encoding="utf-8")
        self._source, self._covered = np.zeros(3, dtype=np.int64), np.zeros(3, dtype=np.int64)
        self._unknown, self._text = 0, xxhash.xxh3_64()
        # Of a document that goes on in the next batch: source that no token has claimed, and its last character.
        self._unclaimed = np.zeros(3, dtype=np.int64)
        self._after_space = True

    def write(self, documents: Iterable[Document]) -> dict[str, Any]:
        """Write all documents; returns the split's entry in the manifest.

        Raises ValueError when there is no text, or a tokenizer's spans do not cover the text exactly.
        """
        # One batch is written while the next one is read and encoded: most of both is done without Python's lock.
        with ThreadPoolExecutor(1) as writer:
            written: Future[int] | None = None
            for batch in _batches(_steps(documents)):
                encodings = self._tokenizer.encode_batch([text for text, _, _ in batch])
                if written:
                    self._advance(written.result())
                written = writer.submit(self._write, batch, encodings)
            if written:
                self._advance(written.result())
        return self._finish()

    def _write(self, batch: list[Step], encodings: list["Encoding"]) -> int:
        """The bytes of text that were written.

        Each piece has a slot for each token and one more, which becomes the closing <eos> or goes away.
        """
        texts, before = [text for text, _, _ in batch], int(self._source[0])
        n_slots = np.array([len(encoding.ids) for encoding in encodings]) + 1
        firsts = np.array([first is not None for _, first, _ in batch])
        eos = np.array([self._tokenizer.eos_id], dtype=np.int32)
        ids = np.concatenate([part for encoding in encodings for part in (encoding.ids, eos)])
        counts = self._counts(texts, encodings, np.flatnonzero(firsts))
        after = np.cumsum(n_slots)
        dropped = after[~np.array(self._closings(batch, n_slots - 1))] - 1
        self._settle(counts, dropped, after, np.cumsum(firsts), batch[-1][2])
        starts = (after - n_slots)[firsts]
        self._columns["doc_starts"].append(self._columns["ids"].size + starts - np.searchsorted(dropped, starts))
        for text, first, _ in batch:
            if first is not None:
                self._docs.write(json.dumps(first, ensure_ascii=False) + "\n")
                self._text.update(BEGIN)
            self._text.update(text.encode())
        self._emit(_without(ids, dropped), _without(counts, dropped))
        return int(self._source[0]) - before

    def _counts(self, texts: list[str], encodings: list["Encoding"], firsts: np.ndarray) -> np.ndarray:
        """(3, slots): bytes, characters and words of each slot's span of the joined texts."""
        sources = [text.encode() for text in texts]
        starts = np.concatenate([[0], np.cumsum([len(source) for source in sources])])
        spans = []
        for encoding, start, stop in zip(encodings, starts[:-1], starts[1:], strict=True):
            if len(encoding.ids) != len(encoding.ends) or (len(encoding.ends) and encoding.ends[-1] > stop - start):
                raise ValueError(f"tokenizer {self._tokenizer.kind}: its ends do not fit its ids and the text")
            spans += [encoding.ends + start, [stop]]
        breaks = starts[firsts]
        if self._after_space:
            breaks = np.append(breaks, 0)
        counts, self._after_space = span_counts(b"".join(sources), np.concatenate(spans), breaks)
        self._source += (starts[-1], sum(map(len, texts)), counts[2].sum())
        return counts

    def _closings(self, batch: list[Step], n_tokens: np.ndarray) -> list[bool]:
        """For each piece whether a closing <eos> follows it: also where its document has no other token here."""
        closings, tokens = [], 0
        for (text, first, last), n in zip(batch, n_tokens.tolist(), strict=True):
            tokens = n if first is not None else tokens + n
            closings.append(last and (tokens == 0 or self._tokenizer.needs_eos(text)))
        return closings

    def _settle(
        self, counts: np.ndarray, dropped: np.ndarray, after: np.ndarray, document: np.ndarray, whole: bool
    ) -> None:
        """Give the source of slots that go away to the next token of their document, else to its last one.

        after: where each piece's slots end. document: the number of each piece's. whole: the last document ends in this
        batch; if not, what has no token after it waits for the next batch.
        """
        slots = dropped[counts[:, dropped].any(0)]
        amounts = counts[:, slots]
        if self._unclaimed.any():
            slots, amounts = np.append(0, slots), np.column_stack([self._unclaimed, amounts])
            self._unclaimed = np.zeros(3, dtype=np.int64)
        if not len(slots):
            return
        # Without the dropped ones, and with a slot of no document at the end, so that there is always a next one.
        kept = np.append(np.delete(np.arange(after[-1]), dropped), after[-1])
        of_piece = np.append(document, -1)
        owner, at = of_piece[np.searchsorted(after, slots, side="right")], np.searchsorted(kept, slots)
        forward = of_piece[np.searchsorted(after, kept[at], side="right")] == owner
        wait = ~forward & (owner == document[-1]) & (not whole)
        target = np.where(forward, kept[at], kept[at - 1])[~wait]
        np.add.at(counts, (slice(None), target), amounts[:, ~wait].astype(counts.dtype))
        self._unclaimed += amounts[:, wait].sum(1)

    def _emit(self, ids: np.ndarray, counts: np.ndarray) -> None:
        if len(ids) and int(ids.max()) >= self._tokenizer.vocab_size:
            raise ValueError(f"tokenizer gave id {ids.max()}, but vocab_size={self._tokenizer.vocab_size}")
        self._columns["ids"].append(ids)
        for name, values in zip(COUNTS, counts, strict=True):
            self._columns[name].append(values)
        self._covered += counts.sum(1, dtype=np.int64)
        if self._tokenizer.unk_id is not None:
            self._unknown += int((ids == self._tokenizer.unk_id).sum())

    def _finish(self) -> dict[str, Any]:
        self._docs.close()
        columns = {name: column.close() for name, column in self._columns.items()}
        tokens, documents = columns["ids"]["size"], columns["doc_starts"]["size"]
        if not self._source[0]:
            raise ValueError(f"split {self._split} has no text")
        if (self._covered != self._source).any():
            raise ValueError(
                f"split {self._split}: tokens cover {self._covered.tolist()} (bytes, characters, words), the text has "
                f"{self._source.tolist()}; the spans of tokenizer {self._tokenizer.kind} are wrong"
            )
        totals = dict(zip(("bytes", "chars", "words"), self._source.tolist(), strict=True))
        report = {"tokens": tokens, **totals, "documents": documents, "bytes_per_token": totals["bytes"] / tokens}
        if self._tokenizer.unk_id is not None:
            report["unk_share"] = self._unknown / tokens
        return {"columns": columns, "text": self._text.hexdigest(), "report": report}

    def abandon(self) -> None:
        """Close all files after a failure."""
        for file in (self._docs, *self._columns.values()):
            try:
                file.close()
            except OSError:  # the disk is full: it was said already
                continue


def _without(array: np.ndarray, dropped: np.ndarray) -> np.ndarray:
    """The last axis without some places, by stretches: np.delete's mask took a quarter of all encoding."""
    starts, stops = np.append(0, dropped + 1), np.append(dropped, array.shape[-1])
    return np.concatenate([array[..., a:b] for a, b in zip(starts, stops, strict=True)], axis=-1)


def _steps(documents: Iterable[Document]) -> Iterator[Step]:
    for document in documents:
        first, held = {"name": document.name, **document.meta}, None
        for piece in document.pieces:
            if held is not None:
                yield held, first, False
                first = None
            held = piece
        if held is not None:
            yield held, first, True


def _batches(steps: Iterable[Step]) -> Iterator[list[Step]]:
    """Steps of about BATCH bytes of text together, in order."""
    batch, size = [], 0
    for step in steps:
        batch.append(step)
        size += len(step[0]) if step[0].isascii() else len(step[0].encode())
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
