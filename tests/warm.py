"""Python that begins at once: one process imports what takes seconds, and forks for each command.

For tests that need a process of its own and not its start: each start of torch and Lightning is five seconds. The
processes see no GPU, for CUDA does not survive a fork.
"""

import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from tests import network

REPOSITORY = Path(__file__).parents[1]
PLACES = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "src")])
OWN = {"PYTHONPATH": PLACES, "CUDA_VISIBLE_DEVICES": ""}


class Warm:
    """start([sys.executable, ...]) in place of subprocess.Popen: `-c CODE` and `-m MODULE` with their arguments."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.warm"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env=os.environ | OWN,
        )

    def start(
        self,
        command: Sequence[str],
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        out: Path | None = None,
        err: Path | None = None,
    ) -> "Forked":
        """The leader of a process group of its own, without input. out, err: files; by default nobody reads them."""
        _, kind, what, *rest = map(str, command)
        asked = {"kind": kind, "what": what, "rest": rest, "cwd": str(cwd or Path.cwd())}
        asked |= {"env": dict(os.environ if env is None else env) | OWN, "out": str(out or os.devnull)}
        return Forked(self, command, self.ask(asked | {"err": str(err or out or os.devnull)}))

    def run(self, command: Sequence[str], folder: Path, **options: Any) -> subprocess.CompletedProcess:
        """As subprocess.run, with what it wrote, which goes through files in `folder`."""
        out, err = folder / "out", folder / "err"
        status = self.start(command, out=out, err=err, **options).wait()
        return subprocess.CompletedProcess(command, status, out.read_text(), err.read_text())

    def ask(self, asked: dict[str, Any]) -> Any:
        try:
            self.process.stdin.write(json.dumps(asked) + "\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())
        except BaseException:
            # Of a test that was interrupted, the next one must not read the answer.
            self.close()
            self.begin()
            raise

    def close(self) -> None:
        # It waits for a command; to end by itself takes torch seconds.
        self.process.kill()
        self.process.communicate()


class Forked:
    """As much of subprocess.Popen as tests need."""

    def __init__(self, warm: Warm, args: Sequence[str], pid: int):
        self.warm, self.args, self.pid = warm, args, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self.warm.ask({"poll": self.pid})
        return self.returncode

    def wait(self) -> int:
        """Negative for a signal."""
        if self.returncode is None:
            self.returncode = self.warm.ask({"wait": self.pid})
        return self.returncode


def serve() -> None:
    import torch

    import lmlab.cli.train
    import lmlab.experiment
    import lmlab.runs.run
    import lmlab.sweeps.sweeper
    import lmlab.training.fit  # noqa: F401

    # As in tests/conftest.py.
    torch.set_num_threads(1)
    network.refuse()
    os.fsync = lambda descriptor: None
    imported: dict[int, TextIO] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        if "kind" in asked:
            names = tempfile.TemporaryFile("w+")  # noqa: SIM115
            told = os.fork()
            if told == 0:
                _command(asked, names)
            # Here and not in the child: a group that is killed at once has to be there.
            os.setpgid(told, told)
            imported[told] = names
        else:
            (how,) = asked
            pid, status = os.waitpid(asked[how], os.WNOHANG if how == "poll" else 0)
            told = os.waitstatus_to_exitcode(status) if pid else None
            if pid:
                _learn(imported.pop(pid))
        print(json.dumps(told), flush=True)


def _learn(names: TextIO) -> None:
    """What a command had to import the next one finds imported. One that was killed has told nothing."""
    names.seek(0)
    for name in names.read().split():
        if name not in sys.modules:
            with suppress(ImportError):
                importlib.import_module(name)
    names.close()


def _command(asked: dict[str, Any], names: TextIO) -> None:
    import atexit

    from lmlab.cli.ending import leave

    before, status = set(sys.modules), 0
    for number, name in ((0, os.devnull), (1, asked["out"]), (2, asked["err"])):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND), number)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, closefd=False) for n in (1, 2))
    os.environ.clear()
    os.environ.update(asked["env"])
    os.chdir(asked["cwd"])
    sys.argv = [asked["kind"], *asked["rest"]]

    def tell() -> None:
        os.write(names.fileno(), "\n".join(name for name in sys.modules if name not in before).encode())

    atexit.register(tell)
    try:
        if asked["kind"] == "-m":
            runpy.run_module(asked["what"], run_name="__main__", alter_sys=True)
        else:
            exec(compile(asked["what"], "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    leave(status)


if __name__ == "__main__":
    serve()
