"""Steps past Lightning's wrappers: the same training, the same calls and counts as Lightning's own steps."""

from typing import Any, ClassVar

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import nn

from lmlab.training.checkpoints import read
from lmlab.training.loop import HOOKS, StepLoop
from lmlab.training.module import LMModule

from .conftest import LSTM, TRANSFORMER

SHORT = ["trainer.max_steps=9", "trainer.val_check_interval=4"]
RECORDER = "+callbacks.recorder={_target_: tests.training.test_loop.Recorder}"


class Recorder(Callback):
    """Somebody's callback: notes what it is told, and logs as Lightning's documentation says."""

    told: ClassVar[list[tuple]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.told.append(("start", trainer.global_step, batch_idx, batch.inputs.tolist()))

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        self.told.append(("before backward", trainer.global_step, loss.item()))

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.told.append(("after backward", sum(p.grad.sum().item() for p in pl_module.model.parameters())))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.told.append(("before step", trainer.global_step, type(optimizer).__name__))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        pl_module.log("mine", float(pl_module.step))
        self.told.append(("end", trainer.global_step, batch_idx, outputs, trainer.is_last_batch))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        logged = {name: value.item() for name, value in trainer.callback_metrics.items() if name == "mine"}
        self.told.append(("logged", logged))


@pytest.fixture
def directly(monkeypatch):
    """directly(False): Lightning's own steps. The list fills with what each step was."""
    taken: list[bool] = []
    advance, may_be = StepLoop.advance, StepLoop._may_be_direct

    def noted(self: StepLoop, data_fetcher: Any) -> None:
        taken.append(self.direct)
        advance(self, data_fetcher)

    def choose(direct: bool) -> list[bool]:
        taken.clear()
        Recorder.told.clear()
        monkeypatch.setattr(StepLoop, "advance", noted)
        monkeypatch.setattr(StepLoop, "_may_be_direct", lambda self: direct and may_be(self))
        return taken

    return choose


def assert_same(ours: Any, lightnings: Any, where: str) -> None:
    assert type(ours) is type(lightnings), where
    if isinstance(ours, dict):
        assert ours.keys() == lightnings.keys(), where
        for key in ours:
            if key not in ("seconds", "since_logged"):
                assert_same(ours[key], lightnings[key], f"{where}/{key}")
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(lightnings), where
        for i, (a, b) in enumerate(zip(ours, lightnings, strict=True)):
            assert_same(a, b, f"{where}/{i}")
    elif isinstance(ours, torch.Tensor):
        assert torch.equal(ours, lightnings), where
    else:
        assert ours == lightnings, where


@pytest.mark.parametrize(
    "overrides",
    [
        [*LSTM, "training.micro_batch_size=3", "training.clip_norm=0.1"],
        [*TRANSFORMER, "callbacks/averaging=ema", "precision=bf16-mixed"],
    ],
    ids=["lstm in micro-batches", "averaged transformer in autocast"],
)
def test_checkpoints_are_those_of_lightnings_own_steps(overrides, train, directly, tmp_path):
    for name, direct in (("ours", True), ("lightning", False)):
        taken = directly(direct)
        train(name, *overrides, *SHORT)
        assert taken == [direct] * 9
    for checkpoint in ("last", "best"):
        paths = (tmp_path / name / f"checkpoints/{checkpoint}.ckpt" for name in ("ours", "lightning"))
        assert_same(*map(read, paths), checkpoint)


def test_callbacks_get_the_calls_that_lightning_makes(train, directly):
    told = {}
    for name, direct in (("ours", True), ("lightning", False)):
        directly(direct)
        train(name, *TRANSFORMER, *SHORT, RECORDER, "training.micro_batch_size=3")
        told[direct] = list(Recorder.told)
    assert [kind for kind, *_ in told[True][:7]] == [
        "start", *["before backward", "after backward"] * 2, "before step", "end"
    ]  # fmt: skip
    assert told[True][-1] == ("logged", {"mine": 9.0})
    assert told[True] == told[False]


def test_plain_kernels_take_lightnings_own_steps(train, directly):
    taken = directly(True)
    train("run", *TRANSFORMER, *SHORT, "kernels=plain")
    assert taken == [False] * 9


def test_a_profiler_gets_lightnings_own_steps(train, directly, tmp_path):
    taken = directly(True)
    profiler = f"{{_target_: lightning.pytorch.profilers.SimpleProfiler, dirpath: '{tmp_path}', filename: times}}"
    train("run", *TRANSFORMER, *SHORT, f"+trainer.profiler={profiler}")
    assert taken == [False] * 9
    assert "run_training_batch" in (tmp_path / "fit-times.txt").read_text()


@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_of_the_module_are_called(hook, train, directly, monkeypatch):
    called = []
    monkeypatch.setattr(LMModule, hook, lambda self, *arguments: called.append(len(arguments)), raising=False)
    directly(True)
    train("run", *TRANSFORMER, *SHORT)
    assert called == [{"on_train_batch_start": 2, "on_train_batch_end": 3, "on_after_backward": 0}.get(hook, 1)] * 9


@pytest.mark.parametrize("limit", [1e-3, 0.25, 1.0, 40.0])
def test_no_gradient_goes_unclipped_that_torch_would_scale(limit):
    module = LMModule.__new__(LMModule)
    nn.Module.__init__(module)
    module.clip_norm = limit
    for factor in (0.0, 0.5, 1 - 1e-6, 1 - 1e-7, 1.0, 1 + 1e-7, 2.0, float("inf"), float("nan")):
        norm = torch.tensor(limit * factor)
        p = nn.Parameter(torch.ones(1))
        p.grad = torch.ones(1)
        nn.utils.clip_grads_with_norm_([p], limit, norm)
        if p.grad.item() != 1.0:
            assert module._exceeds(norm), factor
    assert not module._exceeds(torch.tensor(limit / 2))
