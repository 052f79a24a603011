"""Workers, and who starts them: processes of this machine, or jobs of one of Hydra's launchers."""

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from lmlab.errors import DONE, INTERRUPTED, TRAINING_FAILED, TrainingFailed
from lmlab.sweeps.asked import Asked
from lmlab.sweeps.composer import Composer
from lmlab.sweeps.ledger import Ledger, results_of
from lmlab.sweeps.space import samples
from lmlab.sweeps.worker import give_up_or_retry, halve

log = logging.getLogger("lmlab")

# Seconds between looks at the workers.
LOOK = 0.2
# Workers that may die one after the other before having finished anything: then it is not the trials.
PATIENCE = 3


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def divide(
    workers: int | str, threads: int | None, gpus: int, n_trials: int, fit: int | None = None
) -> tuple[int, int, str | None]:
    """(how many workers, threads of each, why so many where that was left to us).

    gpus: how many trials they hold side by side. auto: so many, else as many as the cores hold, of one thread each
    unless `threads` says more, and no more than `fit` into memory; never more than there are trials.
    """
    why = None
    if workers == "auto":
        workers = gpus or max(1, cores() // (threads or 1))
        why = "as many as GPUs hold" if gpus else f"{cores()} cores, {threads or 1} for each"
        if fit is not None and fit < workers:
            workers, why = max(1, fit), "no more fit into memory"
        if n_trials < workers:
            why = "one a trial"
    n = max(1, min(int(workers), n_trials))
    return n, threads or max(1, cores() // n), why


def sampled(asked: Asked, composer: Composer) -> Iterator[DictConfig]:
    """Configs of a few of the space's points, far apart, of those that can run: the others' trials say why."""
    from lmlab.sweeps.trial import config_of

    points = asked.points or [[]]
    if asked.parameters:
        ends = ([asked.overrides_of(p) for p in samples(asked.parameters, last)] for last in (False, True))
        points = [point for pair in zip_longest(*ends) for point in pair if point is not None]
    for point in points[:8]:
        try:
            yield config_of([*asked.overrides, *point], asked.seeds[0], composer)
        except Exception as error:
            log.debug("no config of %s: %s", point, error)


def fitting(asked: Asked, ledger: Ledger, composer: Composer) -> tuple[int, str] | None:
    """How many trials fit into this machine's memory side by side, and of which size; None where nobody knows.

    By the largest that has run, else by an estimate of a few of the space's points.
    """
    from lmlab.sweeps import memory

    free = memory.available()
    if free is None:
        return None
    told = [results_of(row).get("perf/memory_gb", 0.0) for row in ledger.trials("done")]
    if any(told):
        one, how = 1e9 * max(told), "measured"
    else:
        try:
            one, how = max(map(memory.estimate, sampled(asked, composer))), "estimated"
        except Exception as error:
            # A model that cannot be built: its trial says why.
            log.debug("no estimate of a trial's memory: %s", error)
            return None
    return int(free // one), f"{how} at {one / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"


class LocalCrew:
    """Processes of this machine, each with its share of the cores, and its GPUs where there are any."""

    def __init__(self, directory: Path, workers: int | str, asked: Asked, ledger: Ledger, composer: Composer):
        self.directory, self.asked = directory, asked
        # A sweep of which no point can run is refused before; an option's file may say it as well as an override.
        config = next(sampled(asked, composer))
        gpus = visible_gpus() if config.trainer.accelerator != "cpu" else []
        self.gpus = grouped(gpus, str(config.trainer.devices))
        fits = fitting(asked, ledger, composer) if workers == "auto" and not self.gpus else None
        n_trials, most = asked.n_points * asked.replicates, None if fits is None else fits[0]
        self.n, self.threads, why = divide(workers, config.threads, len(self.gpus), n_trials, most)
        if why is not None:
            size = "" if fits is None else f"; a trial is {fits[1]}"
            log.info("workers=auto: %d (%s%s), %d threads each", self.n, why, size, self.threads)
        self.processes: dict[int, subprocess.Popen] = {}
        self.fruitless = 0

    def run(self, ledger: Ledger, look: Callable[[], None]) -> bool:
        """Until nothing is left to do; whether somebody interrupted it. look: called all the while."""
        handlers = {s: signal.signal(s, self._interrupt) for s in (signal.SIGINT, signal.SIGTERM)}
        self.interrupted = 0
        try:
            for index in range(self.n):
                self.start(index)
            while self.processes:
                time.sleep(LOOK)
                self.look_after(ledger)
                look()
        finally:
            for process in self.processes.values():
                process.kill()
                process.wait()
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return bool(self.interrupted)

    def _interrupt(self, number: int, frame: Any) -> None:
        """The first one lets each worker end its step and save; the second one does not wait for that."""
        self.interrupted += 1
        if self.interrupted == 1:
            log.info("stopping: each trial ends its step and saves; once more to leave at once")
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM if self.interrupted == 1 else signal.SIGKILL)

    def start(self, index: int) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads), "MKL_NUM_THREADS": str(self.threads)}
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[index % len(self.gpus)]
        path = self.directory / "workers" / f"{index}.log"
        path.parent.mkdir(exist_ok=True)
        for place in (path.parent, path):
            if place.is_symlink():
                raise ValueError(f"{place} is a link, which no sweep makes: remove it")
        with path.open("ab") as said:
            # -P: files of the folder that we stand in replace no modules.
            # Its input ends when this process does, however that happens.
            self.processes[index] = subprocess.Popen(
                [sys.executable, "-P", "-m", "lmlab.sweeps.worker", str(self.directory), str(index)],
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=said,
                env=environment,
            )

    def look_after(self, ledger: Ledger) -> None:
        """Say what became of workers that ended before the work did, and put others in their place."""
        for index, process in list(self.processes.items()):
            # In one transaction: from when it is waited for, other workers may take its trial over.
            with ledger.transaction():
                status = process.poll()
                ended_well = status in (DONE, INTERRUPTED) or self.interrupted
                if status is not None and not ended_well:
                    self._bury(ledger, index, process.pid, status)
            if status is None:
                continue
            del self.processes[index]
            process.stdin.close()  # type: ignore[union-attr]
            if ended_well:
                continue
            if self.fruitless < PATIENCE:
                self.start(index)
            elif not self.processes:
                raise TrainingFailed(
                    f"workers die before they have trained anything; {self.directory}/workers/{index}.log says why"
                )

    def _bury(self, ledger: Ledger, index: int, pid: int, status: int) -> None:
        # The host, too: where machines share a sweep, another's may have the same number and the same id.
        ours = (socket.gethostname(), pid, str(index))
        rows = [r for r in ledger.trials("running") if (r["host"], r["pid"], r["worker"]) == ours]
        self.fruitless = 0 if rows else self.fruitless + 1
        reason = f"its process ended with status {status}"
        halved = None
        for row in rows:
            if status < 0:
                reason = f"its process was killed by {signal.Signals(-status).name}"
            if status == -signal.SIGKILL:
                reason += ", as the system does when memory runs out"
                halved = halve(self.asked, row)
            give_up_or_retry(self.asked, ledger, row["id"], reason, TRAINING_FAILED, halved)
        log.warning("worker %d: %s", index, reason)


