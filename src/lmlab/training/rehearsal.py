"""What a run would take, from a few real steps that are thrown away."""

import resource
import sys
import time
from typing import Any

import torch
from hydra.utils import instantiate

from lmlab.training import optim
from lmlab.training.progress import clock

# Measured steps, after one that warms up.
STEPS = 3


def rehearse(plan: Any) -> dict[str, Any]:
    """Seconds a step, time in all and peak memory; without batches (a model that counts) there is nothing to measure."""
    if plan.batching is None:
        return {}
    config, device = plan.config, plan.decided["device"]
    model = plan.model.to(device).train()
    optimizer = optim.build(instantiate(config.optimizer), config.training.decay, model)
    size = config.training.micro_batch_size or plan.batching.batch_size
    enabled = plan.decided["precision"].startswith("bf16")
    times = []
    for step in range(1 + STEPS):
        began = time.perf_counter()
        batch = plan.batching.batch(step)
        for start in range(0, len(batch.inputs), size):
            micro = batch.rows(start, start + size).to(device)
            with torch.autocast(device, torch.bfloat16, enabled=enabled):
                hidden, _ = model(micro.inputs, None)
                loss = model.head.nll(hidden, micro.targets).mean()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    seconds = sorted(times[1:])[STEPS // 2]
    return {
        "tokens_per_step": plan.batching.tokens_per_step,
        "seconds_per_step": round(seconds, 4),
        "tokens_per_s": round(plan.batching.tokens_per_step / seconds),
        "training_time": clock(seconds * plan.total_steps),
        "peak_memory": f"{_peak_bytes(device) / 1e9:.2f} GB",
    }


def _peak_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    # Linux counts kilobytes, macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
