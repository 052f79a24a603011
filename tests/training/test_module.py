"""One optimisation step: exact per token however it is cut, one dropout mask, undisturbed by what watches it."""

from types import SimpleNamespace

import pytest
import torch

from lmlab.errors import TrainingFailed
from lmlab.metrics import TokenNLL
from lmlab.models.head import LinearHead
from lmlab.models.lstm import LSTMLM
from lmlab.run_directory.train_log import failure
from lmlab.training.checkpoints import read, weights
from lmlab.training.module import LMModule
from lmlab.training.progress import Stopwatch

LSTM = ["model=lstm", "model.d_model=12", "model.n_layers=1", "batching=lanes", "batching.batch_size=4"]
LSTM += ["batching.seq_len=16", "optimizer=adam", "optimizer.lr=0.01", "evaluation.lanes=2", "trainer.max_steps=8"]
DRY = [f"model.dropout_{where}=0.0" for where in ("in", "between", "out")]
DOCUMENTS = ["corpus.document_separator=dog", "batching=documents", "batching.seq_len=24"]
TRANSFORMER = ["model=transformer", "model.d_model=16", "model.n_layers=1", "model.n_heads=2", "model.max_context=24"]


def trained(tmp_path, name: str) -> dict[str, torch.Tensor]:
    return weights(read(tmp_path / name / "checkpoints/last.ckpt"))


def test_sums_are_read_back_to_where_they_are_kept():
    """In float64: on the processor, where the model's device has no such numbers."""
    window = TokenNLL()
    kept = {name: torch.ones_like(getattr(window, name)) for name in window._defaults}
    told = {"global_rank": 0, "trainer": SimpleNamespace(world_size=1), "window": window, "watch": Stopwatch()}
    module = SimpleNamespace(**told, device="meta")
    LMModule.load_carried(module, {"lmlab": {"state": (torch.zeros(2, 3),), "window": kept}})
    assert module.state[0].is_meta
    assert all(torch.equal(getattr(window, name), one) for name, one in kept.items())


@pytest.mark.parametrize(
    "overrides",
    [
        [*LSTM, *DRY, "training.ar=2.0", "training.tar=1.0"],
        [*LSTM, *DRY, *DOCUMENTS, "batching.batch_size=4", "training.ar=2.0", "training.tar=1.0"],
        [*TRANSFORMER, *DOCUMENTS, "batching.batch_size=4", "optimizer=adam", "trainer.max_steps=8"],
    ],
    ids=["lanes", "padded documents", "transformer on documents"],
)
def test_micro_batches_train_what_the_whole_batch_trains(overrides, train, tmp_path):
    # Adam divides by the gradient's size, which blows up rounding where a gradient is about zero: its eps is raised.
    overrides = [*overrides, "optimizer.eps=1e-3"]
    train("whole", *overrides)
    train("cut", *overrides, "training.micro_batch_size=3")
    for name, value in trained(tmp_path, "whole").items():
        torch.testing.assert_close(trained(tmp_path, "cut")[name], value, atol=1e-6, rtol=0, msg=name)


@pytest.mark.parametrize(
    ("seed", "first"),
    # By hand: seed * 1,000,003 * 1,009, and of the last one 20,180,060,540,000,000,000 less 2**64.
    [(0, 0), (3, 3_027_009_081), (17 * 10**9, 17_153_051_459 * 10**9), (2 * 10**10, 1_733_316_466_290_448_384)],
)
def test_any_seed_that_is_taken_trains_and_its_steps_have_seeds_of_their_own(seed, first, train, monkeypatch):
    seeds, original = [], LMModule._seed

    def noted(self, number):
        seeds.append(number)
        original(self, number)

    monkeypatch.setattr(LMModule, "_seed", noted)
    train("run", *LSTM, "trainer.max_steps=3", f"seed={seed}")
    assert seeds == [first, first + 1_009, first + 2_018]


