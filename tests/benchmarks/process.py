"""Other processes: how long they take, and the most memory that they and their children hold."""

import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

import lmlab

from .machine import ROOT

# What the console script does.
LMLAB = (sys.executable, "-c", "from lmlab.cli import run; run()")
# Seconds between two looks at memory: one look costs a millisecond or two.
EVERY = 0.2


@dataclass(frozen=True)
class Finished:
    """began: of `time.time()`. peak_mb: of the process and its children, shared pages counted once; 0 unless asked."""

    seconds: float
    began: float
    peak_mb: float
    out: str


def run(command: Sequence[str], env: Mapping[str, str] | None = None, memory: bool = False) -> Finished:
    """Run to the end. memory: watch it. Raises RuntimeError with what it wrote where it fails."""
    began, clock = time.time(), time.perf_counter()
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment() | dict(env or {}), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    peak = [0]
    watcher = threading.Thread(target=_watch, args=(process.pid, peak), daemon=True)
    if memory:
        watcher.start()
    out, _ = process.communicate()
    seconds = time.perf_counter() - clock
    if memory:
        watcher.join()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{out}")
    return Finished(seconds, began, peak[0] / 1e6, out)


def lmlab_run(*words: str, memory: bool = False) -> Finished:
    """`lmlab WORDS`"""
    return run((*LMLAB, *words), memory=memory)


def clocked(path: Path | str) -> str:
    """The override that adds a clock to a run. Not in the clock's module, which imports Lightning: peers do not."""
    return f"+callbacks.clock={{_target_: tests.benchmarks.clock.Clock, path: '{path}'}}"


def environment() -> dict[str, str]:
    """Children import the lmlab that we did."""
    places = (str(Path(lmlab.__file__).parents[1]), str(ROOT), os.environ.get("PYTHONPATH", ""))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in places if p)}


def _watch(pid: int, peak: list[int]) -> None:
    try:
        top = psutil.Process(pid)
        while top.is_running() and top.status() != psutil.STATUS_ZOMBIE:
            peak[0] = max(peak[0], sum(map(_held, [top, *top.children(recursive=True)])))
            time.sleep(EVERY)
    except psutil.NoSuchProcess:
        pass


def _held(process: psutil.Process) -> int:
    try:
        info = process.memory_full_info()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0
    return getattr(info, "pss", info.uss)


def isolated(function: Callable[..., dict[str, Any]], memory: bool = False, /, **arguments: Any) -> dict[str, Any]:
    """What `function` returns in a process of its own; arguments and result are JSON.

    memory: watch it and its children, as `peak_mb`.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        name = f"{function.__module__}:{function.__name__}"
        finished = run((sys.executable, "-m", "tests.benchmarks.process", name, json.dumps(arguments), str(out)),
                       memory=memory)  # fmt: skip
        told = {"seconds_in_all": finished.seconds, "began": finished.began}
        return json.loads(out.read_text()) | told | ({"peak_mb": finished.peak_mb} if memory else {})


def own_peak_mb() -> float:
    """The most physical memory that this process has held so far."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        # macOS counts bytes.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def main() -> None:
    name, arguments, out = sys.argv[1:]
    module, _, function = name.partition(":")
    result = getattr(import_module(module), function)(**json.loads(arguments))
    Path(out).write_text(json.dumps(result, default=float))


if __name__ == "__main__":
    main()
