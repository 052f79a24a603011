"""One NVIDIA GPU: the same questions, asked where a step takes milliseconds and nothing may wait for the host."""

import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from . import training
from .generating import gpt2_tokenizer, small_tokenizer
from .harness import Case, Measure, Row, Sample, Settings
from .process import LMLAB, ROOT, environment, isolated
from .reference import GPT, GPTLoop
from .starting import TEXT
from .throughput import ALONE, awd_words
from .time_to_loss import GPU
from .time_to_loss import cases as time_to_loss

# bf16 products a second without sparsity, by NVIDIA's data sheets.
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}
# What nanoGPT rounds GPT-2's vocabulary up to.
PADDED = 64
# Steps that compile and warm up.
WARM = 10


def nanogpt_step(work: str, shape: dict[str, Any], device: str, fast: bool) -> dict[str, Any]:
    """nanoGPT's step on these batches: a padded vocabulary, and as it runs on a GPU where `fast`."""
    given = torch.load(work, weights_only=True, mmap=True)
    vocab_size = -(-given["vocab_size"] // PADDED) * PADDED
    model = GPT(vocab_size, **shape, dropout=0.0)
    model.initialise()
    weights = dict(given["weights"])
    embed = model.tokens.weight.detach().clone()
    embed[: given["vocab_size"]] = weights["embed.weight"]
    model.load(weights | {"embed.weight": embed})
    # Constant, as ours.
    loop = GPTLoop(model.to(device), lr=training.LR, min_lr=training.LR, warmup=0, steps=10**9, betas=(0.9, 0.95),
                   weight_decay=0.1, clip=1.0, fast=fast)  # fmt: skip
    batches = [(a.to(device), b.to(device)) for a, b, _ in given["batches"]]
    losses, stamps = [], []
    for step, (inputs, targets) in enumerate(batches):
        losses.append(loop.take(step, inputs, targets))
        if step in (WARM - 1, len(batches) - 1) and device != "cpu":
            torch.cuda.synchronize()
        stamps.append(time.time())
    return {"steps": stamps, "losses": [float(loss) for loss in losses]}


def gpt2(settings: Settings) -> Iterator[Case]:
    """GPT-2 124M at context 1024: tokens a second, and the share of the device's peak that they are."""
    shape = {"d_model": 768, "n_layers": 12, "n_heads": 12, "context": 1024}
    batch_size, steps = 16, 60
    if settings.quick:
        shape, batch_size, steps = {"d_model": 32, "n_layers": 1, "n_heads": 2, "context": 32}, 2, WARM + 3
    with settings.temporary() as folder:
        tokenizer = Path(folder) / "tokenizer.json"
        (small_tokenizer() if settings.quick else gpt2_tokenizer()).save(str(tokenizer))
        words = ["model=gpt2", "model.bias=false", "model.dropout=0.0", f"model.d_model={shape['d_model']}"]
        words += [f"model.n_layers={shape['n_layers']}", f"model.n_heads={shape['n_heads']}"]
        words += [f"model.max_context={shape['context']}", f"batching.seq_len={shape['context']}"]
        words += [f"batching.batch_size={batch_size}", "tokenizer=pretrained", f"tokenizer.source={tokenizer}"]
        words += ["tokenizer.eos_token='<|endoftext|>'", *training.ADAMW, *ALONE, "training.log_every=1000000"]
        words += [f"trainer.max_steps={steps}", f"trainer.val_check_interval={steps}", *_text(settings, Path(folder))]
        work = str(Path(folder) / "work.pt")
        told = isolated(training.write_work, overrides=words, steps=steps, path=work)
        # As nanoGPT's estimate_mfu counts (Chowdhery et al. 2022, appendix B): positions are looked up.
        counted = told["parameters"] - shape["context"] * shape["d_model"]
        flops = 6 * counted + 12 * shape["n_layers"] * shape["d_model"] * shape["context"]
        fast = settings.device != "cpu"
        # Compiled as the peer is: compile=auto leaves so few steps as they are.
        words += ["trainer=gpu", "compile=true"] if fast else ["trainer=cpu"]

        def sample(done: dict[str, Any], loss: float) -> Sample:
            taken = done["steps"][-1] - done["steps"][WARM - 1]
            speed = told["tokens_a_step"] * (len(done["steps"]) - WARM) / taken
            values = {"tokens a second": speed}
            if peak := peak_flops(settings.device):
                values["MFU"] = 100 * speed * flops / peak
            return Sample(values, {"steps": len(done["steps"]), "loss": loss})

        def ours() -> Sample:
            done = isolated(training.ours, overrides=words)
            # Logged after the first step and after the last: then it is the mean of all but the first.
            return sample(done, done["losses"][-1])

        def peer() -> Sample:
            done = isolated(nanogpt_step, work=work, shape=shape, device=settings.device, fast=fast)
            return sample(done, fmean(done["losses"][1:]))

        measures = [Measure("tokens a second", "tokens/s", "higher", ratio=1.25)]
        if peak_flops(settings.device):
            measures.append(Measure("MFU", "%", "higher", at_least=50.0))
        yield Case("GPT-2 124M, context 1024", tuple(measures), "lmlab train trainer=gpu compile=true", ours,
                   "nanoGPT's step, compiled, bf16", peer, same=same_steps)  # fmt: skip


def same_steps(ours: dict, peer: dict) -> None:
    """As many steps; how far their mean losses may part is what bf16 and a padded vocabulary do."""
    assert ours["steps"] == peer["steps"]
    assert abs(ours["loss"] / peer["loss"] - 1) < 0.05, (ours, peer)


def peak_flops(device: str) -> float | None:
    name = torch.cuda.get_device_name() if device != "cpu" else ""
    return next((peak for known, peak in PEAK.items() if known in name), None)


def awd(settings: Settings) -> Iterator[Case]:
    """Seconds an epoch of WikiText-2 at AWD-LSTM's own shapes, 80 rows of 70."""
    words, shape = awd_words(settings, batch_size=4 if settings.quick else 80)
    steps = WARM + (2 if settings.quick else 50)
    with settings.temporary() as folder:
        words += [*ALONE, *_text(settings, Path(folder), "wikitext2")]
        words += [f"trainer.max_steps={steps}", f"trainer.val_check_interval={steps}"]
        words += [f"trainer={'cpu' if settings.device == 'cpu' else 'gpu'}"]
        work = str(Path(folder) / "work.pt")
        told = isolated(training.write_work, overrides=words, steps=steps, path=work)

        def sample(done: dict[str, Any]) -> Sample:
            step = (done["steps"][-1] - done["steps"][WARM - 1]) / (len(done["steps"]) - WARM)
            facts = {"steps": len(done["steps"]), "loss": fmean(done["losses"])}
            return Sample({"an epoch": told["steps_an_epoch"] * step}, facts)

        peer = partial(isolated, training.awd_lstm, work=work, device=settings.device, **shape)
        yield Case("AWD-LSTM, WikiText-2", (Measure("an epoch", "s"),), "lmlab train trainer=gpu",
                   lambda: sample(isolated(training.ours, overrides=words)), "AWD-LSTM's loop, fp32, cuDNN",
                   lambda: sample(peer()), same=same_steps)  # fmt: skip


def eight(settings: Settings) -> Iterator[Case]:
    """Eight small runs on one device at once, against the same one after another."""
    n, steps = (2, 2) if settings.quick else (8, 400)
    with settings.temporary() as folder:
        words = [*_text(settings, Path(folder)), f"trainer.max_steps={steps}", "floors=false", "test=false"]
        words += ["model.d_model=24", "tokenizer=byte"] if settings.quick else []
        words += [f"trainer={'cpu' if settings.device == 'cpu' else 'gpu'}", f"runs_root={folder}/runs"]
        # Prepares the text.
        _wait([_start([*words, "seed=99"])])

        def together() -> Sample:
            began = time.perf_counter()
            _wait([_start([*words, f"seed={seed}"]) for seed in range(n)])
            return Sample({"all runs": time.perf_counter() - began}, {"runs": n})

        def in_turn() -> Sample:
            began = time.perf_counter()
            for seed in range(n):
                _wait([_start([*words, f"seed={seed}"])])
            return Sample({"all runs": time.perf_counter() - began}, {"runs": n})

        yield Case(f"{n} small runs", (Measure("all runs", "s"),), "at once, each a process", together,
                   "one after another", in_turn)  # fmt: skip


def _start(words: list[str]) -> subprocess.Popen:
    return subprocess.Popen((*LMLAB, "train", *words), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL,
                            stderr=sys.stderr)  # fmt: skip


def _wait(processes: list[subprocess.Popen]) -> None:
    if failed := [p.args for p in processes if p.wait()]:
        raise RuntimeError(f"failed: {failed}")


def _text(settings: Settings, folder: Path, option: str | None = None) -> list[str]:
    if not settings.quick:
        return [f"corpus.path={getattr(settings, option)}"] if option else []
    (folder / "text.txt").write_text(TEXT * 4)
    return ["corpus=files", f"corpus.train={folder}/text.txt", "corpus.split_by=share", f"cache_dir={folder}/cache"]


ROWS = (
    Row("gpt2_124m_gpu", "GPT-2 124M on one GPU", gpt2, gpu=True),
    Row("awd_lstm_gpu", "AWD-LSTM on one GPU", awd, needs=("wikitext2",), gpu=True),
    Row("shakespeare_gpu", "tiny Shakespeare on one GPU, text unprepared",
        time_to_loss("shakespeare_minutes", 1.4697, GPU, {"whole": None, "alone": None}, None),
        needs=("shakespeare",), gpu=True),
    Row("eight_runs_gpu", "eight small runs on one GPU", eight, gpu=True),
)  # fmt: skip
