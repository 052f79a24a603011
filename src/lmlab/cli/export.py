"""lmlab export: a run as a folder that Hugging Face's transformers loads."""

from lmlab.cli.command import load_run, options
from lmlab.terminal import printable


def main(arguments: list[str]) -> int:
    config = options("export", arguments)
    if config is None:
        return 0
    if config["out"] in (None, "", "???"):
        raise ValueError("out=... is needed: the folder to write")
    for path in load_run(config | {"device": "cpu"}).export(config["out"]):
        print(f"{path.stat().st_size / 1e6:8.2f} MB  {printable(str(path))}")
    return 0
