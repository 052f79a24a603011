"""Arrays that grow on disk in the smallest unsigned type that holds them."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

# Numbers copied at a time when a column gets a wider type.
BLOCK = 1 << 20


class Column:
    """An append-only array of non-negative numbers in a raw file; widened when a number does not fit."""

    def __init__(self, path: Path, dtype: Any):
        self.path, self.dtype, self.size = path, np.dtype(dtype), 0
        self._file = path.open("wb")

    def append(self, values: np.ndarray) -> None:
        if not len(values):
            return
        needed = np.min_scalar_type(int(values.max()))
        if needed.itemsize > self.dtype.itemsize:
            self._widen(needed)
        self._file.write(values.astype(self.dtype).tobytes())
        self.size += len(values)

    def _widen(self, dtype: np.dtype) -> None:
        self._file.close()
        narrow = self.path.with_name(self.path.name + ".narrow")
        os.replace(self.path, narrow)
        self._file = self.path.open("wb")
        with narrow.open("rb") as old:
            while block := old.read(BLOCK * self.dtype.itemsize):
                self._file.write(np.frombuffer(block, dtype=self.dtype).astype(dtype).tobytes())
        narrow.unlink()
        self.dtype = dtype

    def close(self) -> dict[str, Any]:
        """What `column` needs to open the file; raises OSError when the disk is full."""
        self._file.close()
        return {"dtype": self.dtype.name, "size": self.size}


def column(path: Path, entry: dict[str, Any]) -> np.ndarray:
    """A column opened for reading, mapped into memory."""
    return np.memmap(path, dtype=entry["dtype"], mode="r", shape=(entry["size"],))


def checksum(path: Path) -> str:
    """xxh3 (64 bits) of a file."""
    digest = xxhash.xxh3_64()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
