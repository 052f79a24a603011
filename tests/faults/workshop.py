"""Commands in processes of their own that begin at once, and go wrong as they are asked to."""

import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.warm import Warm

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

    def __init__(self, root: Path, warm: Warm):
        self.root, self.warm = root, warm
        self.environment = os.environ | {"LMLAB_CACHE": str(root / "c")}

    def run(self, *words: str, fault: str = "none", at: int = 0, after: float | None = None) -> Ended:
        """fault, at: see `Disk`. after: seconds until the whole process group is killed."""
        command = [
            sys.executable,
            "-m",
            "tests.faults.workshop",
            json.dumps({"words": words, "fault": fault, "at": at}),
        ]
        out, err = self.root / "out", self.root / "err"
        child = self.warm.start(command, cwd=self.root, env=self.environment, out=out, err=err)
        if after is not None:
            time.sleep(after)
            os.killpg(child.pid, signal.SIGKILL)
        status = child.wait()
        changes = (self.root / "changes").read_text().splitlines()
        return Ended(status, out.read_text(errors="replace"), err.read_text(errors="replace"), changes)

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


def command() -> None:
    from tests.faults.disk import Disk
    from tests.sweeps.conftest import alone

    from lmlab.cli import main
    from lmlab.cli.ending import leave
    from lmlab.sweeps.crew import LocalCrew

    asked = json.loads(sys.argv[1])
    log = os.open("changes", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    # A sweep's worker is this process: it dies as a whole.
    LocalCrew.run = alone
    if asked["fault"] != "none":
        Disk(Path.cwd(), asked["fault"], asked["at"], log).install()
    leave(main(asked["words"]))


if __name__ == "__main__":
    command()
