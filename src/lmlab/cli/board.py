"""lmlab board: TensorBoard, bound to this machine only."""

import socket
import subprocess
import sys
from itertools import islice
from pathlib import Path

from lmlab.cli.command import options
from lmlab.errors import DONE, USER_INPUT

# Others cannot reach it.
HOST = "127.0.0.1"
# TensorBoard opens on its first page; an address opens on the page that it names.
PAGES = {"comparison": "custom_scalars", "table": "hparams", "all curves": "timeseries"}


def main(arguments: list[str]) -> int:
    config = options("board", arguments)
    if config is None:
        return 0
    if not 0 <= config["port"] <= 65535:
        raise ValueError(f"port={config['port']} must be from 0 to 65535; 0 takes a free one")
    root = Path(config["root"])
    if not root.is_dir():
        raise FileNotFoundError(f"root={root} is no directory; train a run first: lmlab train")
    port = config["port"] or free_port()
    for line in addresses(root, port):
        print(line, flush=True)
    # The data server in Rust reads many runs at once.
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(root), "--host", HOST]
    done = subprocess.run([*command, "--port", str(port)], check=False)
    # It has said itself what it lacks: a port that is taken, mostly.
    return USER_INPUT if done.returncode else DONE


def addresses(root: Path, port: int) -> list[str]:
    """Where several runs are compared; of a single one there is nothing to compare."""
    from lmlab.runs import find

    if next(islice(find(root), 1, None), None) is None:
        return []
    return [f"{name:<11} http://{HOST}:{port}/#{page}" for name, page in PAGES.items()]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]
