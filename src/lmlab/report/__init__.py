"""report.html: what a set of runs says, in one file that needs no network, no server and no other file."""

import json
import logging
import os
from pathlib import Path
from typing import Any

from lmlab.data.cache import whole_file

log = logging.getLogger("lmlab")

PAGE = Path(__file__).parent / "page"


def write(
    root: str | os.PathLike, metric: str | None = None, out: str | os.PathLike | None = None, read: Any = None
) -> Path:
    """The report on the runs below `root`; by default in root/report.html. See `gather` for the others and errors."""
    from lmlab.report.gather import gather
    from lmlab.runs.found import check_root

    check_root(root)
    out = Path(root) / "report.html" if out is None else Path(out)
    if out.is_dir():
        raise IsADirectoryError(f"out={out} is a directory; name a file: out={out / 'report.html'}")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"out={out} is in no directory; make {out.parent} first")
    page = render(gather(root, metric, read))
    with whole_file(out) as beside:
        beside.write_text(page, encoding="utf-8")
    return out


def leave(root: str | os.PathLike, metric: str | None = None, out: str | os.PathLike | None = None) -> list[Path]:
    """The report, and the tables of the same runs beside it; what could not be written is said."""
    from lmlab import runs

    # Once for both: a thousand runs take a second.
    read = runs.table(root), runs.curves(root)
    written = [write(root, metric, out, read)]
    try:
        return written + runs.write_tables(root, read, written[0].parent)
    except ImportError as error:
        log.warning("%s", error)
        return [*written, written[0].parent / "trials.csv"]


def render(told: dict[str, Any]) -> str:
    """The page. What comes from runs stands in one place alone, as data that no browser reads as markup."""
    text = json.dumps(told, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # Within a script element only `</script` and `<!--` mean anything; outside JSON's strings `<` does not occur.
    text = text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    # Lone surrogates, as of names that are no UTF-8, cannot be written.
    text = text.encode("utf-8", "replace").decode("utf-8")
    page = (PAGE / "page.html").read_text(encoding="utf-8")
    for name in ("style.css", "figures.js", "parts.js", "sections.js", "answers.js"):
        page = page.replace(f"[[{name}]]", (PAGE / name).read_text(encoding="utf-8"))
    return page.replace("[[data]]", text)
