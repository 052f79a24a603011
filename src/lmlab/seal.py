"""Text files that say what they hash to: a byte that changed on a disk is seen, and is no wrong number."""

import re
import zlib
from collections.abc import Iterable

import xxhash

# A YAML file's first line, and a JSON object's first entry: what is cut off at the end does not take it along.
YAML = re.compile(r"# checksum: ([0-9a-f]{16})\n")
JSON = re.compile(r'\{\n +"checksum": "([0-9a-f]{16})",')


class Broken(ValueError):
    """A file's text is not what was written."""


def seal(text: str) -> str:
    """The text with its checksum. text: YAML, or an indented JSON object.

    An empty object has no entry to put it before: it gets YAML's comment, which `unseal` reads and JSON has not.
    """
    if not text.startswith("{\n "):
        return f"# checksum: {digest(text)}\n{text}"
    rest = text[1:]
    indent = rest[1 : len(rest) - len(rest[1:].lstrip(" "))]
    return f'{{\n{indent}"checksum": "{digest(rest)}",{rest}'


def unseal(text: str) -> str:
    """The text as it was before `seal`; one that has no checksum (of an older version, or edited) as it is.

    Raises Broken where it was changed.
    """
    for form, begin in ((YAML, ""), (JSON, "{")):
        if found := form.match(text):
            rest = text[found.end() :]
            if digest(rest) != found[1]:
                raise Broken("its checksum differs: it was changed since it was written")
            return begin + rest
    return text


def seal_line(cells: Iterable[object], header: bool = False) -> str:
    """A line of a table with its checksum in a last column."""
    line = ",".join(map(str, cells))
    return f"{line},{'check:' if header else ''}{zlib.crc32(line.encode()):08x}\n"


def unseal_lines(text: str) -> str:
    """A table without that column, and without a last line that was still being written. Raises Broken."""
    header, *lines = text[: text.rfind("\n") + 1].split("\n")[:-1] or [""]
    if ",check:" not in header:
        if any(line == seal_line(line.split(",")[:-1])[:-1] for line in lines):
            raise Broken("its header was changed since it was written")
        return text[: text.rfind("\n") + 1]
    found = []
    for n, line in enumerate([",".join(header.rsplit(",check:", 1)), *lines], 1):
        if not _is_sealed(line):
            raise Broken(f"the checksum of line {n} differs: it was changed since it was written")
        found.append(line.rpartition(",")[0])
    return "\n".join([*found, ""])


def _is_sealed(line: str) -> bool:
    cells, _, told = line.rpartition(",")
    return told == f"{zlib.crc32(cells.encode('utf-8', 'surrogatepass')):08x}"


def intact_lines(text: str) -> list[list[str]]:
    """The cells of such a table's header, and of the lines that are as they were written; [] without a whole header."""
    header, *lines = text.split("\n")
    columns, mark, told = header.rpartition(",check:")
    if not mark or not _is_sealed(f"{columns},{told}"):
        return []
    found = [line.rpartition(",")[0].split(",") for line in lines if line and _is_sealed(line)]
    return [columns.split(","), *(cells for cells in found if len(cells) == columns.count(",") + 1)]


def digest(text: str) -> str:
    """xxh3 (64 bits), which reads gigabytes a second."""
    return xxhash.xxh3_64_hexdigest(text.encode("utf-8", "surrogatepass"))
