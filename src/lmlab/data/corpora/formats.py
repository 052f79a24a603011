"""Readers of files: .txt .md .jsonl .csv .parquet, plain or as .gz .zst .xz, streamed in constant memory."""

import csv
import gzip
import importlib
import json
import lzma
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from lmlab.data.corpora.document import check_fields, check_whole, told
from lmlab.data.corpora.text import cut, decoded, lines, separated

TEXT, ROWS = (".txt", ".md"), (".jsonl", ".csv", ".parquet")
PACKED = (".gz", ".zst", ".xz")
KNOWN = f"{' '.join(TEXT + ROWS)}, each also as {' '.join(PACKED)}"
BLOCK = 1 << 20
# `zstd --long=31`, as large dumps are packed; zstandard's own limit is 2^27. A frame takes what its window says.
WINDOW = 1 << 31


# A row's number, its text, and what else is kept of it.
Part = tuple[int, str, dict[str, Any]]


def kind(path: Path) -> tuple[str, str] | None:
    """(".jsonl", ".gz") for a.jsonl.gz, (".txt", "") for a.txt; None when the extension is unknown."""
    name = path.name.lower()
    packed = next((ext for ext in PACKED if name.endswith(ext)), "")
    form = Path(name.removesuffix(packed)).suffix
    return (form, packed) if form in TEXT + ROWS else None


def mark_bytes(path: Path) -> int:
    """Bytes of the byte-order mark that a plain file begins with."""
    with path.open("rb") as file:
        return 3 if file.read(3) == b"\xef\xbb\xbf" else 0


def read(path: Path, text_field: str, separator: str | None, meta_fields: Sequence[str]) -> Iterator[Part]:
    """(number of the document in the file, piece of its text, its meta_fields); a document's pieces stand together.

    The number is the line of a .jsonl or .csv file (where the row ends), the row of a .parquet file, from 1.
    Raises ValueError with the file, the place and the remedy when the file cannot be read as what it is called.
    """
    form, packed = kind(path)
    blocks = _blocks(path, packed)
    try:
        if form == ".parquet":
            parts = _parquet(path, blocks if packed else None, text_field, meta_fields)
        elif form == ".jsonl":
            parts = _jsonl(path, blocks, text_field, meta_fields)
        elif form == ".csv":
            parts = _csv(path, blocks, text_field, meta_fields)
        elif separator:
            parts = ((number, text, {}) for number, text in separated(decoded(blocks, str(path)), separator))
        else:
            parts = ((1, text, {}) for text in decoded(blocks, str(path)))
        for number, group in groupby(parts, key=itemgetter(0)):
            first = next(group)
            yield from ((number, piece, first[2]) for piece in cut(text for _, text, _ in chain([first], group)))
    except _damage(packed) as error:
        raise ValueError(f"{path} is damaged or cut off ({error}); make the {packed} file again") from None


def _damage(packed: str) -> tuple[type[Exception], ...]:
    """What the unpackers raise at bytes that are not theirs."""
    if packed == ".zst":
        return (EOFError, importlib.import_module("zstandard").ZstdError)
    return {".gz": (EOFError, gzip.BadGzipFile, zlib.error), ".xz": (EOFError, lzma.LZMAError)}.get(packed, ())


def _blocks(path: Path, packed: str) -> Iterator[bytes]:
    if packed == ".zst":
        yield from _zst(path)
        return
    with {".gz": gzip.open, ".xz": lzma.open}.get(packed, open)(path, "rb") as file:
        while block := file.read(BLOCK):
            yield block


def _zst(path: Path) -> Iterator[bytes]:
    """Frame by frame: zstandard's own reader takes a file that is cut off for a whole one."""
    zstandard, frame = _needs("zstandard", path), None
    with path.open("rb") as file:
        while data := file.read(1 << 16):
            while data:
                frame = frame or zstandard.ZstdDecompressor(max_window_size=WINDOW).decompressobj()
                if block := frame.decompress(data):
                    yield block
                data = frame.unused_data
                if frame.eof:
                    frame = None
    if frame:
        raise EOFError("it ends within a frame")


def _needs(module: str, path: Path) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ModuleNotFoundError(f"{path} needs {module}: pip install 'lmlab[files]'") from None


def _text(value: Any, field: str, place: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{place}: {field}={value!r:.40} is not text; drop the row, or choose with corpus.text_field=")
    check_whole(place, field, value)
    return value


def _jsonl(path: Path, blocks: Iterator[bytes], field: str, meta: Sequence[str]) -> Iterator[Part]:
    for number, line in enumerate(lines(decoded(blocks, str(path))), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            # Not JSONDecodeError alone: Python refuses numbers of 5,000 digits and endless nesting.
            raise ValueError(f"{path}:{number} is not JSON ({error}); .jsonl holds one object a line") from None
        if not isinstance(row, dict):
            raise ValueError(
                f"{path}:{number} is not an object; .jsonl holds one a line, like {{{json.dumps(field)}: ...}}"
            )
        place = f"{path}:{number}"
        check_fields(place, field, meta, list(row))
        yield number, _text(row[field], field, place), told(place, {name: row[name] for name in meta})


def _csv(path: Path, blocks: Iterator[bytes], field: str, meta: Sequence[str]) -> Iterator[Part]:
    csv.field_size_limit(2**31 - 1)  # the default refuses texts over 128 kB
    rows = csv.reader(lines(decoded(blocks, str(path))), strict=True)
    try:
        header = next(rows, [])
        check_fields(str(path), field, meta, header)
        column, others = header.index(field), {name: header.index(name) for name in meta}
        for row in rows:
            if not row:
                continue
            if len(row) != len(header):
                raise ValueError(
                    f"{path}:{rows.line_num} has {len(row)} fields, its header {len(header)}; quote commas"
                )
            yield rows.line_num, row[column], told("", {name: row[at] for name, at in others.items()})
    except csv.Error as error:
        raise ValueError(f"{path}:{rows.line_num} is not CSV ({error})") from None


def _parquet(path: Path, unpacked: Iterator[bytes] | None, field: str, meta: Sequence[str]) -> Iterator[Part]:
    parquet, arrow = _needs("pyarrow.parquet", path), _needs("pyarrow", path)
    with tempfile.TemporaryFile() if unpacked else path.open("rb") as file:
        for block in unpacked or ():  # parquet is read from its end: it must be unpacked as a whole
            file.write(block)
        try:
            table = parquet.ParquetFile(file)
            check_fields(str(path), field, meta, table.schema_arrow.names)
            number = 0
            for batch in table.iter_batches(batch_size=256, columns=[field, *meta]):
                for row in batch.to_pylist():
                    number += 1
                    place = f"{path}, row {number}"
                    yield number, _text(row.pop(field), field, place), told(place, row)
        except (arrow.ArrowInvalid, OSError) as error:
            if isinstance(error, OSError) and error.errno:
                raise
            raise ValueError(f"{path} is no readable parquet file ({str(error).splitlines()[0]})") from None
