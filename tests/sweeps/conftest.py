"""Sweeps of runs of a few steps: in this process, where a test does not ask for workers of their own."""

import gc
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from lmlab.errors import INTERRUPTED
from lmlab.sweeps.crew import LocalCrew
from lmlab.sweeps.ledger import Ledger

WORDS = ["the", "a", "cat", "dog", "sees", "hears", "old", "red", "house", "tree", "and", "under", "night"]
TINY = ["corpus=files", "corpus.split_by=share", "corpus.val_share=0.2", "corpus.test_share=0.1", "corpus.train=t.txt"]
TINY += ["tokenizer=byte", "trainer=cpu", "logger=none", "callbacks.samples=null", "validation.train_tokens=20"]
TINY += ["model=lstm", "model.d_model=8", "model.n_layers=1", "batching=lanes", "batching.batch_size=4"]
TINY += ["batching.seq_len=16", "optimizer=adam", "trainer.max_steps=9", "trainer.val_check_interval=3"]
TINY += ["precision=32", "threads=1", "compile=false", "callbacks.checkpoints.every_minutes=null"]

# In processes of their own: `lmlab`, and the same with its one worker in its own process.
COMMAND = "import sys; from lmlab.cli import main; sys.exit(main(sys.argv[1:]))"
ALONE = "from lmlab.sweeps.crew import LocalCrew; from tests.sweeps.conftest import alone; LocalCrew.run = alone; "
ALONE += COMMAND


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    chosen = random.Random(0)
    (tmp_path / "t.txt").write_text(" ".join(chosen.choice(WORDS) for _ in range(500)) + "\n")
    return tmp_path


def alone(self: LocalCrew, ledger: Ledger, look: Callable[[], None]) -> bool:
    """In place of a crew's `run`: its one worker is this process."""
    from lmlab.sweeps.worker import Worker

    # What this process is full of, the collection after every trial need not look through.
    gc.freeze()
    try:
        interrupted = Worker(self.directory, "0").run() == INTERRUPTED
    finally:
        gc.unfreeze()
    look()
    return interrupted


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> list[DictConfig]:
    """The configs of trials that come to their end without training: the space and the ledger need no model."""
    from lmlab.sweeps import ending, sweeper, trial

    configs: list[DictConfig] = []
    sums = {"bpb": 2.0, "ppl": 4.0, "nll": 1.4}
    results = {"training": {"stopped_because": "budget", "steps": 9, "seconds": 0.1}, "model": {"parameters": 100}}
    results |= {"splits": {"val": sums}, "evaluation_seconds": 0.1}
    monkeypatch.setattr(trial, "run", lambda config, *_: configs.append(config) or results)
    monkeypatch.setattr(sweeper, "leave", lambda directory: [])
    monkeypatch.setattr(ending, "complete", lambda *_: None)
    return configs


@pytest.fixture
def sweep(here: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """sweep(*words): the exit status of `lmlab sweep` on tiny runs, its one worker being this process."""
    from lmlab.cli import main
    from lmlab.sweeps.study import Mirror

    monkeypatch.setattr(LocalCrew, "run", alone)
    # Optuna's copy takes longer than such trials: test_study has it, and the sweeps that are processes of their own.
    monkeypatch.setattr(Mirror, "update", lambda self, ledger, last=False: None)
    # Told how many workers, nobody composes the space's ends to estimate how many fit into memory.
    return lambda *words: main(["sweep", *TINY, "workers=1", "sweep_dir=s", *words])
