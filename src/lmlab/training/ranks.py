"""Several processes for one run, on one machine: the others train their rows and write nothing.

Lightning would start them by repeating our command line, which a notebook has not and Hydra rewrites; they get the
composed config instead.
"""

import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from lmlab.config import literal, plain
from lmlab.errors import DONE, OUR_FAULT, TRAINING_FAILED, TrainingFailed
from lmlab.hardware import threads
from lmlab.training.plan import Plan

log = logging.getLogger("lmlab")

# Seconds that a process may take to end by itself once another one has.
GRACE = 30.0
# Seconds until who broke a connection has said why and ended: the others hear of it at once.
LAST_WORDS = 5.0


@contextmanager
def launched(plan: Plan, run_dir: Path) -> Iterator[None]:
    """Within, ranks 1, 2, ... of this run wait for, or train with, this process, which is rank 0."""
    world_size = plan.decided["devices"]
    if world_size == 1:
        yield
        return
    each = share_of_threads(plan.config.threads, world_size)
    environment = rank_environment() | {"OMP_NUM_THREADS": str(each)}
    with tempfile.TemporaryDirectory() as folder, _environment(environment), threads(each):
        config = Path(folder) / "config.yaml"
        # The width is solved already, precision and compilation are the same for all; the directory is ours, also
        # where it was named by the second.
        decided = {key: plan.decided[key] for key in ("precision", "compile")}
        asked = plain(plan.config) | decided | {"n_params": None, "run_dir": str(run_dir)}
        # Resolved: a `${` that is left is part of a path or a text.
        config.write_text(OmegaConf.to_yaml(literal(asked)), encoding="utf-8")
        ranks = [_start(rank, config) for rank in range(1, world_size)]
        watching = threading.Thread(target=_watch, args=(ranks, done := threading.Event()), daemon=True)
        watching.start()
        try:
            yield
            done.set()
            _finish(ranks)
        except BaseException as error:
            done.set()
            # A connection that breaks is a RuntimeError; what all ranks meet alike is told as it is.
            broken = type(error) is RuntimeError or isinstance(error, torch.distributed.DistError)
            if not broken or not (failed := _failed(ranks, LAST_WORDS)):
                raise
            kind = TrainingFailed if ranks[failed[0] - 1].returncode == TRAINING_FAILED else RuntimeError
            raise kind(f"process {failed[0]} of {world_size} ended early; its message is above") from error
        finally:
            for process in ranks:
                process.kill()
                process.wait()
                process.stdin.close()


def share_of_threads(asked: int | None, world_size: int) -> int:
    """Threads of each process: as asked, else as OMP_NUM_THREADS says, else an equal share of the cores."""
    if asked is None and "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads()
    return asked or max(1, (os.cpu_count() or 1) // world_size)


def rank_environment() -> dict[str, str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": "0", "NODE_RANK": "0"}


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key, None)
            if value is not None:
                os.environ[key] = value


def _start(rank: int, config: Path) -> subprocess.Popen:
    # -P: files of the folder that we stand in replace no modules.
    # A session of its own: Ctrl-C in a terminal is for rank 0, which tells the others.
    command = [sys.executable, "-P", "-m", "lmlab.rank", str(config)]
    environment = os.environ | {"LOCAL_RANK": str(rank)}
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, start_new_session=True)


def _failed(ranks: list[subprocess.Popen], seconds: float = 0.0) -> list[int]:
    """Those that have not ended well; for so long one is waited for."""
    until = time.monotonic() + seconds
    while True:
        failed = [rank for rank, process in enumerate(ranks, 1) if process.poll() not in (None, DONE)]
        if failed or time.monotonic() >= until:
            return failed
        time.sleep(0.05)


def _watch(ranks: list[subprocess.Popen], done: threading.Event) -> None:
    """End this process where another has died and left it waiting for what never comes."""
    while not done.wait(0.5):
        if _failed(ranks) and not done.wait(GRACE):
            rank = _failed(ranks)[0]
            log.error("process %d of %d died and left the others waiting", rank, len(ranks) + 1)
            os._exit(TRAINING_FAILED if ranks[rank - 1].returncode == TRAINING_FAILED else OUR_FAULT)


def _finish(ranks: list[subprocess.Popen]) -> None:
    began = time.monotonic()
    for process in ranks:
        process.wait(max(1.0, GRACE - (time.monotonic() - began)))


def count(devices: Any, device: str) -> int:
    """How many processes `devices` asks for. Raises ValueError where the machine has not as many GPUs."""
    if isinstance(devices, int | str) and str(devices) in ("auto", "-1"):
        return max(1, torch.cuda.device_count()) if device == "cuda" else 1
    if isinstance(devices, str) and devices.isdigit():
        devices = int(devices)
    if isinstance(devices, bool) or not isinstance(devices, int) or devices < 1:
        raise ValueError(f"devices={devices} must be a number of processes, at least 1, or auto")
    if device == "cuda" and devices > torch.cuda.device_count():
        raise ValueError(f"devices={devices}, but this machine has {torch.cuda.device_count()} GPUs")
    if device not in ("cpu", "cuda") and devices > 1:
        raise ValueError(f"devices={devices} needs GPUs of NVIDIA's or trainer=cpu; {device} trains with devices=1")
    return devices
