"""How long a user waits before anything happens: the command alone, its help, and the first step of a training run."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from .harness import Case, Measure, Row, Sample, Settings
from .process import clocked, lmlab_run, run

CACHES = Path("/proc/sys/vm/drop_caches")
TEXT = "".join(f"{n} plus {n % 7} is {n + n % 7}\n" for n in range(300))


def drop_caches() -> None:
    os.sync()
    CACHES.write_text("3")


def may_drop_caches() -> bool:
    return os.access(CACHES, os.W_OK)


def cases(settings: Settings) -> Iterator[Case]:
    """Each warm, and cold where the system lets us drop its cache of files: with nothing of it in memory."""
    with settings.temporary() as folder:
        words = ["train", f"cache_dir={folder}/cache", "floors=false", "test=false", "evaluation.limit_tokens=100"]
        words += ["trainer.max_steps=2", "validation.limit_tokens=100", "validation.train_tokens=100",
              "callbacks.samples=null"]  # fmt: skip
        if settings.quick:
            (Path(folder) / "text.txt").write_text(TEXT)
            words += ["corpus=files", f"corpus.train={folder}/text.txt", "tokenizer=byte", "corpus.split_by=share"]
            words += ["model.d_model=24"]
        lmlab_run("prepare", *(w for w in words if w.startswith(("cache_dir", "corpus", "tokenizer"))))
        for cold in (False, True) if may_drop_caches() and not settings.quick else (False,):
            yield from _cases(Path(folder), words, cold)


def _cases(folder: Path, words: list[str], cold: bool) -> Iterator[Case]:
    how = "cold" if cold else "warm"

    def python(statement: str) -> Sample:
        if cold:
            drop_caches()
        return Sample({"seconds": run((sys.executable, "-c", statement)).seconds})

    def command(*arguments: str) -> Sample:
        if cold:
            drop_caches()
        return Sample({"seconds": lmlab_run(*arguments).seconds})

    def first_step() -> Sample:
        if cold:
            drop_caches()
        clock = folder / "clock.json"
        run_dir = folder / f"run{len(list(folder.glob('run*')))}"
        finished = lmlab_run(*words, clocked(clock), f"run_dir={run_dir}")
        return Sample({"seconds": json.loads(clock.read_text())["steps"][0] - finished.began})

    def measures(at_most: float | None) -> tuple[Measure]:
        return (Measure("seconds", "s", at_most=None if cold else at_most),)

    torch, lightning = "import torch", "import lightning"
    trainer = "from transformers import Trainer, TrainingArguments"
    yield Case(f"lmlab, {how}", measures(0.3), "lmlab", command, torch, lambda: python(torch))
    yield Case(f"lmlab --help, {how}", measures(None), "lmlab --help", lambda: command("--help"), torch,
               lambda: python(torch))  # fmt: skip
    yield Case(f"first step, {how}", measures(5.0), "lmlab train, to the end of its first step", first_step, lightning,
               lambda: python(lightning))  # fmt: skip
    yield Case(f"first step beside transformers, {how}", measures(5.0), "lmlab train, to the end of its first step",
               first_step, trainer, lambda: python(trainer))  # fmt: skip


ROWS = (Row("start_up", "start-up of the command, on prepared text", cases),)
