"""GPT-2's spelling of bytes as printable characters, which byte-level vocabularies are written in."""


def _table() -> list[str]:
    """Printable Latin-1 stands for itself; the others take U+0100 and on (Radford et al. 2019, `bytes_to_unicode`)."""
    plain = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(0x100, 0x200))
    return [chr(b if b in plain else next(others)) for b in range(256)]


CHARACTERS = _table()
_BYTES = {c: bytes([b]) for b, c in enumerate(CHARACTERS)}
# How Hugging Face calls it; the regular expression of GPT-2 cuts words first, or nothing does.
DECODER = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
WHOLE = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
WORDS = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}


def to_bytes(piece: str) -> bytes:
    """Raises KeyError where the piece is not spelt this way."""
    return b"".join(map(_BYTES.__getitem__, piece))
