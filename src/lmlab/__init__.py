"""lmlab: a laboratory for language models. Text in; a trained, measured, speaking LSTM or Transformer out."""

import importlib

__version__ = "0.1.0"

# Loaded when first used, so that `lmlab` alone answers at once.
_EXPORTS = {
    "compose": "lmlab.config",
    "train": "lmlab.experiment",
    "sweep": "lmlab.cli.sweep",
    "load": "lmlab.runs",
    "Likelihood": "lmlab.metrics",
}
# Modules, likewise.
_MODULES = ("config", "experiment", "generation", "plots", "report", "runs", "scoring", "tokenizers")


def __getattr__(name: str):
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"lmlab.{name}")
    raise AttributeError(f"module 'lmlab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS, *_MODULES})
