"""A worker: a process that stays warm and draws the next trial as soon as it is free."""

import gc
import logging
import os
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmlab.config import suggest
from lmlab.errors import DONE, INTERRUPTED, TRAINING_FAILED, full_disk, ran_out_of_memory
from lmlab.run_directory import RunDirectory
from lmlab.sweeps import pruning, strategy
from lmlab.sweeps.asked import Asked, load
from lmlab.sweeps.composer import Composer
from lmlab.sweeps.ledger import Ledger, me

log = logging.getLogger("lmlab")

# Seconds between signs of life, and between looks for work while others are still at theirs.
HEARTBEAT, PATIENCE = 10.0, 0.3
# How often the trial of a worker that died is taken over, beyond `retries`, before it counts as the cause.
TAKEOVERS = 1


class Worker:
    """Draws trials of one sweep until there are none, or until it is told to stop.

    alone: whether its process is there for nothing else.
    """

    def __init__(self, directory: Path, name: str, alone: bool = False):
        self.directory, self.name, self.alone = directory, name, alone
        self.asked: Asked = load(directory)
        self.ledger = Ledger(directory / "ledger.sqlite")
        self.composer = Composer(self.asked.config_dir)
        self.warm = self.stopping = self.preparing = False

    def run(self) -> int:
        """Returns the exit status: whether somebody interrupted it."""
        host, pid, born = me()
        now = time.time()
        with self.ledger.transaction():
            self.ledger.connection.execute(
                "INSERT OR REPLACE INTO workers (host, pid, born, started, heartbeat) VALUES (?, ?, ?, ?, ?)",
                (host, pid, born, now, now),
            )
        done = threading.Event()
        threading.Thread(target=self._beat, args=(done,), daemon=True).start()
        try:
            while not self.stopping:
                row = self.draw()
                if row is not None:
                    self._one(row)
                    if self.alone and not self.warm:
                        # All that was imported stays: else every trial's collection looks through it for 0.2 s.
                        gc.freeze()
                    self.warm = True
                elif not self.ledger.counts()["running"]:
                    break
                else:
                    # Others are at work: one of them may die, or make a point worth promoting.
                    time.sleep(PATIENCE)
        finally:
            done.set()
            self.ledger.connection.execute(
                "UPDATE workers SET ended = ? WHERE host = ? AND pid = ? AND born = ?", (time.time(), host, pid, born)
            )
            self.ledger.close()
        return INTERRUPTED if self.stopping else DONE

    def _beat(self, done: threading.Event) -> None:
        with Ledger(self.ledger.path) as ledger:
            while not done.wait(HEARTBEAT):
                try:
                    ledger.beat()
                except sqlite3.Error as error:
                    # A file server that stumbles: the next sign may reach it.
                    log.debug("no sign of life: %s", error)

    def draw(self) -> Any | None:
        """The next trial, now ours: one that waits, else a new point's, else a pruned one that has earned more."""
        with self.ledger.transaction():
            take_over(self.asked, self.ledger)
            row = self.ledger.next_waiting()
            if row is None:
                rung = pruning.first_rung(self.asked.pruning, self.ledger.n_points())
                if strategy.propose(self.asked, self.ledger, rung) is not None or pruning.promote(
                    self.asked, self.ledger
                ):
                    row = self.ledger.next_waiting()
            return None if row is None else self.ledger.start(row["id"], self.name)

    def stop(self, number: int, frame: Any) -> None:
        """Whoever sends a signal: training saves at the end of its step; before that there is nothing to wait for."""
        self.stopping = True
        if self.preparing:
            raise KeyboardInterrupt

    def _one(self, row: Any) -> None:
        began = time.time()
        try:
            try:
                self.preparing = True
                self.trial(row)
            finally:
                self.preparing = False
        except KeyboardInterrupt:
            self.interrupted(row)
        except Exception as error:
            # An import that is cut short may break another way.
            if self.stopping:
                self.interrupted(row)
            else:
                self.failed(row, error)
        finally:
            spent = time.time() - began
            with self.ledger.transaction():
                self.ledger.connection.execute(
                    "UPDATE trials SET seconds = seconds + ? WHERE id = ?", (spent, row["id"])
                )
                host, pid, born = me()
                self.ledger.connection.execute(
                    "UPDATE workers SET trials = trials + 1 WHERE host = ? AND pid = ? AND born = ?", (host, pid, born)
                )

    def trial(self, row: Any) -> None:
        """Train one, and write down how it ended. Raises what training raises."""
        from lmlab.sweeps import trial

        asked, ledger = self.asked, self.ledger
        varied = asked.overrides_in(row)
        overrides = [*asked.overrides, *varied]
        if row["micro_batch_size"]:
            overrides.append(f"training.micro_batch_size={row['micro_batch_size']}")
        config = trial.config_of(overrides, row["seed"], self.composer)
        name = trial.name_of(config, varied)
        path = self.directory / "trials" / name
        if not ledger.place(row["id"], name, f"trials/{name}"):
            return
        # A run's record says how to have it again.
        sys.argv = ["lmlab", "train", *overrides, f"seed={row['seed']}"]
        record = {"sweep": asked.name, "point": row["point"], "replicate": row["replicate"], "seed": row["seed"]}
        record |= {"overrides": varied, "fixed": asked.overrides}
        directory = RunDirectory(path)
        results = self.stopped_before(row, directory) or trial.run(config, path, record, self.watchers(row))
        because = results["training"]["stopped_because"]
        if because == "interrupted":
            self.interrupted(row)
        elif because == "pruned":
            ledger.set(row["id"], status="pruned", reason=self.why(row), finished=time.time())
        else:
            told = trial.values(results, directory)
            for one in asked.objective:
                if (metric := one["metric"]) not in told:
                    raise ValueError(f"objective: metric={metric}: this run has none{suggest(metric, told)}")
            if not ledger.ask("SELECT 1 FROM reports WHERE trial = ? LIMIT 1", row["id"]):
                # It was finished already.
                self.tell(row["id"], *self.recorded(directory, results))
            ledger.finish(row["id"], told, results["training"]["steps"])

    def stopped_before(self, row: Any, directory: RunDirectory) -> dict[str, Any] | None:
        """What is in the directory, where a trial has stopped at this one's rung or past it already.

        That was another of the same point drawn twice, or this one by a ledger that was lost. A run that goes on
        forgets the validation at which it was stopped: it would take one step more, and be ranked by that.
        """
        try:
            results = directory.results()
        except (OSError, ValueError):
            # Damaged: training it says how.
            return None
        if results is None or results["training"]["stopped_because"] != "pruned":
            return None
        total, measured = self.recorded(directory, results)
        goal = pruning.goal(self.asked.pruning, row["point"], row["rung"], total)
        if not measured or max(measured) < goal:
            return None
        self.tell(row["id"], total, measured)
        return results

    def recorded(self, directory: RunDirectory, results: Mapping[str, Any]) -> tuple[int, dict[int, float]]:
        """(steps that a run was to have, what pruning compares at each validation); none of a damaged run."""
        metric = strategy.reported(self.asked)
        try:
            history = results["training"]["history"] if metric else []
            measured = {point["step"]: point[metric] for point in history}
            return directory.config()["decided"]["total_steps"] if measured else 0, measured
        except (OSError, ValueError, KeyError, TypeError):
            return 0, {}

    def tell(self, number: int, total: int, measured: Mapping[int, float]) -> None:
        """Report for a trial whose callback did not, as it trained nothing."""
        if measured:
            self.ledger.set(number, total_steps=total)
        for step, value in measured.items():
            self.ledger.report(number, step, value)

    def why(self, row: Any) -> str:
        now = self.ledger.trial(row["id"])
        rule = self.asked.pruning["rule"]
        where = f"stopped by {rule} after step {now['step']} of {now['total_steps']}"
        return where + (f", rung {now['rung']}" if now["rung"] is not None else "")

    def watchers(self, row: Any) -> list[Any]:
        metric, asked, ledger, number = strategy.reported(self.asked), self.asked, self.ledger, row["id"]

        def prepared() -> None:
            # From here on signals are for training's own handler.
            self.preparing = False
            if self.stopping:
                # Somebody's code has caught what `stop` raised.
                raise KeyboardInterrupt

        def starter() -> Any:
            from lmlab.sweeps.reporter import Starter

            return Starter(prepared)

        if metric is None:
            return [starter]

        def begin(total_steps: int) -> int:
            ledger.set(number, total_steps=total_steps)
            return pruning.goal(asked.pruning, row["point"], row["rung"], total_steps)

        def report(step: int, value: float) -> bool:
            ledger.report(number, step, value)
            return pruning.behind(asked, ledger, number, step)

        return [starter, pruning.watcher(metric, begin, report)]

    def interrupted(self, row: Any) -> None:
        self.stopping = True
        self.ledger.set(row["id"], status="waiting", reason="interrupted")

    def failed(self, row: Any, error: Exception) -> None:
        """Write down why, and have it tried again where that was asked for."""
        from lmlab.cli import classify

        code, reason = classify(error, "train")
        # The traceback is for this worker's own file.
        log.debug("%s", reason, exc_info=error)
        if full_disk(error) is not None:
            # No attempt of the trial's: with space again, the same command goes on with it.
            self.ledger.set(row["id"], status="failed", reason=reason, code=code, finished=time.time())
            return
        halved = None
        if ran_out_of_memory(error):
            code, reason = TRAINING_FAILED, reason if "out of memory" in reason else f"out of memory: {reason}"
            halved = halve(self.asked, self.ledger.trial(row["id"]))
        give_up_or_retry(self.asked, self.ledger, row["id"], " ".join(reason.split()), code, halved)


