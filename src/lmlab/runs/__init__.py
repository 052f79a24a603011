"""Runs on disk: load one to use it, or read many as tables."""

import importlib
from typing import Any

from lmlab.runs.points import curves
from lmlab.runs.replicates import replicates
from lmlab.runs.scaling import scaling_law
from lmlab.runs.space import prune
from lmlab.runs.tables import as_json, find, numbers, table, write_tables

# Loaded when first used: they need torch, reading tables does not.
_EXPORTS = ("Run", "load", "settle", "defaults")

__all__ = [
    "Run",
    "as_json",
    "curves",
    "defaults",
    "find",
    "load",
    "numbers",
    "prune",
    "replicates",
    "scaling_law",
    "settle",
    "table",
    "write_tables",
]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module("lmlab.runs.run"), name)
    raise AttributeError(f"module 'lmlab.runs' has no attribute {name!r}")
