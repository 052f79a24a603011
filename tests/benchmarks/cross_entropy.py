"""The loss of a large vocabulary on one NVIDIA GPU, alone: the head's blocks beside whole logits and liger-kernel's."""

import importlib.util
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .harness import Case, Measure, Row, Sample, Settings
from .process import isolated

# Rows, width and words: a batch of GPT-2's, of AWD-LSTM's and of the tied LSTM's, which has a bias.
SIZES = {
    "GPT-2, 16 x 1024 rows": (16 * 1024, 768, 50257, False),
    "AWD-LSTM, 80 x 70 rows": (80 * 70, 400, 33278, True),
    "LSTM 650, 20 x 35 rows": (20 * 35, 650, 33278, True),
}
QUICK = {"quick": (64, 8, 300, True)}
WARM, TIMES = 5, 30


def whole(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight, bias).float(), targets)


def blocks(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    from lmlab.models import cross_entropy

    # As of a large vocabulary, also in a quick run.
    cross_entropy.SMALL = 0
    return cross_entropy.linear_nll(hidden, weight, bias, targets).mean()


def liger(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

    return LigerFusedLinearCrossEntropyLoss()(weight, hidden, targets, bias)


LOSSES = {"whole": whole, "blocks": blocks, "liger": liger}


def losses(name: str, size: tuple[int, int, int, bool], device: str, times: int) -> dict[str, Any]:
    """Seconds of forward and backward, the memory they take beside what is there before, and what they compute."""
    n, d, vocab_size, has_bias = size
    random = torch.Generator().manual_seed(0)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    hidden = torch.randn(n, d, generator=random).to(device, dtype).requires_grad_()
    weight = (torch.randn(vocab_size, d, generator=random) * d**-0.5).to(device, dtype).requires_grad_()
    bias = torch.zeros(vocab_size, device=device, dtype=dtype, requires_grad=True) if has_bias else None
    targets = torch.randint(vocab_size, (n,), generator=random).to(device)
    wait = torch.cuda.synchronize if device != "cpu" else lambda: None
    seconds, before = [], _held(device)
    for _ in range(WARM + times):
        wait()
        began = time.perf_counter()
        loss = LOSSES[name](hidden, weight, bias, targets)
        loss.backward()
        wait()
        seconds.append(time.perf_counter() - began)
        told = {"loss": loss.item(), "gradient": math.hypot(hidden.grad.norm().item(), weight.grad.norm().item())}
        del loss
        hidden.grad = weight.grad = None
        if bias is not None:
            bias.grad = None
    memory = {} if device == "cpu" else {"memory": (torch.cuda.max_memory_allocated() - before) / 1e6}
    return told | memory | {"seconds": median(seconds[WARM:])}


def _held(device: str) -> int:
    """Bytes that are there before; the peak counts from here."""
    if device == "cpu":
        return 0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def cases(settings: Settings) -> Iterator[Case]:
    """Raises ValueError, after what needs no liger-kernel, where that is not installed."""
    peers = {"whole": "F.cross_entropy of whole logits", "liger": "liger-kernel's fused linear cross-entropy"}
    if settings.device == "cpu":
        # Its kernels are for GPUs.
        del peers["liger"]
    for peer, peer_is in peers.items():
        if peer == "liger" and importlib.util.find_spec("liger_kernel") is None:
            raise ValueError("cross_entropy_gpu: beside liger-kernel not measured: pip install liger-kernel")
        for name, size in (QUICK if settings.quick else SIZES).items():
            yield _case(settings, f"{name}, {peer}", size, peer, peer_is)


def _case(settings: Settings, name: str, size: tuple[int, int, int, bool], peer: str, peer_is: str) -> Case:
    measures = [Measure("forward and backward", "ms")]
    measures += [Measure("memory", "MB")] if settings.device != "cpu" else []

    def run(which: str) -> Callable[[], Sample]:
        one = partial(
            isolated, losses, name=which, size=size, device=settings.device, times=2 if settings.quick else TIMES
        )
        return lambda: sample(one())

    return Case(name, tuple(measures), "the head's blocks", run("blocks"), peer_is, run(peer), same=same)


def sample(done: dict[str, Any]) -> Sample:
    values = {"forward and backward": 1000 * done["seconds"]} | {k: done[k] for k in ("memory",) if k in done}
    return Sample(values, {k: done[k] for k in ("loss", "gradient")})


def same(ours: dict, peer: dict) -> None:
    """The same loss and as large a gradient, up to bf16's rounding."""
    for key in ("loss", "gradient"):
        assert abs(ours[key] / peer[key] - 1) < 0.02, (key, ours, peer)


ROWS = (Row("cross_entropy_gpu", "the loss of a large vocabulary on one GPU", cases, gpu=True),)
