"""lmlab report: a page about many runs, and their tables beside it."""

from pathlib import Path

from lmlab.cli.command import options
from lmlab.terminal import printable


def main(arguments: list[str]) -> int:
    if arguments and not arguments[0].startswith("-") and (Path(arguments[0]).is_dir() or "=" not in arguments[0]):
        arguments = [f"root={arguments[0]}", *arguments[1:]]
    config = options("report", arguments)
    if config is None:
        return 0
    root = Path(config["root"])
    if not root.is_dir():
        raise FileNotFoundError(f"root={root} is no directory; train a run first: lmlab train")
    from lmlab.report import leave

    for path in leave(root, config["metric"], config["out"]):
        print(f"{path.stat().st_size / 1e6:8.2f} MB  {printable(str(path))}")
    return 0
