"""What every test shares: shapes are checked, one thread, an empty cache of its own, no network."""

import os

# Two cores are shared with other workers; tiny models are slower on more threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import sys
from collections.abc import Iterator
from types import ModuleType

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

# A whole number is a float, as PEP 484 has it and YAML writes it: weight_decay: 0.
checker = sys.modules["numeric_tower"] = ModuleType("numeric_tower")
checker.check = beartype(conf=BeartypeConf(is_pep484_tower=True))
# Before anything of ours is imported: jaxtyping's shapes are checked by beartype in every call.
install_import_hook("lmlab", "numeric_tower.check")

import pytest
import torch
from tests import network
from tests.warm import Warm

torch.set_num_threads(1)
network.refuse()
# Nobody here cuts the power, which is all that waiting for the disk is for: some 20 ms of each checkpoint.
# That it is asked for test_checkpoints shows.
os.fsync = lambda descriptor: None


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One cache for the whole session: stores are keyed by content, so tests cannot meet in it by accident."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("LMLAB_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """In place of subprocess, where what is tested is not how a process begins."""
    started = Warm()
    yield started
    started.close()


TEXT = "the cat sat on the mat. the dog ate the cat's food, said it's good.\n" * 60 + "一二三四五\n" * 5
QUICK = [
    "trainer.max_steps=3",
    "floors=false",
    "logger=none",
    "callbacks.samples=null",
    "compile=false",
    "validation.train_tokens=500",
]
SMALL = {
    "lstm": "tokenizer=byte model=lstm model.d_model=16 model.n_layers=1 batching=lanes batching.batch_size=2 "
    "batching.seq_len=16 optimizer=adamw schedule=constant",
    "transformer": "tokenizer=bpe tokenizer.vocab_size=300 model=transformer model.d_model=16 model.n_layers=1 "
    "model.n_heads=2 model.max_context=16 batching=windows batching.batch_size=2 batching.seq_len=16 optimizer=adamw",
    "ngram": "tokenizer=bpe tokenizer.vocab_size=300 model=ngram model.order=3",
}


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("text") / "t.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def small(text_file, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Overrides of `lmlab train` for a tiny run of each family, but for its directory."""
    places = [f"corpus.train={text_file}", f"cache_dir={tmp_path_factory.getbasetemp() / 'cache'}"]
    return {name: ["corpus=files", *places, *QUICK, *words.split()] for name, words in SMALL.items()}


@pytest.fixture(scope="session")
def trained(small, tmp_path_factory: pytest.TempPathFactory):
    """{family: a finished tiny run's directory}; not to be changed, copy it first."""
    from lmlab.config import compose
    from lmlab.experiment import train

    root = tmp_path_factory.mktemp("trained")
    for name, overrides in small.items():
        train(compose([f"run_dir={root / name}", *overrides]))
    return {name: root / name for name in small}
