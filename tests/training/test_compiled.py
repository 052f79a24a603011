"""torch.compile changes the time of a step and not its numbers, in each family."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from lmlab.decisions import find_compiler
from lmlab.models.cross_entropy import SMALL

ROWS, LENGTH, WORDS = 8, 64, 5000
# No dropout: compiled, its masks are drawn anew. Plain gradient descent: Adam would enlarge a difference of rounding.
FAMILIES = {
    "lstm": "model=lstm model.d_model=16 model.n_layers=2 model.dropout_in=0.0 model.dropout_between=0.0 "
    "model.dropout_out=0.0 batching=lanes training.ar=2.0 training.tar=1.0",
    "transformer": f"model=transformer model.d_model=16 model.n_layers=2 model.n_heads=2 model.max_context={LENGTH} "
    "model.embed_ngram=2 batching=windows",
}
QUIET = (
    "corpus=files corpus.split_by=share tokenizer=word trainer=cpu logger=csv floors=false test=false precision='32' "
    "callbacks.samples=null seed=5 training.log_every=1 validation.limit_tokens=64 validation.train_tokens=64 "
    f"trainer.max_steps=5 batching.batch_size={ROWS} batching.seq_len={LENGTH} optimizer=sgd optimizer.lr=2.0 "
    "schedule=constant"
)
# A process without pytest's: what checks shapes in each call is no code for a compiler.
TRAIN = """
import json, sys
import lmlab.speed
from lmlab.config import compose
from lmlab.experiment import train
# CUDA graphs need a GPU. All else of compile=graphs is tried without: torch then compiles the same and records nothing.
lmlab.speed.check_graphs = lambda *asked: None
for overrides in json.loads(sys.argv[1]):
    train(compose(overrides))
"""


@pytest.mark.slow
@pytest.mark.skipif(not find_compiler("cpu"), reason="there is no C++ compiler here, which torch.compile calls")
@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_steps_have_the_losses_of_plain_ones(family: str, tmp_path: Path):
    assert ROWS * LENGTH * WORDS > SMALL, "the loss of a large vocabulary, which has a backward pass of its own"
    (tmp_path / "words.txt").write_text(_text(), encoding="utf-8")
    shared = [*QUIET.split(), *FAMILIES[family].split(), f"corpus.train={tmp_path / 'words.txt'}"]
    runs = {name: tmp_path / name for name in ("true", "graphs", "false")}
    asked = [[*shared, f"compile={name}", f"run_dir={run}"] for name, run in runs.items()]
    kept = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiled"), "LMLAB_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", TRAIN, json.dumps(asked)], env=os.environ | kept,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    compiled, graphs, plain = (_losses(run) for run in runs.values())
    assert list((tmp_path / "compiled").rglob("*.so")), "something was compiled"
    assert len(plain) == 5
    assert len(set(plain)) == 5, "it trains"
    assert compiled == pytest.approx(plain, abs=1e-5)
    assert graphs == pytest.approx(plain, abs=1e-5)


def _text() -> str:
    """Each word three times, the last of them in val and test."""
    shuffled = random.Random(0)
    words = [f"w{n}" for n in range(WORDS)]
    return " ".join(word for _ in range(3) for word in shuffled.sample(words, WORDS)) + "\n"


def _losses(run: Path) -> list[float]:
    rows = (run / "curves.csv").read_text(encoding="utf-8").splitlines()
    at = rows[0].split(",").index("train/loss")
    return [float(row.split(",")[at]) for row in rows[1:] if row.split(",")[at]]
