"""A small split in memory, for what is measured token by token."""

import numpy as np

from lmlab.data.store import Split

V = 20


class Text(Split):
    """Three documents; every token is one byte, one character, half a word."""

    def __init__(self, ids=None):
        self.ids = np.random.default_rng(0).integers(0, V, 101).astype(np.uint16) if ids is None else np.array(ids)
        n = len(self.ids)
        self.n_bytes = self.n_chars = np.ones(n, np.uint8)
        self.n_words = (np.arange(n) % 2).astype(np.uint8)
        self.doc_starts = np.array([0, 40, 47]) if ids is None else np.array([0])
        years = (1990, 1991, 1990)
        self.__dict__["docs"] = [{"name": f"d{i}", "year": y} for i, y in enumerate(years[: len(self.doc_starts)])]
