"""Runs on disk: load one to use it, or read many as tables."""

import importlib
from typing import Any

from lmlab.runs.equal import equal
from lmlab.runs.found import find
from lmlab.runs.points import curves
from lmlab.runs.replicates import against_best, mean_curves, replicates, within
from lmlab.runs.space import prune
from lmlab.runs.tables import as_json, numbers, table, write_tables

# Loaded when first used: they need torch or numpy, reading tables does not.
_EXPORTS = {
    "Run": "run",
    "load": "run",
    "settle": "run",
    "defaults": "run",
    "by_document": "documents",
    "by_span": "documents",
    "scaling_law": "scaling",
    "surfaces": "surface",
}

__all__ = [
    "Run",
    "against_best",
    "as_json",
    "by_document",
    "by_span",
    "curves",
    "defaults",
    "equal",
    "find",
    "load",
    "mean_curves",
    "numbers",
    "prune",
    "replicates",
    "scaling_law",
    "settle",
    "surfaces",
    "table",
    "within",
    "write_tables",
]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"lmlab.runs.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module 'lmlab.runs' has no attribute {name!r}")
