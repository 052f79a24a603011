"""From text to a given validation loss on tiny Shakespeare: whole processes, beside nanoGPT's own recipes."""

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch

from .harness import Case, Measure, Row, Sample, Settings
from .process import clocked, isolated, lmlab_run
from .reference import GPT, GPTLoop
from .starting import TEXT

# nanoGPT's README and config/train_shakespeare_char.py: sizes of the model and of a batch, steps, dropout.
CPU = {"n_layers": 4, "n_heads": 4, "d_model": 128, "context": 64, "batch_size": 12, "steps": 2000, "dropout": 0.0}
GPU = {"n_layers": 6, "n_heads": 6, "d_model": 384, "context": 256, "batch_size": 64, "steps": 5000, "dropout": 0.2}
QUICK = {"n_layers": 1, "n_heads": 2, "d_model": 16, "context": 16, "batch_size": 2, "steps": 20, "dropout": 0.0}
MEASURED = {"shakespeare_seconds": 200, "shakespeare_minutes": 3}


def nanogpt(text: str, shape: dict[str, Any], measured: int, device: str, fast: bool) -> dict[str, Any]:
    """nanoGPT's run, in fp32 unless `fast`: its characters, its random blocks, its model and step.

    The first `measured` steps alone, without its validations; after all of them, the loss of val cut into blocks.
    """
    text = Path(text).read_text(encoding="utf-8")
    ids = {c: i for i, c in enumerate(sorted(set(text)))}
    data = torch.tensor([ids[c] for c in text])
    train, val = data[: int(0.9 * len(data))], data[int(0.9 * len(data)) :]
    torch.manual_seed(1337)
    context, steps = shape["context"], shape["steps"]
    model = GPT(len(ids), shape["d_model"], shape["n_layers"], shape["n_heads"], context, shape["dropout"])
    model.initialise()
    loop = GPTLoop(
        model.to(device), lr=1e-3, min_lr=1e-4, warmup=100, steps=steps, betas=(0.9, 0.99), weight_decay=0.1, clip=1.0,
        fast=fast,
    )  # fmt: skip
    seconds = []
    began = time.perf_counter()
    for step in range(min(measured, steps)):
        at = time.perf_counter()
        starts = torch.randint(len(train) - context, (shape["batch_size"],)).tolist()
        inputs = torch.stack([train[i : i + context] for i in starts])
        targets = torch.stack([train[i + 1 : i + 1 + context] for i in starts])
        loss = loop.step(step, inputs.to(device), targets.to(device), True)
        seconds.append(time.perf_counter() - at)
    told = {"loop": time.perf_counter() - began, "seconds": seconds, "last_loss": loss, "val": None}
    if measured >= steps:
        told["val"] = whole_validation(model, val, context, device)
    return told


@torch.inference_mode()
def whole_validation(model: GPT, val: torch.Tensor, context: int, device: str) -> float:
    """Mean nats, every character but the first once, each block from nothing."""
    model.eval()
    n = (len(val) - 1) // context * context
    inputs, targets = val[:n].view(-1, context), val[1 : n + 1].view(-1, context)
    parts = zip(inputs.split(64), targets.split(64), strict=True)
    sums = [model(a.to(device), b.to(device)).item() * a.numel() for a, b in parts]
    return sum(sums) / n


def cases(
    name: str, goal: float, shape: dict[str, Any], targets: dict[str, float | None], at_most: float | None
) -> Any:
    def make(settings: Settings) -> Iterator[Case]:
        with settings.temporary() as folder:
            yield _case(settings, name, goal, shape, targets, at_most, Path(folder))

    return make


