"""What is decided before the first step: device, precision, compilation, steps, and which pairings make sense."""

import importlib.util
import os
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from lmlab.config import BUDGETS, parse_count

# Least gain for which bf16 is taken: its rounding is not free.
MARGIN = 1.1
# What is said where bf16 was asked for.
EMULATED = "{}, as asked: this machine has no units for bf16 and emulates it, up to 100 times slower than precision=32"
# Seconds of training from which compiling is worth its wait. On two cores a Transformer's step gained 10 to 14 % for 21
# to 31 s of compiling, an LSTM's nothing (its kernels are fused already); on a GPU a third is usual.
COMPILE_FROM = {"cpu": 600.0, "cuda": 120.0}
# A text that takes no more than this of a GPU's free memory is kept there: model and batches need the rest.
RESIDENT_SHARE = 0.1
# A float of so many epochs between validations is a number of steps that Hydra read as one (1e3).
MANY_EPOCHS = 10
# Share of the measured peak that a step reaches, for an estimate of a run's time: between a quarter and a half here.
USUAL_MFU = 0.3


def choose_precision(
    asked_precision: str | int, device: str, autocast: bool, gain: Callable[[], float | None]
) -> tuple[str, str | None]:
    """The precision and why; bf16 where a layer of the model's width trains in it faster by a margin.

    autocast: whether bf16 means casts in each product, or weights held twice. gain: how many times as fast in bf16 as
    in fp32, None where bf16 is emulated; measured only where it decides.
    """
    if str(asked_precision) != "auto":
        return str(asked_precision), None
    if device not in ("cpu", "cuda"):
        return "32-true", f"fp32: bf16 is not tried on {device}"
    times = gain()
    if times is None:
        return "32-true", "fp32: this machine has no units for bf16"
    if times < MARGIN:
        return "32-true", f"fp32: a layer of this width runs only {times:.2f} times as fast in bf16 here"
    name = "bf16-mixed" if autocast else "bf16"
    return name, f"{name}: a layer of this width runs {times:.1f} times as fast as in fp32 here"


def check_precision(precision: str, devices: int) -> None:
    """Refuse what would train each process on its own."""
    if precision == "bf16" and devices > 1:
        raise ValueError(
            f"precision=bf16 with devices={devices}: gradients arrive at bf16 copies of the weights, which processes "
            "do not add up; use precision=bf16-mixed"
        )


def choose_compile(
    asked_compile: str | bool, device: str, recurrent: bool, seconds: float, compiler: bool
) -> tuple[bool | str, str | None]:
    """Whether to compile, and why; where the run is so long (`seconds`, estimated) that the wait pays.

    `graphs` is a way of compiling that has to be asked for.
    """
    if asked_compile != "auto":
        return asked_compile if asked_compile == "graphs" else bool(asked_compile), None
    if device not in COMPILE_FROM:
        return False, f"not compiled: it is not tried on {device}"
    if device == "cpu" and recurrent:
        return False, "not compiled: on a processor a recurrent model gains nothing"
    if seconds < COMPILE_FROM[device]:
        return False, f"not compiled: compiling pays from about {COMPILE_FROM[device] / 60:.0f} minutes of training on"
    if not compiler:
        return False, "not compiled: there is no C++ compiler here"
    return True, f"compiled: about {seconds / 60:.0f} minutes of training repay the wait"


def check_graphs(device: str, devices: int, micro_batch_size: int | None, varies: str | None) -> None:
    """Refuse compile=graphs where it cannot be: a CUDA graph repeats the same kernels over the same memory.

    varies: what gives steps different shapes, None where nothing does.
    """
    if device != "cuda":
        raise ValueError(f"compile=graphs is for NVIDIA GPUs and this run trains on {device}; use compile=true")
    if devices > 1:
        raise ValueError(f"compile=graphs trains in one process, and devices={devices}; use compile=true")
    if micro_batch_size is not None:
        raise ValueError(
            f"compile=graphs with training.micro_batch_size={micro_batch_size}: the second part of a batch would "
            "overwrite the first one's gradients; use compile=true, or training.micro_batch_size=null"
        )
    if varies is not None:
        raise ValueError(f"compile=graphs needs steps of one shape, which {varies} does not make; use compile=true")