class HydraCrew:
    """Jobs of a launcher, each a worker: a launcher waits for all of its batch, and trials would wait with it."""

    def __init__(self, directory: Path, workers: int | str, config: Any, hydra_context: Any, task_function: Any):
        if workers == "auto":
            raise ValueError("workers=auto counts this machine's cores; with a launcher, say how many jobs: workers=4")
        from hydra.core.plugins import Plugins
        from omegaconf import open_dict

        self.directory, self.n = directory.resolve(), int(workers)
        with open_dict(config):
            config.hydra.sweep.dir = str(self.directory / "jobs")
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self.error: BaseException | None = None

    def run(self, ledger: Ledger, look: Callable[[], None]) -> bool:
        thread = threading.Thread(target=self._launch, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(1.0)
            look()
        if self.error is not None:
            raise self.error
        return False

    def _launch(self) -> None:
        from lmlab.cli import quote

        jobs = [[quote(f"++hydra.sweeper.join={self.directory}"), f"++hydra.sweeper.worker={i}"] for i in range(self.n)]
        try:
            for job in self.launcher.launch(jobs, initial_job_idx=0):
                _ = job.return_value
        except BaseException as error:
            self.error = error


def visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may name, one each. Without torch: importing it costs a second."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [one.strip() for one in named.split(",") if one.strip() not in ("", "-1")]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return []
    return named_gpus(listed.stdout) if not listed.returncode else []


def named_gpus(listed: str) -> list[str]:
    """Of what `nvidia-smi -L` says: each GPU's number or, where it is cut into instances (MIG), the name of each."""
    found: list[list[str]] = []
    for line in listed.splitlines():
        if line.startswith("GPU "):
            found.append([])
        elif (named := re.search(r"\(UUID: (MIG-[^)]+)\)", line)) is not None:
            found[-1].append(named[1])
    return [name for i, parts in enumerate(found) for name in parts or [str(i)]]


def grouped(gpus: Sequence[str], devices: str) -> list[str]:
    """What each worker sees of them: as many as a trial has processes. Where there are fewer, training says so."""
    each = len(gpus) if devices in ("auto", "-1") else int(devices) if devices.isdigit() else 1
    each = max(1, each)
    return [",".join(gpus[i : i + each]) for i in range(0, len(gpus), each)][: max(1, len(gpus) // each)]