def give_up_or_retry(
    asked: Asked, ledger: Ledger, number: int, reason: str, code: int, micro_batch_size: int | None = None
) -> None:
    """A trial that failed waits again where `retries` or out_of_memory=halve allow it, else it has failed."""
    with ledger.transaction():
        row = ledger.trial(number)
        told = {"reason": reason, "code": code, "finished": time.time()}
        if micro_batch_size is not None:
            ledger.set(number, status="waiting", micro_batch_size=micro_batch_size, **told)
            return
        attempts = row["attempts"] + 1
        ledger.set(number, status="waiting" if attempts <= asked.retries else "failed", attempts=attempts, **told)


def halve(asked: Asked, row: Any) -> int | None:
    """Half of what went through the model at once, None where that is not asked for or cannot be halved."""
    if asked.out_of_memory != "halve":
        return None
    from lmlab.sweeps.trial import config_of

    size = row["micro_batch_size"]
    if size is None:
        words = [*asked.overrides, *asked.overrides_in(row)]
        config = config_of(words, row["seed"], Composer(asked.config_dir))
        size = config.training.micro_batch_size or config.batching.batch_size
    return -(-size // 2) if size > 1 else None


def take_over(asked: Asked, ledger: Ledger) -> None:
    """Trials whose worker died wait again; one that keeps killing its workers has failed."""
    for row in ledger.orphans():
        takeovers = row["takeovers"] + 1
        reason = f"worker {row['worker']} died (process {row['pid']} on {row['host']})"
        if takeovers > TAKEOVERS + asked.retries:
            reason += f", {takeovers} times"
            ledger.set(row["id"], status="failed", reason=reason, code=TRAINING_FAILED, takeovers=takeovers)
        else:
            ledger.set(row["id"], status="waiting", reason=reason, takeovers=takeovers)


def main(directory: str, name: str) -> int:
    """A process of its own, started by `crew` or by a launcher's job."""
    from lmlab.cli.command import find_own_classes, show_log

    # Ctrl-C is for whoever started the workers, who tells them.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    show_log()
    worker = Worker(Path(directory), name, alone=True)
    find_own_classes()

    # On one core joblib's launcher runs its jobs in a thread of the sweep's own process, which has its own way to end.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, worker.stop)
    return worker.run()


def leave_with_parent() -> None:
    """Who started us holds the other end of our input: when it is gone, whatever we train is saved, and we end."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=leave_with_parent, daemon=True).start()
    status = main(*sys.argv[1:])
    from lmlab.cli.ending import leave

    leave(status)
