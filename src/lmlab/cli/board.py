"""lmlab board: TensorBoard, bound to this machine only."""

import subprocess
import sys
from pathlib import Path

from lmlab.cli.command import options
from lmlab.errors import DONE, USER_INPUT


def main(arguments: list[str]) -> int:
    config = options("board", arguments)
    if config is None:
        return 0
    if not 0 <= config["port"] <= 65535:
        raise ValueError(f"port={config['port']} must be from 0 to 65535; 0 takes a free one")
    root = Path(config["root"])
    if not root.is_dir():
        raise FileNotFoundError(f"root={root} is no directory; train a run first: lmlab train")
    # The data server in Rust reads many runs at once; the loopback address keeps others out.
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(root), "--host", "127.0.0.1"]
    done = subprocess.run([*command, "--port", str(config["port"])], check=False)
    # It has said itself what it lacks: a port that is taken, mostly.
    return USER_INPUT if done.returncode else DONE
