"""curves.csv in a run's directory: every point that was logged, in a file of which a thousand are read in a second."""

import contextlib
import logging
import os
from collections.abc import Mapping
from typing import IO

from lmlab.run_directory import RunDirectory
from lmlab.seal import intact_lines, seal_line

log = logging.getLogger("lmlab")

# Of each point, before its metrics. Seconds of training: validating, saving and sampling are not counted.
COLUMNS = ("step", "tokens", "seconds")
# Said by a column of every point.
LEFT_OUT = ("progress/tokens",)


class Curves:
    """Appends a line a point, with a checksum; a kill loses at most the line that was being written.

    resume_from: the step of the checkpoint that is continued; later points are dropped, as they will come again. None:
    a new run. in_passing: the checkpoint's validation was not due and is forgotten.
    """

    def __init__(self, directory: RunDirectory, resume_from: int | None, in_passing: bool = False):
        self.directory = directory
        self.columns = list(COLUMNS)
        self._file: IO[str] | None = None
        self._rewrite([] if resume_from is None else self._before(resume_from, in_passing))

    def append(self, step: int, tokens: int, seconds: float, metrics: Mapping[str, float]) -> None:
        new = [name for name in metrics if name not in self.columns and name not in LEFT_OUT]
        if new:
            # Twice or so in a run: the first point of training, the first validation.
            self.columns += new
            self._rewrite(self.directory.points())
        point = {"step": step, "tokens": tokens, "seconds": f"{seconds:.3f}"}
        # More digits than a plot shows, fewer than a float has.
        point |= {name: f"{value:.9g}" for name, value in metrics.items() if name not in LEFT_OUT}
        self._file.write(seal_line(point.get(name, "") for name in self.columns))

    def __deepcopy__(self, memo: dict) -> "Curves":
        """Weight averaging copies the module, which has this: the file is one."""
        return self

    def close(self) -> None:
        # Each line was written when it was logged; what a full disk refused was said then.
        with contextlib.suppress(OSError):
            self._file.close()

    def _before(self, step: int, in_passing: bool) -> list[dict[str, str]]:
        def stays(point: Mapping[str, str]) -> bool:
            at = int(point["step"])
            return at < step or (at == step and not (in_passing and point.get("val/loss")))

        try:
            points = [point for point in self.directory.points() if stays(point)]
        except (ValueError, TypeError, KeyError) as error:
            points = [point for point in self._rescued(error) if stays(point)]
        self.columns += [name for point in points[:1] for name in point if name not in self.columns]
        return points

    def _rescued(self, error: Exception) -> list[dict[str, str]]:
        """The points that are as they were written, of a file that is not; that is laid aside."""
        file = self.directory.curves
        text = file.read_text(encoding="utf-8", errors="replace")
        columns, *rows = intact_lines(text) or [[]]
        aside = file.with_name(f"{file.name}.damaged")
        os.replace(file, aside)
        n = max(text.count("\n") - 1, 0)
        log.warning("%s; %d of its %d lines are whole and stay; %s is as it was", error, len(rows), n, aside.name)
        return [dict(zip(columns, row, strict=True)) for row in rows]

    def _rewrite(self, points: list[dict[str, str]]) -> None:
        """Whole or not at all, then open for more."""
        if self._file is not None:
            self._file.close()
        lines = [seal_line(self.columns, header=True)]
        lines += [seal_line(point.get(name, "") for name in self.columns) for point in points]
        self.directory.write_text(self.directory.curves.name, "".join(lines))
        # By line: what was logged is seen by others at once.
        self._file = self.directory.curves.open("a", encoding="utf-8", buffering=1)
