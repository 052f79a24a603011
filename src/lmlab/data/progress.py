"""How far preparing has come: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType
from typing import Any

# Seconds between plain lines; short preparations print none.
EVERY_S = 10.0


class Progress:
    """Counts bytes of text towards a total (None: unknown) on standard error; silent unless `show`."""

    def __init__(self, title: str, total: int | None, show: bool):
        self._title, self._total, self._show = title, total, show
        self._done, self._step, self._began = 0, "", time.monotonic()
        self._said = self._began
        self._bar: Any = None

    def __enter__(self) -> "Progress":
        if self._show and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                DownloadColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=self._total)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def say(self, step: str) -> None:
        """What is being done now."""
        self._step = step
        if self._bar:
            self._bar.update(self._task, description=f"{self._title}: {step}")

    def advance(self, amount: int) -> None:
        self._done += amount
        if self._bar:
            self._bar.update(self._task, advance=amount)
        elif self._show and time.monotonic() - self._said >= EVERY_S:
            self._said = time.monotonic()
            of = f" of about {self._total / 1e6:.0f}" if self._total else ""
            seconds = self._said - self._began
            print(f"{self._title}: {self._step}, {self._done / 1e6:.0f}{of} MB, {seconds:.0f} s", file=sys.stderr)
