"""A run's train.log: what is said while a block runs, and the error with which it ended."""

import logging
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

# Bytes at the end of train.log in which its last message stands.
LOG_TAIL = 8_000

log = logging.getLogger("lmlab")


class log_to:
    """Our log goes to this file too, while the block runs."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> None:
        self.handler = logging.FileHandler(self.path, encoding="utf-8", errors="backslashreplace")
        self.handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S"))
        self.handler.setLevel(logging.DEBUG)
        # A full disk is said by whatever else it stops, in one line: no traceback for each line of the log.
        self.handler.handleError = lambda record: None  # type: ignore[method-assign]
        log.addHandler(self.handler)
        # In a notebook nobody has set it, and a file without lines would be left.
        self.level = log.level
        log.setLevel(logging.DEBUG)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            # For the file alone: the terminal gets it as its one line.
            log.debug("%s: %s", type(error).__name__, error)
        log.removeHandler(self.handler)
        with suppress(OSError):
            self.handler.close()
        log.setLevel(self.level)


def failure(path: Path) -> str | None:
    """The error with which train.log ends; None where it ends otherwise."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL))
            end = file.read().decode("utf-8", "replace")
    except OSError:
        return None
    last = re.split(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", end, flags=re.MULTILINE)[-1].strip()
    return last if re.match(r"(NotFinite|[A-Z]\w*(Error|Exception|Failed|Interrupt|Exit)): ", last) else None


def not_finite(failure: str) -> bool:
    """Whether an error, as `failure` gives it, is of a loss, gradient or weight: of all that ends a run, the curve's.

    By its kind; by its words in the log of an older run, and where a sample was to be written by broken weights.
    """
    return failure.startswith("NotFinite: ") or re.search(r"finite|loss is|logits are NaN", failure) is not None
