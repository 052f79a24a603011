"""What is decided before the first step: device, precision, compilation, steps, and which pairings make sense."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import nn

from lmlab.config import BUDGETS, parse_count


def choose_precision(asked_precision: str | int, device: str) -> str:
    """bf16-mixed where the hardware multiplies bf16 fast, else 32: emulated, it is a hundred times slower than fp32."""
    if str(asked_precision) != "auto":
        return str(asked_precision)
    if device == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    if device == "cpu" and getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)():
        return "bf16-mixed"
    return "32-true"


def check_precision(precision: str, devices: int) -> None:
    """Refuse what would train each process on its own."""
    if precision == "bf16" and devices > 1:
        raise ValueError(
            f"precision=bf16 with devices={devices}: gradients arrive at bf16 copies of the weights, which processes "
            "do not add up; use precision=bf16-mixed"
        )


def choose_compile(asked_compile: str | bool, device: str) -> bool:
    """On a GPU; on a processor compiling costs more than most runs win."""
    return device == "cuda" if asked_compile == "auto" else bool(asked_compile)


def choose_device(accelerator: str, key: str = "trainer.accelerator") -> str:
    """cpu, cuda or mps. Raises ValueError where what was asked for is not there."""
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise ValueError(f"{key}={accelerator}, but torch {torch.__version__} sees no GPU; use {key}=cpu")
    if accelerator == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    return {"gpu": "cuda"}.get(accelerator, accelerator)


def total_steps(config: Mapping[str, Any], batching: Any) -> int:
    """The first budget that is reached, in steps. Raises ValueError where there is none."""
    trainer = config["trainer"]
    budgets = []
    if trainer.get("max_steps") not in (None, -1):
        budgets.append(int(trainer["max_steps"]))
    if trainer.get("max_epochs") not in (None, -1):
        epochs = trainer["max_epochs"]
        # Random lengths give each epoch its own number of steps.
        whole = batching.epoch_start(int(epochs))
        budgets.append(whole + int(np.ceil((epochs - int(epochs)) * batching.steps_per_epoch)))
    if (tokens := parse_count(config.get("max_tokens"), "max_tokens")) is not None:
        budgets.append(-(-tokens // batching.tokens_per_step))
    if not budgets:
        raise ValueError(
            f"no budget: give one of {', '.join(BUDGETS)}"
            + (" (max_time alone leaves the schedule without a horizon)" if trainer.get("max_time") else "")
        )
    if min(budgets) < 1:
        raise ValueError(f"a budget of {min(budgets)} steps trains nothing; ask for at least one")
    return min(budgets)


def check_pairing(model: nn.Module, batching: Any) -> None:
    """Refuse a model and a batching that make no sense together."""
    limit, slides = model.max_context, getattr(model, "slides", True)
    if batching.carries_state and not slides:
        raise ValueError(
            "batching=lanes carries state past the end of learned positions; "
            "use batching=windows, or model.positions=rotary"
        )
    if not slides and batching.seq_len > limit:
        raise ValueError(
            f"batching.seq_len={batching.seq_len} is longer than the model's max_context={limit}; "
            f"use batching.seq_len={limit} or a larger model.max_context"
        )


def trained_context(config: DictConfig, model: nn.Module, batching: Any) -> dict[str, int]:
    """A window to evaluate in that is no longer than the rows trained on, unless one was asked for.

    A model can hold more than it was shown, and is worse there. Weights from elsewhere have seen all of it.
    """
    shorter = not model.recurrent and not batching.carries_state and batching.seq_len < model.max_context
    if not shorter or config.init_from or config.evaluation.get("max_context", 0) is not None:
        return {}
    return {"max_context": batching.seq_len}


def check_interval(asked_interval: float | int | None, steps: int, steps_per_epoch: int) -> int:
    """Steps between validations: as asked (a float is a share of an epoch), else a tenth of the run."""
    if asked_interval is None:
        interval = -(-steps // 10)
    elif isinstance(asked_interval, float):
        interval = max(1, round(asked_interval * steps_per_epoch))
    else:
        interval = asked_interval
    if interval < 1:
        raise ValueError(f"trainer.val_check_interval={asked_interval} must be at least one step")
    return min(interval, steps)
