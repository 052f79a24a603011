"""A disk that fails at its k-th change: the process is killed there, or no space is left from there on.

For child processes alone: Python's own file operations are replaced and never put back. What C code writes (SQLite,
Arrow) passes unseen; tests of those fill a real disk.
"""

import builtins
import errno
import io
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What needs space; the others only fail with the process.
SPACE = ("create", "write", "mkdir", "link")


class Disk:
    """Counts the changes below `root`, and fails at number `at` (from 1).

    fault: `kill`, SIGKILL just before the change, or in the middle of a write; `full`, ENOSPC from there on for all
    that needs space, after half of a write. log: an open file descriptor that gets a line a change.
    """

    def __init__(self, root: Path, fault: str, at: int, log: int):
        self.root, self.fault, self.at, self.log = os.path.realpath(root) + "/", fault, at, log
        self.count = 0

    def mine(self, path: Any) -> bool:
        # TensorBoard names its files in bytes.
        return not isinstance(path, int) and os.path.realpath(os.fsdecode(path)).startswith(self.root)

    def change(self, kind: str, path: Any, halfway: Callable[[], Any] = lambda: None) -> None:
        if self.fault == "full" and kind not in SPACE:
            return
        self.count += 1
        path = os.path.realpath(os.fsdecode(path))
        self._write(self.log, f"{kind} {path[len(self.root) :]}\n".encode())
        if self.fault == "kill" and self.count == self.at:
            halfway()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "full" and 0 < self.at <= self.count:
            halfway()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def install(self) -> None:
        self._write = os.write
        disk, opened, os_open = self, io.open, os.open

        class File(io.FileIO):
            def write(self, data: Any) -> int:
                data = bytes(data)
                write = super().write
                disk.change("write", self.name, lambda: write(data[: len(data) // 2]))
                return write(data)

        def open_(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **named: Any) -> Any:
            if not set(mode) & set("wax+") or not disk.mine(file):
                return opened(file, mode, buffering, *rest, **named)
            if "w" in mode or not os.path.exists(file):
                disk.change("create", file)
            raw: Any = File(file, mode.replace("b", "").replace("t", ""))
            raw = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
            if "b" in mode:
                return raw
            names = ("encoding", "errors", "newline")
            text = dict(zip(names, rest, strict=False)) | {k: v for k, v in named.items() if k in names}
            return io.TextIOWrapper(raw, **text, line_buffering=buffering == 1)

        def low(path: Any, flags: int, *rest: Any, **named: Any) -> int:
            if flags & os.O_CREAT and disk.mine(path) and not os.path.exists(path):
                disk.change("create", path)
            return os_open(path, flags, *rest, **named)

        builtins.open = io.open = open_
        os.open = low
        for name in ("replace", "rename", "link", "unlink", "remove", "mkdir", "rmdir"):
            setattr(os, name, self._counted(name, getattr(os, name)))

    def _counted(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def changed(path: Any, *rest: Any, **named: Any) -> Any:
            if self.mine(path) and os.path.lexists(path) != (name == "mkdir"):
                self.change(name, path)
            return original(path, *rest, **named)

        return changed
