"""A deterministic, evenly spread sample of a corpus: Rust's trainers keep every distinct word in memory."""

import logging
import re
from collections.abc import Iterable, Iterator

log = logging.getLogger("lmlab")

# Small enough to spread over one long document; Rust also needs many times the length of each string that it is given.
CHUNK = 16_384
# Up to CHUNK characters and on to the next white space, which begins the next chunk, so that no word is cut.
_CHUNKS = re.compile(rf"(?s:.{{{CHUNK}}}\S{{0,{CHUNK}}}|.+)")
# The fractional part of the golden ratio: its multiples fill [0, 1) more evenly than any other number's do.
_GOLDEN = 0.6180339887498949
_SHRINK = 0.95


def tell_fewer(found: int, asked: int) -> None:
    """Say it where a text gives fewer entries than were asked for."""
    if found < asked:
        log.info("tokenizer.vocab_size=%d: the train split gives %d entries, no more", asked, found)


def sample(documents: Iterable[str], n_bytes: int) -> list[str]:
    """Chunks of the text in their order, all of it where it has at most `n_bytes`, else almost that much.

    Chunk i is kept while frac(i * golden ratio) lies below a threshold, which sinks as more text arrives: no second
    pass, no random numbers, and never more than the sample in memory.
    """
    if n_bytes < 1:
        raise ValueError(f"sample_bytes={n_bytes} must be positive")
    kept: list[tuple[float, int, str]] = []
    threshold, total = 1.0, 0
    for i, chunk in enumerate(_chunks(documents)):
        key = i * _GOLDEN % 1.0
        if key >= threshold:
            continue
        size = len(chunk.encode())
        kept.append((key, size, chunk))
        total += size
        while total > n_bytes and len(kept) > 1:
            threshold *= _SHRINK
            kept = [entry for entry in kept if entry[0] < threshold] or kept[:1]
            total = sum(entry[1] for entry in kept)
    return [chunk for _, _, chunk in kept]


def _chunks(documents: Iterable[str]) -> Iterator[str]:
    for text in documents:
        if len(text) <= CHUNK:
            yield text
        else:
            yield from _CHUNKS.findall(text)
