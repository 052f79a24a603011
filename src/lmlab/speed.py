"""What only changes how fast a run trains: precision, compilation, and where its batches are cut."""

from typing import Any

from omegaconf import DictConfig
from torch import nn

from lmlab.config import cache_dir
from lmlab.data.resident import resident_bytes
from lmlab.decisions import (
    EMULATED,
    check_graphs,
    choose_compile,
    choose_precision,
    choose_text_on_device,
    estimated_seconds,
    find_compiler,
)
from lmlab.hardware import Machine, free_memory, multiplies_bf16
from lmlab.models.head import AdaptiveHead
from lmlab.sizes import flops_per_token


def weights_may_be_held_twice(model: nn.Module, devices: int) -> bool:
    """precision=bf16 needs a model that casts what it looks up, as ours do, and one process: see `check_precision`."""
    return devices == 1 and type(model).__module__.startswith("lmlab.models.")


def choose_speed(
    config: DictConfig, model: nn.Module, batching: Any, steps: int, device: str, devices: int
) -> tuple[dict[str, Any], dict[str, str | None]]:
    """All three by what was measured of this machine, and the reasons for what was left to us."""
    machine = Machine(device, cache_dir(config.cache_dir))
    autocast = not weights_may_be_held_twice(model, devices)
    chosen, reasons, seconds = {}, {}, 0.0
    chosen["precision"], reasons["precision"] = choose_precision(
        config.precision, device, autocast, lambda: machine.bf16_gain(model.d_model, autocast)
    )
    halves = chosen["precision"].startswith("bf16")
    if halves and config.precision != "auto" and device in ("cpu", "cuda") and not multiplies_bf16(device):
        reasons["precision"] = EMULATED.format(chosen["precision"])
    if config.compile == "auto":
        rates = machine.products()
        peak = rates.get("bf16", rates["fp32"]) if halves else rates["fp32"]
        flops = flops_per_token(model, batching.seq_len) * batching.tokens_per_step * steps
        seconds = estimated_seconds(flops, peak)
    chosen["compile"], reasons["compile"] = choose_compile(
        config.compile, device, model.recurrent, seconds, find_compiler(device)
    )
    if chosen["compile"] == "graphs":
        check_graphs(device, devices, config.training.micro_batch_size, _varies(model, batching))
    # One of somebody else's may cut its batches where it likes; a run of an older version has no such key.
    split = getattr(batching, "split", None) if hasattr(batching, "to") else None
    needed = None if split is None else resident_bytes(split)
    chosen["text_on_device"], reasons["text_on_device"] = choose_text_on_device(
        config.get("text_on_device", "auto"), device, needed, free_memory(device)
    )
    return chosen, reasons


def _varies(model: nn.Module, batching: Any) -> str | None:
    """What gives steps different shapes, in a word or two; None where nothing does."""
    if not getattr(batching, "fixed_shape", False):
        random = getattr(batching, "random_lengths", False)
        return "batching.random_lengths=true" if random else f"batching={type(batching).__name__.lower()}"
    return "model/head=adaptive" if isinstance(model.head, AdaptiveHead) else None
