"""The sweep as an Optuna study on disk, for optuna-dashboard: made from the ledger, which alone is asked for anything.

One trial a point, with the means over its replicates. A point that pruning has stopped counts as running while it may
yet be promoted; one that goes on in a later session is one more trial.
"""

import fcntl
import logging
import sqlite3
import time
from pathlib import Path
from typing import Any

from lmlab.sweeps.asked import Asked
from lmlab.sweeps.ledger import Ledger
from lmlab.sweeps.strategy import history

log = logging.getLogger("lmlab")

# Seconds between copies: each takes some transactions.
EVERY = 5.0
# Seconds to wait for somebody who writes into it: the sweep's workers are not looked after meanwhile.
PATIENCE = 2.0


class Unhurried(sqlite3.Connection):
    """Leaves it to the system when the disk is written: Optuna commits hundreds of times, and a copy can be lost."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.execute("PRAGMA synchronous=OFF")


class Mirror:
    """Keeps `study.sqlite` after the ledger. One process at a time: a second one leaves it to the first."""

    def __init__(self, directory: Path, asked: Asked):
        self.path, self.asked = directory / "study.sqlite", asked
        self.looked = time.monotonic()
        # {point: (Optuna's id, whether it has ended, steps that were reported)}
        self.known: dict[int, tuple[int, bool, set[int]]] = {}
        self.study: Any = None
        self.said = False
        self.lock = (directory / "study.lock").open("a")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.ours = True
        except BlockingIOError:
            self.ours = False
        except OSError:
            # Some network file systems have no locks.
            self.ours = True

    def update(self, ledger: Ledger, last: bool = False) -> None:
        """last: what is pruned stays so. Whatever befalls the copy is said once, and the next one begins anew."""
        if not self.ours or (not last and time.monotonic() - self.looked < EVERY):
            return
        try:
            self._copy(ledger, last)
        except Exception as error:
            # Somebody else's, too: its board deletes studies, and locks them. The sweep needs none.
            (log.debug if self.said else log.warning)(
                "%s could not be written (%s: %s); the sweep goes on", self.path, type(error).__name__, error
            )
            self.said, self.study = True, None
            self.known.clear()
        self.looked = time.monotonic()

    def close(self) -> None:
        """Leave the copy to whoever works on the sweep next, in this process or another."""
        self.lock.close()

    def _copy(self, ledger: Ledger, last: bool) -> None:
        import optuna

        if self.study is None:
            self.study = self._open()
        for point, trial in enumerate(history(self.asked, ledger)):
            pruned = trial.state == optuna.trial.TrialState.PRUNED
            if pruned and not last:
                trial.state, trial.datetime_complete = optuna.trial.TrialState.RUNNING, None
            self._write(point, trial)

    def _open(self) -> Any:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            study = self._create()
        except Exception as error:
            if "database is locked" in str(error) or "database is locked" in str(error.__cause__):
                # Not damaged, and somebody is at it.
                raise
            # It holds nothing that the ledger has not.
            log.warning("%s cannot be read (%s); it is made again", self.path, type(error).__name__)
            self.path.unlink(missing_ok=True)
            study = self._create()
        for trial in study.get_trials(deepcopy=False):
            point = trial.user_attrs.get("point", trial.number)
            self.known[point] = (trial._trial_id, trial.state.is_finished(), set(trial.intermediate_values))
        return study

    def _create(self) -> Any:
        import warnings

        import optuna

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            storage = optuna.storages.RDBStorage(
                # Opened by us: in a URL `?`, `%` and braces of a path mean something.
                "sqlite:///study.sqlite",
                engine_kwargs={"creator": self._connect},
            )
            study = optuna.create_study(
                study_name=self.asked.name,
                storage=storage,
                directions=[one["direction"] for one in self.asked.objective],
                load_if_exists=True,
            )
            study.set_metric_names([one["metric"] for one in self.asked.objective])
        return study

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, factory=Unhurried, timeout=PATIENCE, check_same_thread=False)

    def _write(self, point: int, trial: Any) -> None:
        """Bring Optuna's trial of this point up to what the ledger says."""
        storage, over = self.study._storage, trial.state.is_finished()
        number, was_over, steps = self.known.get(point, (None, False, set()))
        if number is not None and was_over:
            unchanged = storage.get_trial(number).state == trial.state or not over
            if unchanged:
                return
            number = None
        if number is None:
            trial.user_attrs["point"] = point
            number = storage.create_new_trial(self.study._study_id, template_trial=trial)
            self.known[point] = (number, over, set(trial.intermediate_values))
            return
        for step in sorted(set(trial.intermediate_values) - steps):
            storage.set_trial_intermediate_value(number, step, trial.intermediate_values[step])
        if over:
            storage.set_trial_user_attr(number, "runs", trial.user_attrs["runs"])
            storage.set_trial_state_values(number, trial.state, trial.values)
        self.known[point] = (number, over, set(trial.intermediate_values))
