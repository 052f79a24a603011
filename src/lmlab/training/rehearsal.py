"""What a run would take, from a few real steps that are thrown away."""

import resource
import sys
import time
from contextlib import nullcontext
from itertools import islice
from typing import Any

import torch

from lmlab.evaluation.evaluate import evaluate
from lmlab.instantiate import instantiate
from lmlab.training import optim
from lmlab.training.fit import evaluation_batches
from lmlab.training.master_weights import MasterWeights
from lmlab.training.progress import clock
from lmlab.training.results import measured_splits

# Measured steps, and batches of evaluation, after one that warms up; fewer where so many seconds are over.
STEPS, SECONDS = 20, 3.0


def rehearse(plan: Any) -> dict[str, Any]:
    """Speed, time in all and peak memory; without batches (a model that counts) there is nothing to measure."""
    if plan.batching is None:
        return {}
    seconds = _step_seconds(plan)
    training, scoring = seconds * plan.total_steps, scored_tokens(plan) * _token_seconds(plan)
    return {
        "tokens_per_step": plan.batching.tokens_per_step,
        "seconds_per_step": round(seconds, 4),
        "tokens_per_s": round(plan.batching.tokens_per_step / seconds),
        "training_time": clock(training),
        "evaluation_time": clock(scoring),
        "time": clock(training + scoring),
        "peak_memory": f"{_peak_bytes(plan.decided['device']) / 1e9:.2f} GB",
    }


def scored_tokens(plan: Any) -> int:
    """Tokens that all validations and the final measurement score."""
    config = plan.config.validation
    val, train = len(plan.store.split("val")), len(plan.store.split("train"))
    each = min(val, config.limit_tokens or val) + min(train, config.train_tokens)
    checks = plan.total_steps // plan.decided["val_check_interval"]
    return checks * each + sum(len(plan.store.split(split)) for split in measured_splits(plan, interrupted=False))


def _token_seconds(plan: Any) -> float:
    """To score one token of val, from its first batches; the very first warms up."""
    times, scored = [time.perf_counter()], []

    def note(n_targets: int) -> None:
        times.append(time.perf_counter())
        scored.append(n_targets)

    rows = islice(evaluation_batches(plan)("val", limit_tokens=None), 1 + STEPS)
    evaluate(plan.model, rows, plan.protocol.precision, plan.decided["device"], note)
    if len(scored) > 1:
        return (times[-1] - times[1]) / sum(scored[1:])
    return (times[1] - times[0]) / scored[0]


def _step_seconds(plan: Any) -> float:
    """Of optimisation, a mean: on a shared machine the best step promises too much."""
    config, device = plan.config, plan.decided["device"]
    model = plan.model.to(device).train()
    optimizer = optim.build(instantiate(config.optimizer), config.training.decay, model)
    size = config.training.micro_batch_size or plan.batching.batch_size
    precision = plan.decided["precision"]
    masters = MasterWeights(model) if precision == "bf16" else None
    times: list[float] = []
    for step in range(1 + STEPS):
        if sum(times[1:]) > SECONDS:
            break
        began = time.perf_counter()
        batch = plan.batching.batch(step)
        with nullcontext() if masters is None else masters.halved():
            for start in range(0, len(batch.inputs), size):
                micro = batch.rows(start, start + size).to(device)
                with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16-mixed"):
                    hidden, _ = model(micro.inputs, None)
                    loss = model.head.nll(hidden, micro.targets).mean()
                loss.backward()
                if masters is not None:
                    masters.collect()
        if config.training.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.training.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return sum(times[1:]) / len(times[1:])


def _peak_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    # Linux counts kilobytes, macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
