"""Curves of many runs as one table, from the file that each keeps its own in."""

import io
import logging
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from lmlab.run_directory import RunDirectory
from lmlab.runs.found import check_root, find, name_of, no_collection
from lmlab.seal import unseal_lines

if TYPE_CHECKING:
    import pandas as pd


log = logging.getLogger("lmlab")


def curves(root: str | os.PathLike = "outputs") -> "pd.DataFrame":
    """One row a run and logged point: run, step, tokens, seconds of training, and the metrics that were logged then.

    A validation and what training logs at the same step are two rows. Of a run without curves.csv (of an older
    version), its validations in results.json.
    """
    check_root(root)
    with no_collection():
        return of_runs(find(root), root)


def of_runs(directories: Iterable[RunDirectory], root: str | os.PathLike) -> "pd.DataFrame":
    import pandas as pd

    # Files with the same columns are parsed as one: a call of the parser for each takes ten times as long.
    alike: dict[str, list[tuple[str, str]]] = {}
    frames = []
    for directory in directories:
        name = name_of(directory, root)
        if not directory.curves.is_file():
            frames.append(_validations(directory, name))
            continue
        try:
            text = unseal_lines(directory.curves.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            log.warning("%s is left out: %s", directory.curves, error)
            continue
        header, _, rest = text.partition("\n")
        alike.setdefault(header, []).append((name, rest))
    frames += [_parse(header, files) for header, files in alike.items() if header.startswith("step,")]
    frames = [frame for frame in frames if len(frame)]
    if not frames:
        return pd.DataFrame({"run": [], "step": [], "tokens": [], "seconds": []})
    found = pd.concat(frames, ignore_index=True)
    return found.sort_values(["run", "step"], kind="stable", ignore_index=True)


def _parse(header: str, files: list[tuple[str, str]]) -> "pd.DataFrame":
    """Files of one header. One that is damaged is left out, and costs no other its points."""
    import numpy as np
    import pandas as pd

    try:
        frame = pd.read_csv(io.StringIO("\n".join([header, *(text.rstrip("\n") for _, text in files if text)])))
        counts = [text.count("\n") for _, text in files]
        if sum(counts) != len(frame) or not all(dtype.kind in "if" for dtype in frame.dtypes):
            raise ValueError("a line is damaged")
    except ValueError:
        parts = [_parse(header, [file]) for file in files] if len(files) > 1 else []
        parts = [part for part in parts if len(part)]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    frame.insert(0, "run", np.repeat(np.array([name for name, _ in files], dtype=object), counts))
    return frame


def _validations(directory: RunDirectory, name: str) -> "pd.DataFrame":
    import pandas as pd

    try:
        history = (directory.results() or {})["training"]["history"]
        return pd.DataFrame([{"run": name, **point} for point in history])
    except (ValueError, OSError, KeyError, TypeError):
        return pd.DataFrame()
