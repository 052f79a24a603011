"""What a terminal is shown of texts that are other people's: none of it is markup, and none of it steers."""

import re
import sys
from typing import Any

# All control characters but tab and newline, and what no encoding writes.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def printable(text: str) -> str:
    """The text with its control characters to be seen: a name in a run may hold a terminal's escape sequences."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def for_stdout(text: str) -> str:
    """Printable on a terminal; a file or another program gets the text as it is."""
    return printable(text) if sys.stdout.isatty() else text


def writes_utf8(stream: Any) -> bool:
    """Whether it writes every character; what stands in for a stream in a notebook or a test does."""
    encoding = getattr(stream, "encoding", None)
    return not encoding or encoding.lower().replace("-", "").replace("_", "") == "utf8"


def console(**options: Any) -> Any:
    """One of rich's that takes every string for what it is, whether printed or in a table's cell."""
    from rich.console import Console

    class Plain(Console):
        def render_str(self, text: str, **how: Any) -> Any:
            return super().render_str(printable(text), **how)

    return Plain(markup=False, emoji=False, **options)