def _case(settings: Settings, name: str, goal: float, shape: dict[str, Any], targets: dict[str, float | None],
          at_most: float | None, folder: Path) -> Case:  # fmt: skip
    if settings.quick:
        text, goal, shape = folder / "input.txt", 10.0, QUICK
        text.write_text(TEXT)
        words = ["experiment=nanogpt_char_cpu", "corpus=files", f"corpus.train={text}", "corpus.split_by=share",
                 "trainer.max_steps=20", "model.d_model=16", "model.n_layers=1", "model.max_context=16",
                 "floors=false"]  # fmt: skip
    else:
        from lmlab.config import conf_dir

        if not (conf_dir() / "experiment" / f"{name}.yaml").exists():
            raise ValueError(f"there is no recipe experiment={name}")
        text = settings.shakespeare / "input.txt" if settings.shakespeare.is_dir() else settings.shakespeare
        words = [f"experiment={name}", f"corpus.path={text}"]
    fast = settings.device != "cpu"
    # Compiled where the peer is; each pays for it.
    placed = ["trainer=gpu", "compile=true"] if fast else ["trainer=cpu"]
    words += placed
    done = dict.fromkeys(("ours", "peer"), settings.already)

    def ours() -> Sample:
        """From nothing: no prepared text either."""
        seed = done["ours"]
        done["ours"] += 1
        run, clock = folder / f"run{seed}", folder / f"clock{seed}.json"
        places = [f"run_dir={run}", f"cache_dir={run}_cache", clocked(clock), f"seed={seed}"]
        finished = lmlab_run("train", *words, *places)
        results, told = json.loads((run / "results.json").read_text()), json.loads(clock.read_text())
        reached = next((v["at"] for v in told["validations"] if v["loss"] <= goal), math.inf)
        loss = results["splits"]["val"]["nll"]
        # A run that ended short of the goal took no time to it: it would have needed longer than any other.
        never = 0.0 if loss <= goal else math.inf
        values = {
            "whole process": finished.seconds + never,
            "to the validation that reached it": reached - finished.began,
            "training alone": results["training"]["seconds"] + never,
            "validation loss": loss,
        }
        return Sample(values, {"steps": results["training"]["steps"], "tokens": results["training"]["tokens"],
                               "protocol": results["protocol"]})  # fmt: skip

    def peer() -> Sample:
        """The first time all its steps, where they take a minute or so; else a stretch, which tells the rest."""
        whole = done["peer"] == 0 and name == "shakespeare_seconds"
        done["peer"] += 1
        measured = shape["steps"] if whole else MEASURED[name]
        told = isolated(nanogpt, text=str(text), shape=shape, measured=measured, device=settings.device, fast=fast)
        step = median(told["seconds"][1:])
        # The first step as it was: a GPU's compiles.
        training = told["loop"] if whole else told["seconds"][0] + (shape["steps"] - 1) * step
        start = told["seconds_in_all"] - told["loop"]
        values = {"whole process": start + training, "to the validation that reached it": start + training,
                  "training alone": training}  # fmt: skip
        if told["val"] is not None:
            values["validation loss"] = told["val"]
        facts = {"ms a step": 1e3 * step, "measured steps": measured, "start": start, "val": told["val"]}
        return Sample(values, facts)

    measures = (
        Measure("whole process", "s", ratio=targets["whole"], at_most=at_most),
        Measure("to the validation that reached it", "s"),
        Measure("training alone", "s", ratio=targets["alone"]),
        Measure("validation loss", "nats", at_most=goal),
    )
    how = "compiled, bf16" if fast else "fp32"
    peer_is = f"nanoGPT's {shape['steps']} steps, {how}, from the median of measured ones"
    ours_is = " ".join(["lmlab train", f"experiment={name}", *(placed if fast else [])])
    return Case(f"to {goal} nats", measures, ours_is, ours, peer_is, peer)


ROWS = (
    Row("shakespeare_seconds", "tiny Shakespeare from a cold start, text unprepared",
        cases("shakespeare_seconds", 1.8857, CPU, {"whole": 8.0, "alone": 20.0}, None), needs=("shakespeare",)),
    Row("shakespeare_minutes", "tiny Shakespeare from a cold start, text unprepared",
        cases("shakespeare_minutes", 1.4697, GPU, {"whole": None, "alone": None}, 600.0), needs=("shakespeare",),
        repetitions=3),
)  # fmt: skip
