"""Where runs lie below a directory, and what they are called."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

from lmlab.run_directory import RunDirectory


def find(root: str | os.PathLike) -> Iterator[RunDirectory]:
    """Every run at or below `root`, in order of its path."""
    for folder, names, files in os.walk(root):
        names.sort()
        if "asked.yaml" in files:
            names.clear()
            yield RunDirectory(folder)


def check_root(root: str | os.PathLike) -> None:
    """Raises FileNotFoundError where it is no directory; one without runs is no mistake."""
    if not os.path.isdir(root):
        raise FileNotFoundError(f"root={root} is no directory; train a run first: lmlab train")


@contextmanager
def no_collection() -> Iterator[None]:
    """Reading makes a million objects and no cycles: looking for garbage among them takes a third of the time."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def name_of(directory: RunDirectory, root: str | os.PathLike) -> str:
    """Its path below `root`; bytes of it that are no UTF-8, which no table holds, are question marks."""
    return os.path.relpath(directory.path, root).encode("utf-8", "replace").decode()
