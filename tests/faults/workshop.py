"""Commands in processes of their own that begin at once: one process imports everything, and forks for each command.

Run as a program it is that process: a line of JSON asks for a command, a line of JSON tells how it ended.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
# Of all moments of a command at which a fault is put in, every so many is tried: LMLAB_FAULTS_EVERY=1 tries each, which
# takes a quarter of an hour.
EVERY = int(os.environ.get("LMLAB_FAULTS_EVERY", "10"))


@dataclass(frozen=True)
class Ended:
    """How a command ended. status: negative for a signal. changes: what the disk counted, in order."""

    status: int
    out: str
    err: str
    changes: list[str]


class Workshop:
    """run(words) is `lmlab words`."""

    def __init__(self, root: Path):
        self.root = root
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "LMLAB_CACHE": str(root / "c")}
        environment["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "src")])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.workshop", str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env=environment,
        )

    def run(self, *words: str, fault: str = "none", at: int = 0, after: float | None = None) -> Ended:
        """fault, at: see `Disk`. after: seconds until the whole process group is killed."""
        self.process.stdin.write(json.dumps({"words": words, "fault": fault, "at": at, "after": after}) + "\n")
        self.process.stdin.flush()
        told = json.loads(self.process.stdout.readline())
        out, err, log = ((self.root / name).read_text(errors="replace") for name in ("out", "err", "changes"))
        return Ended(told["status"], out, err, log.splitlines())

    def at_each(self, fault: str, *words: str, clean: Callable[[], None], every: int = EVERY) -> Iterator[Ended]:
        """The command with the fault at its first change of the disk, then `every` changes on, until it passes.

        clean() before each: the disk as the command is to find it.
        """
        for at in itertools.count(1, every):
            clean()
            ended = self.run(*words, fault=fault, at=at)
            if ended.status == 0:
                assert at > len(ended.changes), "the last change was passed"
                print(f"{fault} at {at // every} of {len(ended.changes)} changes")
                return
            yield ended

    def close(self) -> None:
        # It waits for a command; to end by itself takes torch seconds.
        self.process.kill()
        self.process.communicate()


def work(root: Path) -> None:
    import torch

    import lmlab.cli.train
    import lmlab.experiment
    import lmlab.runs.run
    import lmlab.sweeps.sweeper
    import lmlab.training.fit  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            command(root, asked)
        # Here and not in the child: a group that is killed at once has to be there.
        os.setpgid(child, child)
        if asked["after"] is not None:
            time.sleep(asked["after"])
            os.killpg(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        print(json.dumps({"status": os.waitstatus_to_exitcode(status)}), flush=True)


def command(root: Path, asked: dict[str, Any]) -> None:
    from tests.faults.disk import Disk
    from tests.sweeps.conftest import alone

    from lmlab.cli import main
    from lmlab.cli.ending import leave
    from lmlab.sweeps.crew import LocalCrew

    for number, name in ((0, "/dev/null"), (1, root / "out"), (2, root / "err")):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
    log = os.open(root / "changes", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, closefd=False) for n in (1, 2))
    os.chdir(root)
    # A sweep's worker is this process: it dies as a whole.
    LocalCrew.run = alone
    if asked["fault"] != "none":
        Disk(root, asked["fault"], asked["at"], log).install()
    leave(main(asked["words"]))


if __name__ == "__main__":
    work(Path(sys.argv[1]))
