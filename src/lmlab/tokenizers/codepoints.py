"""Text as arrays of code points, so that characters and white space are handled without a loop."""

from collections.abc import Iterable, Iterator

import numpy as np

# The last code point for which str.split() cuts is U+3000.
_SPACE = np.array([chr(i).isspace() for i in range(0x3002)])
N_CODE_POINTS = 0x110000


def code_points(text: str) -> np.ndarray:
    """(n characters,) uint8 for ASCII, else uint32."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), np.uint8)
    return np.frombuffer(text.encode("utf-32-le"), "<u4")


def byte_ends(points: np.ndarray) -> np.ndarray:
    """(n,) int64: where each character ends, in bytes of UTF-8."""
    if points.dtype == np.uint8:
        return np.arange(1, len(points) + 1)
    # Summed as int8 first: the comparisons are the cost.
    widths = (points >= 0x80).astype(np.int8)
    widths += points >= 0x800
    widths += points >= 0x10000
    widths += 1
    return np.cumsum(widths, dtype=np.int64)


def is_space(points: np.ndarray) -> np.ndarray:
    """(n,) bool: what `str.split()` cuts at."""
    if points.dtype == np.uint8:
        return _SPACE[points]
    return _SPACE[np.minimum(points, len(_SPACE) - 1)]


def count_characters(documents: Iterable[str]) -> dict[str, int]:
    """How often each character occurs, in the order of code points."""
    counts = np.zeros(N_CODE_POINTS, np.int64)
    for text in _joined(documents):
        seen = np.bincount(code_points(text))
        counts[: len(seen)] += seen
    return {chr(i): int(counts[i]) for i in np.flatnonzero(counts)}


def _joined(documents: Iterable[str], size: int = 1 << 20) -> Iterator[str]:
    """Short texts put together: an array per call costs more than a short text does."""
    parts: list[str] = []
    length = 0
    for text in documents:
        parts.append(text)
        length += len(text)
        if length >= size:
            yield "".join(parts)
            parts, length = [], 0
    if parts:
        yield "".join(parts)
