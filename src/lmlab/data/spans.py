"""How much of the source each token covers: bytes, characters and words, counted in the source's own bytes."""

import numpy as np

# White space in one byte, as str.split sees it.
_SPACE = np.zeros(256, dtype=bool)
_SPACE[[9, 10, 11, 12, 13, 28, 29, 30, 31, 32]] = True
# White space in two or three bytes: lead byte -> what may follow it.
_WIDE = {
    0xC2: [(0x85,), (0xA0,)],
    0xE1: [(0x9A, 0x80)],
    0xE2: [(0x80, last) for last in [*range(0x80, 0x8B), 0xA8, 0xA9, 0xAF]] + [(0x81, 0x9F)],
    0xE3: [(0x80, 0x80)],
}


def span_counts(source: bytes, ends: np.ndarray, breaks: np.ndarray) -> tuple[np.ndarray, bool]:
    """(3, n) int32: bytes, characters and words that each of n spans covers; whether the source ends in white space.

    A span reaches from the end of the one before it to its own end (bytes). A character counts where its first byte is,
    a word where its first character is. breaks: offsets in bytes before which a word ends in any case (new documents);
    one at the end, of a document without text, ends it as white space does.
    Raises ValueError when the ends decrease or pass the source's end.
    """
    data = np.frombuffer(source, dtype=np.uint8)
    if len(ends) and ends[-1] > len(data):
        raise ValueError(f"spans of tokens must not pass the text's {len(data)} bytes")
    bounds = np.zeros(len(ends) + 1, dtype=np.int32)
    bounds[1:] = ends
    counts = np.empty((3, len(ends)), dtype=np.int32)
    np.subtract(bounds[1:], bounds[:-1], out=counts[0])
    if len(ends) and counts[0].min() < 0:
        raise ValueError("spans of tokens must not decrease")
    if not len(data):
        counts[1:] = 0
        return counts, len(breaks) > 0
    space = _spaces(data)
    word = ~space
    inside = breaks < len(data)
    breaks, ended = breaks[inside], not inside.all()
    carried = word[breaks]
    word[0] = False
    word[1:] &= space[:-1]
    word[breaks] = carried
    if data.max() >= 0x80:
        first = (data & 0xC0) != 0x80
        _marks(first, bounds, counts[1])
        word &= first
    else:
        counts[1] = counts[0]
    _marks(word, bounds, counts[2])
    return counts, ended or bool(space[-1])


def _marks(mark: np.ndarray, bounds: np.ndarray, out: np.ndarray) -> None:
    """How many marks lie between neighbouring bounds."""
    summed = np.zeros(len(mark) + 1, dtype=np.int32)
    np.cumsum(mark, dtype=np.int32, out=summed[1:])
    at = summed.take(bounds)
    np.subtract(at[1:], at[:-1], out=out)


def _spaces(data: np.ndarray) -> np.ndarray:
    """Which bytes belong to a white-space character."""
    space = _SPACE[data]
    if data.max() < 0x80:
        return space
    for lead, endings in _WIDE.items():
        width = 1 + len(endings[0])
        at = np.flatnonzero(data == lead)
        at = at[at + width <= len(data)]
        for ending in endings:
            found = at
            for offset, byte in enumerate(ending, 1):
                found = found[data[found + offset] == byte]
            for offset in range(width):
                space[found + offset] = True
    return space
