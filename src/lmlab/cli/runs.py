"""lmlab runs: a table of runs; lmlab runs prune: the space of some."""

import sys
from pathlib import Path

from lmlab.cli.command import VALUED, one_of, options
from lmlab.config import suggest
from lmlab.terminal import for_stdout, printable, writes_utf8


def main(arguments: list[str]) -> int:
    pruning = "prune" in arguments
    config = options("runs", with_root([word for word in arguments if word != "prune"]))
    if config is None:
        return 0
    if not Path(config["root"]).is_dir():
        raise FileNotFoundError(f"root={config['root']} is no directory; train a run first: lmlab train")
    return prune(config) if pruning else show(config)


def with_root(arguments: list[str]) -> list[str]:
    """A directory stands for root=, as in lmlab report; all else is as it was."""
    words = []
    for before, word in zip(["", *arguments], arguments, strict=False):
        if word.startswith("-") or before in VALUED:
            words.append(word)
        elif Path(word).is_dir():
            words.append(f"root={word}")
        elif "=" in word:
            words.append(word)
        else:
            near = suggest(word, ["prune"])
            raise ValueError(f"{word!r} is no setting, which are written key=value, and no directory of runs{near}")
    if len(roots := [word for word in words if word.startswith("root=")]) > 1:
        raise ValueError(f"{' '.join(roots)}: one directory at a time; what lies below it is listed, too")
    return words


def show(config: dict) -> int:
    from lmlab import runs
    from lmlab.runs.ledger import directions
    from lmlab.runs.measures import higher

    one_of("format", config["format"], ("table", "csv", "json"))
    # Named twice, a column is shown once.
    columns = list(dict.fromkeys(config["columns"] or []))
    frame = runs.table(config["root"])
    if frame.empty:
        raise FileNotFoundError(f"no runs under root={config['root']}; train one: lmlab train")
    # The default's column is missing while no run has finished.
    sort = [config["sort"]] if config["sort"] not in (None, "val/bpb") else []
    for column in [*columns, *sort]:
        if column not in frame:
            near = suggest(column, frame.columns)
            raise ValueError(f"no column {column!r}{near}; lmlab runs format=csv has all of them")
    if config["sort"] in frame:
        first = not higher(config["sort"], directions(config["root"]))
        frame = frame.sort_values(config["sort"], kind="stable", key=comparable, ascending=first)
    if columns and config["format"] != "table":
        frame = frame[columns]
    if config["format"] == "table":
        show_table(frame, columns or None)
    elif config["format"] == "csv":
        print(for_stdout(frame.to_csv(index=False)), end="")
    else:
        print(runs.as_json(frame, ascii_only=not writes_utf8(sys.stdout)))
    return 0


def show_table(frame, columns: list | None) -> None:
    """One table a protocol: numbers of two never stand side by side."""
    from lmlab.cli.tables import console, show_frame
    from lmlab.runs.protocols import apart, incomparable, is_measured

    measured = columns is None or any(map(is_measured, columns))
    parts = apart(frame) if measured else {"": frame}
    for name, rows in parts.items():
        if len(parts) > 1:
            console().print(f"\n{name}", style="bold", highlight=False)
        show_frame(rows[columns] if columns else rows, all_columns=bool(columns))
    if len(parts) > 1:
        console().print(f"\n{incomparable(parts)}", highlight=False, soft_wrap=True)


def comparable(column):
    """Numbers as they are; a column of different things by what it looks like."""
    return column if column.dtype.kind in "iuf" else column.astype(str)


def prune(config: dict) -> int:
    from lmlab import runs

    freed = runs.prune(config["root"], config["keep"], config["yes"])
    for path, size in freed:
        print(f"{size / 1e6:10.1f} MB  {printable(str(path))}")
    done = "freed" if config["yes"] else "would be freed; yes=true does it"
    print(f"{sum(size for _, size in freed) / 1e6:10.1f} MB {done}")
    return 0
