"""Commands of half a second, and what the same command leaves when nothing goes wrong."""

from pathlib import Path

import pytest
from tests.faults.workshop import Workshop
from tests.warm import Warm

TEXT = "the cat sat on the mat. the dog ate the cat's food, said it's good.\n" * 30

PLACES = ["corpus=files", "corpus.train=t.txt", "corpus.split_by=share", "corpus.val_share=0.1"]
PLACES += ["corpus.test_share=0.1", "tokenizer=byte"]
# Every kind of file that a run writes, and checkpoints besides those of validations.
TRAIN = [
    *PLACES,
    "trainer=cpu",
    "logger=tensorboard",
    "floors=true",
    "precision=32",
    "compile=false",
    "validation.train_tokens=100",
]
TRAIN += ["callbacks.samples=null", "callbacks.checkpoints.every_minutes=null", "callbacks.checkpoints.every_n_steps=3"]
TRAIN += [
    "training.log_every=2",
    "trainer.max_steps=8",
    "trainer.val_check_interval=4",
    "model=lstm",
    "model.d_model=8",
]
TRAIN += ["model.n_layers=1", "batching=lanes", "batching.batch_size=4", "batching.seq_len=16", "optimizer=adam"]
TRAIN += ["optimizer.lr=0.01", "evaluation.lanes=2"]
SWEEP = ["optimizer.lr=1e-3,1e-2,3e-2", "model.d_model=4,8", "keep=all", "test=false"]


@pytest.fixture(scope="module")
def workshop(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    root = tmp_path_factory.mktemp("workshop")
    (root / "t.txt").write_text(TEXT)
    return Workshop(root, warm)


def sweep(name: str) -> list[str]:
    own = [word for word in TRAIN if not word.startswith(("optimizer.lr=", "model.d_model=", "logger="))]
    return ["sweep", *own, "logger=none", *SWEEP, "workers=1", f"sweep_dir={name}"]


@pytest.fixture(scope="module")
def whole(workshop: Workshop) -> Path:
    """A run that nothing happened to."""
    ended = workshop.run("train", *TRAIN, "run_dir=whole")
    assert ended.status == 0, ended.err
    return workshop.root / "whole"


@pytest.fixture(scope="module")
def whole_sweep(workshop: Workshop) -> Path:
    ended = workshop.run(*sweep("whole_sweep"))
    assert ended.status == 0, ended.err
    return workshop.root / "whole_sweep"
