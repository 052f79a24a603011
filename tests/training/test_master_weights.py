"""bf16 copies compute, fp32 masters are what everybody else sees, and gradients are as good as autocast's."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from lmlab.config import compose, plain
from lmlab.instantiate import instantiate
from lmlab.training import master_weights
from lmlab.training.checkpoints import read, weights
from lmlab.training.master_weights import MasterWeights

LSTM = ["model=lstm", "model.d_model=12", "model.n_layers=1", "batching=lanes", "batching.batch_size=4"]
LSTM += ["batching.seq_len=16", "evaluation.lanes=2"]
TRANSFORMER = ["model=transformer", "model.d_model=16", "model.n_layers=1", "model.n_heads=2", "model.max_context=16"]
TRANSFORMER += ["batching=windows", "batching.batch_size=6", "batching.seq_len=16"]
DRY = ["model.dropout_in=0.0", "model.dropout_between=0.0", "model.dropout_out=0.0"]
MODELS = {
    "transformer": ["model=transformer"],
    "transformer alibi": ["model=transformer", "model.positions=alibi", "model.embed_ngram=3"],
    "transformer untied": ["model=transformer", "model.tie_embeddings=false"],
    "gpt2": ["model=gpt2", "model.d_model=192", "model.n_layers=3", "model.n_heads=3", "model.dropout=0.0"],
    "lstm": ["model=lstm", *DRY],
}
V = 300


def compose_model(overrides: list[str], vocab_size: int) -> nn.Module:
    return instantiate(plain(compose(overrides))["model"])(vocab_size=vocab_size, token_counts=None)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return compose_model(["model=transformer", "model.d_model=32", "model.n_heads=2"], V)


def gradient(model: nn.Module, tokens: torch.Tensor, precision: str) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    masters = MasterWeights(model) if precision == "bf16" else None
    with nullcontext() if masters is None else masters.halved():
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            hidden, _ = model(tokens[:, :-1], None)
            loss = model.head.nll(hidden, tokens[:, 1:]).mean()
        loss.backward()
        if masters is not None:
            masters.collect()
    gradients = [p.grad for p in model.parameters()]
    assert {g.dtype for g in gradients} == {torch.float32}
    return loss.item(), torch.cat([g.flatten() for g in gradients])


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_as_near_to_fp32_as_autocasts(name):
    torch.manual_seed(0)
    model, tokens = compose_model(MODELS[name], V).train(), torch.randint(V, (8, 65))
    loss, exact = gradient(model, tokens, "32")
    _, autocast = gradient(model, tokens, "bf16-mixed")
    ours_loss, ours = gradient(model, tokens, "bf16")
    error = (autocast - exact).norm() / exact.norm()
    assert 1e-4 < error < 0.02, "autocast is not in bf16"
    # The residual stream is bf16 here, fp32 there.
    assert (ours - exact).norm() / exact.norm() < 1.6 * error
    assert (ours - autocast).norm() / exact.norm() < 2 * error
    assert ours_loss == pytest.approx(loss, abs=1e-3)


def test_inside_all_but_the_embedding_is_bf16_and_outside_nothing_has_changed(model):
    before = list(model.parameters())
    masters = MasterWeights(model)
    with masters.halved():
        inside = dict(model.named_parameters())
    assert inside.pop("embed.weight").dtype is torch.float32
    assert {p.dtype for p in inside.values()} == {torch.bfloat16}
    with pytest.raises(IndexError), masters.halved():
        model(torch.full((1, 4), V), None)
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True))


def test_each_step_computes_with_what_the_masters_are_by_then(model):
    masters = MasterWeights(model)
    for value in (1.0, 2.0):
        nn.init.constant_(model.norm.weight, value)
        with masters.halved():
            assert model.norm.weight.eq(value).all()


def test_micro_batches_add_up_in_fp32(model):
    tokens = torch.randint(V, (4, 17))
    masters, parts, seen = MasterWeights(model), [], []
    collect = masters.collect

    def watched():
        seen.append(model.blocks[0].mlp.up.weight.grad.float())
        collect()

    with masters.halved():
        for rows in tokens.split(1):
            hidden, _ = model(rows[:, :-1], None)
            model.head.nll(hidden, rows[:, 1:]).sum().backward()
            watched()
    parts = torch.stack(seen).double().sum(0)
    # Far below bf16's 2^-9: nothing was rounded on the way.
    torch.testing.assert_close(model.blocks[0].mlp.up.weight.grad.double(), parts, rtol=1e-5, atol=1e-9)


def test_a_large_matrix_holds_its_gradient_once_and_adds_it_up_as_a_small_one_does(monkeypatch):
    tokens, found = torch.randint(V, (4, 17)), {}
    for large in (1, 2**30):
        monkeypatch.setattr(master_weights, "LARGE", large)
        torch.manual_seed(0)
        model = compose_model(["model=transformer", "model.d_model=32", "model.n_heads=2"], V)
        masters = MasterWeights(model)
        with masters.halved():
            for rows in tokens.split(2):
                hidden, _ = model(rows[:, :-1], None)
                model.head.nll(hidden, rows[:, 1:]).sum().backward()
                up = model.blocks[0].mlp.up.weight
                assert (up.grad is None) == (large == 1), "moved while the others were still being made"
                masters.collect()
        found[large] = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert torch.equal(found[1], found[2**30])


def test_a_shared_matrix_has_one_copy_and_an_unused_one_no_gradient():
    a, b, unused = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    b.weight = a.weight
    masters = MasterWeights(nn.ModuleList((a, b, unused)))
    with masters.halved():
        assert a.weight is b.weight
        b(a(torch.eye(4, dtype=torch.bfloat16))).sum().backward()
        masters.collect()
    # d/dW sum(W W) = J W^T + W^T J with J all ones
    w, ones = a.weight.detach(), torch.ones(4, 4)
    torch.testing.assert_close(a.weight.grad, ones @ w.T + w.T @ ones, atol=0.05, rtol=0.02)
    assert unused.weight.grad is None


def test_torchs_own_recurrent_layers_compute_with_the_copies():
    rnn = nn.RNN(3, 4, batch_first=True)
    reference = copy.deepcopy(rnn).bfloat16()
    x = torch.randn(2, 5, 3).bfloat16()
    with MasterWeights(rnn).halved():
        assert torch.equal(rnn(x)[0], reference(x)[0])
    rnn(x.float())


def test_a_run_follows_fp32_and_saves_masters(train, tmp_path):
    for name, family in ("transformer", TRANSFORMER), ("lstm", [*LSTM, *DRY, "optimizer=adam", "optimizer.lr=0.01"]):
        exact = train(f"{name}_exact", *family)["training"]["history"]
        ours = train(name, *family, "precision=bf16", "training.micro_batch_size=3")
        for a, b in zip(exact, ours["training"]["history"], strict=True):
            assert b["val/loss"] == pytest.approx(a["val/loss"], abs=5e-3)
        assert exact[-1]["val/loss"] < exact[0]["val/loss"] - 0.1
        saved = weights(read(tmp_path / f"{name}/checkpoints/last.ckpt"))
        assert {w.dtype for w in saved.values()} == {torch.float32}
        assert any((w.bfloat16().float() != w).any() for w in saved.values()), "rounded"


def test_several_processes_are_refused(train):
    with pytest.raises(ValueError, match=r"precision=bf16 with devices=2.*use precision=bf16-mixed"):
        train("run", *TRANSFORMER, "precision=bf16", "trainer=ddp", "trainer.accelerator=cpu", "devices=2")


def test_without_units_for_bf16_it_is_taken_as_asked_and_the_log_says_what_that_costs(train, monkeypatch, tmp_path):
    from lmlab import hardware, speed

    for module in (speed, hardware):
        monkeypatch.setattr(module, "multiplies_bf16", lambda device: False)
    # Whether to compile is estimated from a peak, of which this machine has none in bf16.
    train("run", *TRANSFORMER, "precision=bf16", "compile=auto", "trainer.max_steps=1")
    assert "bf16, as asked: this machine has no units for bf16" in (tmp_path / "run/train.log").read_text()


def test_recurrent_copies_on_a_gpu_lie_in_cudnns_order():
    """Meta stands for a GPU. On a processor they are on their own, as aligned as they were."""
    model = compose_model(["model=lstm", "model.n_layers=2"], V)
    for device, pieces in (("meta", 1), ("cpu", 4)):
        with MasterWeights(model.to_empty(device=device)).halved():
            for layer in model.layers:
                copies = list(layer.parameters())
                assert [p.dtype for p in copies] == [torch.bfloat16] * 4
                assert len({p.untyped_storage()._cdata for p in copies}) == pieces
                if pieces == 1:
                    assert [p.storage_offset() for p in copies] == [
                        sum(q.numel() for q in copies[:i]) for i in range(4)
                    ]
                    assert [tuple(p.shape) for p in copies] == [tuple(p.shape) for p in layer._flat_weights]
