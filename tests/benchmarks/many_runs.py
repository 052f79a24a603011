"""Reading a thousand runs: their table, their curves, and the report on them; runs are made up, as they lie on disk."""

import copy
import json
import math
import random
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lmlab
from lmlab import report, runs
from lmlab.config import asked, plain
from lmlab.run_directory import RunDirectory

from .harness import Case, Measure, Row, Sample, Settings

STEPS, POINTS, VALIDATIONS = 400, 100, 10
TRAIN = ("train/loss", "train/ppl", "train/bpb", "optim/lr", "optim/grad_norm", "perf/tokens_per_s", "perf/mfu")
VAL = ("val/loss", "val/ppl", "val/bpb", "train/eval_loss", "val/gap")


def make(root: Path, n: int, replicates: int = 3, sample: str = "The people of the United States") -> None:
    """`n` runs below root, in threes that differ in the seed: random lr, dropout and width; every 25th has failed."""
    draw, config = random.Random(0), lmlab.compose(["corpus=files", "corpus.train=t.txt", "trainer.max_steps=400"])
    tree, base = asked(config), plain(config)
    for i in range(n):
        if i % replicates == 0:
            changed = {"lr": 10 ** draw.uniform(-3.5, -1), "dropout": draw.choice([0.0, 0.1, 0.3])}
            changed["d_model"] = draw.choice([64, 128, 256])
        mine = copy.deepcopy(tree)
        mine["optimizer"]["lr"], mine["seed"] = changed["lr"], i % replicates
        mine["model"] |= {k: changed[k] for k in ("dropout", "d_model")}
        value = 1.6 + 0.3 * (math.log10(changed["lr"]) + 2) ** 2 + 10 / changed["d_model"] + draw.gauss(0, 0.01)
        directory = RunDirectory(root / f"run{i:04d}_lr={changed['lr']:.2g}")
        directory.path.mkdir(parents=True)
        directory.write_yaml("asked.yaml", mine)
        directory.write_yaml("config.yaml", base | mine | {"format": 1, "corpus": base["corpus"]})
        write_curve(directory, value, failed=i % 25 == 24)
        if i % 25 == 24:
            log = "2026-01-01 00:00:00  started\n2026-01-01 00:00:01  TrainingFailed: the loss is no longer finite\n"
            (directory.path / "train.log").write_text(log)
        else:
            directory.write_json("results.json", results(value, changed["d_model"], sample))


def write_curve(directory: RunDirectory, value: float, failed: bool) -> None:
    lines = [",".join(("step", "tokens", "seconds", *TRAIN, *VAL))]
    for k in range(1, (POINTS // 3 if failed else POINTS) + 1):
        step, now = STEPS * k // POINTS, value + 2 * math.exp(-5 * k / POINTS)
        start = f"{step},{step * 2048},{step * 0.1:.3f}"
        lines.append(f"{start},{','.join([f'{now:.9g}'] * len(TRAIN))},{',' * (len(VAL) - 1)}")
        if k % (POINTS // VALIDATIONS) == 0:
            lines.append(f"{start},{',' * len(TRAIN)}{','.join([f'{now:.9g}'] * len(VAL))}")
    directory.write_text("curves.csv", "\n".join(lines) + "\n")


def results(value: float, d_model: int, sample: str) -> dict[str, Any]:
    sums = {"bpb": value, "ppl": 2 ** (3 * value), "nll": 2 * value}
    history = [{"step": STEPS, "tokens": STEPS * 2048, "val/loss": value, "val/bpb": value, "val/ppl": 2**value}]
    training = {"steps": STEPS, "tokens": STEPS * 2048, "seconds": d_model / 3, "tokens_per_s": 1e6 / d_model}
    training |= {"stopped_because": "budget", "history": history, "best_step": STEPS}
    model = {"parameters": 12 * 3 * d_model**2}
    return {"format": 1, "model": model, "training": training, "splits": {"val": sums}, "samples": [sample]}


def cases(settings: Settings) -> Iterator[Case]:
    n = 30 if settings.quick else 1000
    with settings.temporary() as folder:
        root = Path(folder) / "runs"
        make(root, n)
        runs.table(root)  # pandas is imported

        def timed(read: Any) -> Any:
            def sample() -> Sample:
                began = time.perf_counter()
                found = read(root)
                return Sample({"seconds": time.perf_counter() - began}, {"rows": len(found)})

            return sample

        told = (Measure("seconds", "s", at_most=1.0),)
        parse = "json.loads of each results.json, csv of each curve: what nobody can do without"
        yield Case(f"table of {n} runs", told, "lmlab.runs.table", timed(runs.table), parse, timed(bare))
        yield Case(f"curves of {n} runs", told, "lmlab.runs.curves", timed(runs.curves), parse, timed(bare))

        def page() -> Sample:
            began = time.perf_counter()
            path = report.write(root)
            return Sample({"seconds": time.perf_counter() - began, "size": path.stat().st_size / 1e6})

        told = (Measure("seconds", "s"), Measure("size", "MB", at_most=3.0))
        yield Case(f"report on {n} runs", told, "lmlab.report.write", page)
        shutil.rmtree(root)


def bare(root: Path) -> list[Mapping[str, Any]]:
    """Every file of the runs, read and parsed by the standard library, and nothing made of it."""
    import csv

    found = []
    for path in sorted(root.iterdir()):
        if (path / "results.json").exists():
            json.loads((path / "results.json").read_text())
        with (path / "curves.csv").open() as file:
            found.append({"points": len(list(csv.reader(file)))})
    return found


ROWS = (Row("many_runs", "reading a thousand runs", cases),)