def choose_text_on_device(
    asked_place: str | bool, device: str, needed: int | None, free: int | None
) -> tuple[bool, str | None]:
    """Whether batches are cut on the device, of a text that is kept there, and why. The batches are the same.

    needed: the text's bytes, None where the batching cannot put it there. free: bytes of the device's memory, None
    where that is the machine's own.
    """
    if asked_place is False:
        return False, None
    if needed is None:
        if asked_place is True:
            raise ValueError(
                "text_on_device=true needs a batching with a method `to`, as ours have; use text_on_device=false"
            )
        return False, None
    size = f"{needed / 1e6:,.1f} MB"
    if asked_place is True:
        if free is not None and needed > free:
            raise ValueError(
                f"text_on_device=true: the text takes {size}, and {free / 1e6:,.1f} MB of the device's memory are "
                "free; use text_on_device=false"
            )
        return True, None
    if device != "cuda":
        return False, None
    if needed > RESIDENT_SHARE * free:
        return False, f"batches are cut in main memory: the text's {size} are over a tenth of the GPU's free memory"
    return True, f"the text is kept on the GPU ({size}), and batches are cut there"


def find_compiler(device: str) -> bool:
    """Whether what torch.compile calls is there; on a GPU that is Triton, which calls a C compiler."""
    named = (os.environ.get("CXX"), "g++", "clang++", "c++", "cl")
    if not any(shutil.which(name) for name in named if name):
        return False
    return device != "cuda" or importlib.util.find_spec("triton") is not None


def estimated_seconds(flops: float, peak: float) -> float:
    """Of training that takes so many floating-point operations, where the device's products reach `peak` a second."""
    return flops / (USUAL_MFU * peak)


def choose_device(accelerator: str, key: str = "trainer.accelerator") -> str:
    """cpu, cuda or mps. Raises ValueError where what was asked for is not there."""
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise ValueError(f"{key}={accelerator}, but torch {torch.__version__} sees no GPU; use {key}=cpu")
    if accelerator == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"{key}=mps, but torch {torch.__version__} sees no Apple GPU; use {key}=cpu")
    if accelerator == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    return {"gpu": "cuda"}.get(accelerator, accelerator)


def check_budget(config: Mapping[str, Any]) -> None:
    """Refuse what has no end in steps, by which the schedule goes."""
    keys = [key for key in BUDGETS if key != "trainer.max_time"]
    if any(OmegaConf.select(config, key) not in (None, -1) for key in keys):
        return
    if time := config["trainer"].get("max_time"):
        raise ValueError(
            f"trainer.max_time={time} ends a run sooner, but its schedule needs an end in steps: give one of "
            f"{', '.join(keys)} beside it"
        )
    raise ValueError(f"no budget: give one of {', '.join(keys)}")


def total_steps(config: Mapping[str, Any], batching: Any) -> int:
    """The first budget that is reached, in steps."""
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
        if not asked_interval > 0:
            raise ValueError(f"trainer.val_check_interval={asked_interval} must be more than no part of an epoch")
        interval = max(1, round(asked_interval * steps_per_epoch))
        if asked_interval >= MANY_EPOCHS and interval > steps:
            raise ValueError(
                f"trainer.val_check_interval={asked_interval} is that many epochs, more than this training has; "
                f"{asked_interval:.0f}, without a point, are steps"
            )
    else:
        interval = asked_interval
    if interval < 1:
        raise ValueError(f"trainer.val_check_interval={asked_interval} must be at least one step")
    return min(interval, steps)
