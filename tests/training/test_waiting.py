"""A step asks its device nothing, so that the processor runs ahead of a GPU.

Tensors on `meta` have shapes and no values: whoever asks for one (item, bool, a mask as an index) fails. What the
processor alone knows may be asked for, and may cross only without being waited for.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lmlab.config import compose
from lmlab.experiment import plan
from lmlab.models import cross_entropy
from lmlab.training.fit import build_module
from lmlab.training.module import LMModule
from lmlab.types import Batch

from .conftest import LSTM, QUIET, TRANSFORMER

# torch refuses fused kernels on meta; Muon's, which it is not asked about, it has.
ADAM = ["optimizer=adam", "optimizer.fused=false"]
COMMON = ["training.log_every=1000", "training.clip_norm=0.5"]
DOCUMENTS = ["corpus.document_separator=dog", "batching=documents", "batching.seq_len=16", "batching.batch_size=4"]
RECIPES = {
    "lstm on lanes": [*LSTM, "training.ar=2.0", "training.tar=1.0", "model.weight_drop=0.5", "model.dropout_words=0.1"],
    "lstm, logits in blocks": LSTM,
    "lstm on padded documents": [*LSTM, *DOCUMENTS, "training.ar=2.0", "training.tar=1.0"],
    "transformer on windows": [*TRANSFORMER, "training.micro_batch_size=4"],
    "transformer on lanes": [*TRANSFORMER, "batching=lanes"],
    "weights twice": [*TRANSFORMER, "precision=bf16"],
    "lstm, weights twice": [*LSTM, "precision=bf16"],
    "gpt2 by muon": ["model=gpt2", *TRANSFORMER[1:], "optimizer=muon"],
}


class Crossings(TorchDispatchMode):
    """Refuses copies between devices that are waited for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and not kwargs.get("non_blocking"):
            target = kwargs.get("device")
            assert target is None or target == args[0].device, f"{args[0].device} to {target} is waited for"
        if func is torch.ops.aten.copy_.default:
            waits = not (args[2] if len(args) > 2 else kwargs.get("non_blocking"))
            assert not waits or args[0].device == args[1].device, f"{args[1].device} to {args[0].device} is waited for"
        return func(*args, **kwargs)


@pytest.fixture
def steps(text, monkeypatch):
    """steps(overrides): (module on meta, its batches on their way there as in training)."""

    def make(*overrides: str) -> tuple[LMModule, Any]:
        adam = [] if "optimizer=muon" in overrides else ADAM
        words = [*QUIET, f"corpus.path={text}", *overrides, *adam, *COMMON]
        planned = plan(compose(words))
        module = build_module(planned).to("meta")
        monkeypatch.setattr(module, "_seed", lambda seed: None)
        # It has no word for meta.
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)
        optimizer = module.configure_optimizers()

        def step(*_: Any) -> None:
            optimizer.step()

        loop = SimpleNamespace(backward=lambda loss: loss.backward(), optimizer_step=step)
        module._trainer = SimpleNamespace(
            optimizers=[optimizer], world_size=1, fit_loop=SimpleNamespace(epoch_loop=loop), callbacks=[],
            global_rank=0, strategy=SimpleNamespace(model=module), should_stop=False,
        )  # fmt: skip
        module.on_train_start()
        # Logged and waited for at the first step and the last.
        module.step, module.total_steps = 1, 1000
        return module, planned.batching

    return make


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("resident", [False, True], ids=["text in main memory", "text on the device"])
def test_a_step_asks_its_device_nothing(recipe, resident, steps, monkeypatch):
    if "blocks" in recipe:
        monkeypatch.setattr(cross_entropy, "SMALL", 0)
    module, batching = steps(*RECIPES[recipe])
    if resident:
        batching.to(torch.device("meta"))
    with Crossings():
        for step in range(1, 4):
            batch: Batch = batching.batch(step).to(module.device, non_blocking=True)
            assert batch.targets.device.type == "meta"
            module.training_step(batch, step)
    assert module.step == 4
    assert all(p.grad is None for p in module.parameters())
    assert batching.carries_state == (module.state is not None)


def test_what_asks_or_waits_is_found(steps, monkeypatch):
    module, batching = steps(*RECIPES["transformer on windows"])
    batch = batching.batch(1)
    with pytest.raises(AssertionError, match="is waited for"), Crossings():
        batch.to(module.device)
    monkeypatch.setattr(LMModule, "_exceeds", lambda self, norm: norm.item() > 1)
    with pytest.raises(RuntimeError, match="meta"):
        module.training_step(batch.to(module.device), 1)
