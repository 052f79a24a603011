"""Tokens a second of measuring a held-out split, beside the loops that are usually written for it."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from .generating import still_run
from .harness import Case, Measure, Row, Sample, Settings
from .reference import GPT, TiedLSTM
from .starting import TEXT

# As pytorch/examples' evaluate reads: ten rows side by side, 35 tokens at a time.
LANES, BPTT = 10, 35


@torch.inference_mode()
def lanes_at_a_time(model: TiedLSTM, ids: np.ndarray, start_id: int) -> float:
    """pytorch/examples' evaluate: hidden carried, all log-probabilities in fp32. Summed nats of all ids."""
    lane = len(ids) // LANES
    targets = torch.from_numpy(ids[: lane * LANES].astype(np.int64)).view(LANES, lane)
    before = torch.tensor([start_id, *ids[lane - 1 : lane * LANES - 1 : lane].tolist()])
    inputs = torch.cat([before[:, None], targets[:, :-1]], 1)
    total, hidden = 0.0, None
    for i in range(0, lane, BPTT):
        log_probs, hidden = model(inputs[:, i : i + BPTT].t().contiguous(), hidden)
        total += F.nll_loss(log_probs, targets[:, i : i + BPTT].t().reshape(-1), reduction="sum").item()
    return total


@torch.inference_mode()
def window_at_a_time(model: GPT, ids: np.ndarray, start_id: int, context: int, stride: int) -> float:
    """One window after another, each token where it has most context; all logits in fp32. Summed nats."""
    targets = torch.from_numpy(ids.astype(np.int64))
    inputs = torch.cat([torch.tensor([start_id]), targets[:-1]])
    total, done = 0.0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + context, len(ids))
        logits = model.logits(inputs[None, begin:end])
        losses = F.cross_entropy(logits[0], targets[begin:end], reduction="none")
        total += losses[done - begin :].sum().item()
        done = end
        if end == len(ids):
            break
    return total


def lstm(settings: Settings) -> Iterator[Case]:
    with settings.temporary() as folder:
        words = ["experiment=examples_650_tied", "optimizer.lr=0.0", *_text(settings, Path(folder), "wikitext2")]
        words += ["model.d_model=32"] if settings.quick else []
        run = still_run(words)
        model = TiedLSTM(run.model.vocab_size, run.model.d_model, n_layers=2, dropout=0.0).eval()
        model.load(run.model.state_dict())
        # All of it in whole rows.
        n_tokens = len(run.store().split("test")) // LANES * LANES
        yield _case("LSTM 650 tied, WikiText-2", run, min(n_tokens, 900 if settings.quick else 30_000),
                    f"pytorch/examples' loop, {LANES} rows x {BPTT}, fp32",
                    lambda ids, start_id: lanes_at_a_time(model, ids, start_id))  # fmt: skip


def transformer(settings: Settings) -> Iterator[Case]:
    with settings.temporary() as folder:
        d_model, n_layers, n_heads, context = (32, 1, 2, 16) if settings.quick else (320, 6, 5, 256)
        words = ["model=gpt2", "model.bias=false", f"model.d_model={d_model}", f"model.n_layers={n_layers}",
                 f"model.n_heads={n_heads}", f"model.max_context={context}", "batching.batch_size=1",
                 f"batching.seq_len={context}", "optimizer=sgd", "optimizer.lr=0.0"]  # fmt: skip
        words += _text(settings, Path(folder), None)
        run = still_run([*words, "tokenizer=bpe", f"tokenizer.vocab_size={300 if settings.quick else 8192}"])
        model = GPT(run.model.vocab_size, d_model, n_layers, n_heads, context, dropout=0.0).eval()
        model.load(run.model.state_dict())
        n_tokens = min(len(run.store().split("test")), 300 if settings.quick else 30_000)
        yield _case("Transformer 10M, BPE 8k, context 256", run, n_tokens, "a window at a time, all logits in fp32",
                    lambda ids, start_id: window_at_a_time(model, ids, start_id, context, context // 2))  # fmt: skip


def _text(settings: Settings, folder: Path, option: str | None) -> list[str]:
    """The corpus: of the option, else the embedded one; in a quick run a few lines."""
    words = [f"run_dir={folder}/run"]
    if settings.quick:
        (folder / "text.txt").write_text(TEXT)
        return [*words, f"cache_dir={folder}/cache", "corpus=files", f"corpus.train={folder}/text.txt",
                "corpus.split_by=share", "corpus.test_share=0.2"]  # fmt: skip
    return [*words, f"corpus.path={getattr(settings, option)}"] if option else words


def _case(name: str, run: Any, n_tokens: int, peer_is: str, naive: Callable[[np.ndarray, int], float]) -> Case:
    protocol = replace(run.protocol, limit_tokens=n_tokens)
    ids, start_id = np.asarray(run.store().split("test").ids[:n_tokens]), run.tokenizer.start_id

    def ours() -> Sample:
        began = time.perf_counter()
        likelihood = run.evaluate("test", protocol=protocol)
        seconds = time.perf_counter() - began
        return Sample({"tokens a second": likelihood.tokens / seconds},
                      {"tokens": likelihood.tokens, "nats a token": likelihood.nll})  # fmt: skip

    def peer() -> Sample:
        began = time.perf_counter()
        nats = naive(ids, start_id)
        return Sample({"tokens a second": n_tokens / (time.perf_counter() - began)},
                      {"tokens": n_tokens, "nats a token": nats / n_tokens})  # fmt: skip

    # Neither side's first call counts.
    run.evaluate("test", protocol=replace(protocol, limit_tokens=LANES))
    naive(ids[: 20 * LANES], start_id)
    return Case(name, (Measure("tokens a second", "tokens/s", "higher"),), f"run.evaluate, {protocol.describe()}", ours,
                peer_is, peer, same=same)  # fmt: skip


def same(ours: dict, peer: dict) -> None:
    assert ours["tokens"] == peer["tokens"]
    assert abs(ours["nats a token"] - peer["nats a token"]) < 1e-4, (ours, peer)


ROWS = (
    Row("evaluation_lstm", "measuring held-out text", lstm, needs=("wikitext2",)),
    Row("evaluation_transformer", "measuring held-out text", transformer),
)
