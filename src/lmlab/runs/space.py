"""The space that runs take on a disk, and what may be freed of it."""

import logging
import os
import shutil
from pathlib import Path

from lmlab.runs.found import find
from lmlab.runs.tables import size

log = logging.getLogger("lmlab")


def prune(root: str | os.PathLike, keep: str, do_it: bool) -> list[tuple[Path, int]]:
    """What `keep` would free, as (path, bytes); removed when `do_it`.

    keep=best: last.ckpt of finished runs goes, which continuing them needs. keep=finished: unfinished runs go whole.
    keep=results: all checkpoints of finished runs go, numbers and curves stay. Runs that are being trained, and such
    as cannot be read, are passed over, and named.
    """
    rules = ("best", "finished", "results")
    if keep not in rules:
        raise ValueError(f"keep={keep} must be one of {', '.join(rules)}")
    freed = []
    for directory in find(root):
        if directory.held():
            log.warning("%s is passed over: it is being trained", directory.path)
            continue
        try:
            finished = directory.finished()
        except (ValueError, OSError, KeyError, TypeError) as error:
            log.warning("%s is passed over: results.json is damaged (%s)", directory.path, error)
            continue
        if keep == "finished":
            paths = [] if finished else [directory.path]
        else:
            paths = [directory.last] + ([directory.best] if keep == "results" else []) if finished else []
            if directory.checkpoints.is_symlink():
                # Somewhere else, where others may need them.
                paths = []
        for path in filter(Path.exists, paths):
            freed.append((path, size(path) if path.is_dir() else path.stat().st_size))
            if do_it:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    return freed