def test_carried_state_goes_on_when_the_micro_batch_size_changes(train, tmp_path, monkeypatch):
    overrides = [*LSTM, *DRY, "optimizer.eps=1e-3", "callbacks.checkpoints.every_n_steps=1"]
    train("whole", *overrides)

    def dies(self, *args):
        if self.step == 5:
            raise KeyError("killed")
        return original(self, *args)

    original = LMModule.training_step
    with monkeypatch.context() as patch:
        patch.setattr(LMModule, "training_step", dies)
        with pytest.raises(KeyError):
            train("changed", *overrides)
    train("changed", *overrides, "training.micro_batch_size=2")
    for name, value in trained(tmp_path, "whole").items():
        torch.testing.assert_close(trained(tmp_path, "changed")[name], value, atol=1e-6, rtol=0, msg=name)


def test_activation_regularisation_reads_the_hidden_that_the_loss_reads(train, monkeypatch):
    seen = {"drop": [], "nll": []}
    drop, nll_of = LinearHead.drop, LinearHead.nll_of

    def watched_drop(self, hidden):
        seen["drop"].append(drop(self, hidden)) if self.training else None
        return seen["drop"][-1] if self.training else drop(self, hidden)

    def watched_nll(self, dropped, targets):
        seen["nll"].append(dropped) if self.training else None
        return nll_of(self, dropped, targets)

    monkeypatch.setattr(LinearHead, "drop", watched_drop)
    monkeypatch.setattr(LinearHead, "nll_of", watched_nll)
    train("run", *LSTM, "model.dropout_out=0.5", "training.ar=2.0", "trainer.max_steps=3")
    assert len(seen["drop"]) == len(seen["nll"]) == 3, "one mask a step"
    assert all(a is b for a, b in zip(seen["drop"], seen["nll"], strict=True))


def test_validation_does_not_disturb_training(train, tmp_path):
    train("seldom", *LSTM, "trainer.val_check_interval=8")
    train("often", *LSTM, "trainer.val_check_interval=1")
    seldom, often = trained(tmp_path, "seldom"), trained(tmp_path, "often")
    assert all(torch.equal(often[name], value) for name, value in seldom.items())


def test_state_is_carried_through_lanes_and_reset_at_the_start_of_an_epoch(train, monkeypatch):
    carried = []
    forward = LSTMLM.forward

    def watched(self, tokens, state=None):
        if self.training:
            carried.append(state is not None and bool(state[0].any()))
        return forward(self, tokens, state)

    monkeypatch.setattr(LSTMLM, "forward", watched)
    train("run", *LSTM, "trainer.max_steps=null", "trainer.max_epochs=2")
    n = len(carried) // 2
    assert carried == 2 * [False, *[True] * (n - 1)]


def test_a_loss_that_is_not_finite_names_its_step_and_keeps_what_was_good(train, tmp_path, monkeypatch):
    overrides = [*LSTM, "trainer.max_steps=20", "training.log_every=100", "trainer.val_check_interval=4"]
    nll_of, calls = LinearHead.nll_of, []

    def breaks(self, dropped, targets):
        calls.append(self.training)
        broken = self.training and sum(calls) == 11
        return nll_of(self, dropped, targets) * (float("nan") if broken else 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(LinearHead, "nll_of", breaks)
        with pytest.raises(TrainingFailed, match="at step 11"):
            train("run", *overrides)
    assert failure(tmp_path / "run/train.log").startswith("NotFinite: ")
    assert read(tmp_path / "run/checkpoints/last.ckpt")["lmlab"]["step"] == 8
    assert all(torch.isfinite(w).all() for w in trained(tmp_path, "run").values())
    assert (tmp_path / "run/checkpoints/best.ckpt").exists()
    assert not (tmp_path / "run/results.json").exists()
    assert train("run", *overrides)["training"]["steps"] == 20


def test_training_seconds_leave_validation_out(train, monkeypatch):
    import time

    step = LMModule.validation_step

    def slow(self, *args):
        time.sleep(0.5)
        return step(self, *args)

    monkeypatch.setattr(LMModule, "validation_step", slow)
    results = train("run", *LSTM, "trainer.max_steps=4", "trainer.val_check_interval=1")
    assert results["training"]["seconds"] < 0.5
