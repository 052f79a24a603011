"""Runs of seconds: a page of text, tiny models, nothing shown."""

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmlab.config import compose
from lmlab.training.module import LMModule

WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "sees",
    "hears",
    "old",
    "red",
    "house",
    "tree",
    "and",
    "or",
    "under",
    "then",
    "night",
]
QUIET = [
    "corpus=files",
    "corpus.split_by=share",
    "corpus.val_share=0.1",
    "corpus.test_share=0.1",
    "tokenizer=byte",
    "trainer=cpu",
    "logger=none",
    "floors=false",
    "precision=32",
    "callbacks.samples=null",
    "callbacks.checkpoints.every_minutes=null",
    "validation.train_tokens=100",
    "training.log_every=4",
    "trainer.max_steps=30",
    "trainer.val_check_interval=7",
]
LSTM = ["model=lstm", "model.d_model=12", "model.n_layers=2", "batching=lanes", "batching.batch_size=4"]
LSTM += ["batching.seq_len=16", "optimizer=adam", "optimizer.lr=0.01", "evaluation.lanes=2"]
TRANSFORMER = ["model=transformer", "model.d_model=16", "model.n_layers=1", "model.n_heads=2", "model.max_context=16"]
TRANSFORMER += ["model.dropout=0.2", "batching=windows", "batching.batch_size=6", "batching.seq_len=16"]


def page(n_words: int, seed: int = 0) -> str:
    random_words = random.Random(seed)
    return " ".join(random_words.choice(WORDS) for _ in range(n_words)) + "\n"


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 1,500 bytes: an epoch of the lanes below is some 18 steps."""
    path = tmp_path_factory.mktemp("text") / "page.txt"
    path.write_text(page(350), encoding="utf-8")
    return path


@pytest.fixture
def train(text: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """train("name", *overrides): one run in tmp_path / name, by the experiment's own entrance."""

    def run(name: str, *overrides: str) -> dict[str, Any]:
        from lmlab.experiment import train

        return train(compose([*QUIET, f"corpus.path={text}", *overrides, f"run_dir={tmp_path / name}"]))

    return run


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """slow(seconds): each backward pass takes as much longer."""
    backward = LMModule._backward

    def longer(seconds: float) -> None:
        monkeypatch.setattr(LMModule, "_backward", lambda self, *args: time.sleep(seconds) or backward(self, *args))

    return longer


@pytest.fixture
def command_line(text: Path) -> Callable[..., list[str]]:
    """command_line(*overrides): what follows `lmlab` on the command line."""
    return lambda *overrides: ["train", *QUIET, f"corpus.path={text}", *overrides]
