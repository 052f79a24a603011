import copy
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from lmlab.models import kernels
from lmlab.training import optim
from lmlab.training.optim import NTASGD, Muon, build, newton_schulz, parameter_groups

MUON = {
    "lr": 0.02,
    "momentum": 0.95,
    "ns_steps": 5,
    "scale": "original",
    "weight_decay": 0.1,
    "adam_lr": 3e-3,
    "adam_betas": (0.8, 0.95),
    "adam_eps": 1e-8,
    "adam_weight_decay": 0.01,
}


OPTIONS = sorted((Path(__file__).parents[2] / "conf/optimizer").glob("*.yaml"))


class Tiny(nn.Module):
    """Embedding, three hidden matrices of which two are of one shape when turned, a norm, a head tied or not."""

    def __init__(self, tie: bool):
        super().__init__()
        self.embedding = nn.Embedding(11, 4)
        self.up, self.down, self.square = nn.Linear(4, 8), nn.Linear(8, 4), nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 11, bias=False)
        if tie:
            self.head.weight = self.embedding.weight

    def forward(self, tokens):
        x = self.embedding(tokens)
        return self.head(self.norm(self.square(self.down(self.up(x).relu()))))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Tiny(tie=False)


def names(model, group):
    name_of = {id(p): name for name, p in model.named_parameters()}
    return {name_of[id(p)] for p in group["params"]}


def train(model, optimizer, steps, first=0):
    for step in range(first, first + steps):
        tokens = torch.randint(0, 11, (3, 5), generator=torch.Generator().manual_seed(step))
        nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()


# Groups


def test_hidden_matrices_are_told_from_embeddings_head_and_vectors(model):
    hidden, *others = parameter_groups(model, "hidden")
    assert names(model, hidden) == {"up.weight", "down.weight", "square.weight"}
    assert hidden["hidden"]
    assert "weight_decay" not in hidden
    assert not any(group["hidden"] for group in others)
    assert all(group["weight_decay"] == 0.0 for group in others)


def test_every_parameter_is_in_one_group_tied_or_not():
    for tie in (False, True):
        model = Tiny(tie)
        for decay in optim.DECAYED:
            held = [id(p) for group in parameter_groups(model, decay) for p in group["params"]]
            assert sorted(held) == sorted(id(p) for p in model.parameters())


def test_decay_of_weights_spares_vectors_and_decay_of_all_spares_nothing(model):
    spared = [names(model, g) for g in parameter_groups(model, "weights") if "weight_decay" in g]
    assert spared == [{"up.bias", "down.bias", "square.bias", "norm.weight", "norm.bias"}]
    assert not any("weight_decay" in g for g in parameter_groups(model, "all"))


def test_frozen_parameters_are_left_out_and_none_at_all_is_refused(model):
    model.up.requires_grad_(False)
    assert names(model, parameter_groups(model, "hidden")[0]) == {"down.weight", "square.weight"}
    with pytest.raises(ValueError, match="has no parameters to train"):
        parameter_groups(model.requires_grad_(False), "hidden")
    with pytest.raises(ValueError, match=r"training\.decay='some' must be one of all, weights, hidden"):
        parameter_groups(model, "some")


def test_any_optimizer_of_torch_is_built_and_keeps_the_rates_that_schedules_scale(model):
    optimizer = build(partial(torch.optim.RMSprop, lr=0.5, weight_decay=0.1), "hidden", model)
    assert [g["initial_lr"] for g in optimizer.param_groups] == [0.5, 0.5]
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.0]
    optimizer = build(partial(Muon, **MUON), "hidden", model)
    assert [g["initial_lr"] for g in optimizer.param_groups] == [0.02, 0.003]


# Muon


def test_newton_schulz_brings_singular_values_near_one():
    torch.manual_seed(0)
    matrices = torch.randn(3, 16, 48) * torch.tensor([1e-3, 1.0, 1e3]).view(3, 1, 1)
    result = newton_schulz(matrices, 5).float()
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.6
    assert values.max() < 1.25
    # The same singular vectors: U^T X V is diagonal for U S V^T = matrices.
    u, _, vt = torch.linalg.svd(matrices, full_matrices=False)
    inner = u.mT @ result @ vt.mT
    off_diagonal = inner - torch.diag_embed(inner.diagonal(dim1=-2, dim2=-1))
    assert off_diagonal.abs().max() < 1e-3


def test_a_zero_gradient_stays_zero():
    assert newton_schulz(torch.zeros(1, 3, 4), 5).eq(0).all()


def test_small_matrices_are_multiplied_in_float32_and_large_ones_where_bfloat16_is_fast(monkeypatch):
    optim._product_dtype.cache_clear()
    for fast, wanted in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda fast=fast: fast)
        assert newton_schulz(torch.randn(1, optim.LARGE, 200), 1).dtype is wanted
        assert newton_schulz(torch.randn(1, optim.LARGE - 1, 200), 1).dtype is torch.float32
        with kernels.using("plain"):
            assert newton_schulz(torch.randn(1, optim.LARGE, 200), 1).dtype is torch.float32
        optim._product_dtype.cache_clear()


def test_autocast_which_lightning_steps_within_changes_no_product():
    matrices = torch.randn(2, 32, 64)
    with kernels.using("plain"):
        expected = newton_schulz(matrices, 3)
        with torch.autocast("cpu", torch.bfloat16):
            found = newton_schulz(matrices, 3)
    assert found.dtype is torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize("scale", optim.SCALES)
def test_matrices_step_as_torch_muon(scale, monkeypatch):
    # torch.optim.Muon always multiplies in bfloat16; so do we here, that nothing but the order of sums differs.
    monkeypatch.setattr(optim, "_product_dtype", lambda *_: torch.bfloat16)
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape)) for shape in ((6, 4), (4, 6), (4, 4), (4, 6))]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    options = {key: MUON[key] for key in ("lr", "momentum", "ns_steps", "weight_decay")}
    peer = torch.optim.Muon(theirs, **options, adjust_lr_fn=scale)
    optimizer = Muon([{"params": ours, "hidden": True}], **MUON | {"scale": scale})
    for _ in range(3):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape)
            q.grad = p.grad.clone()
        optimizer.step()
        peer.step()
    for p, q in zip(ours, theirs, strict=True):
        # One bfloat16 rounding of an update of lr * sqrt(6 / 4), three times.
        torch.testing.assert_close(p, q, atol=5e-4, rtol=0)


def test_the_float32_step_is_the_exact_iteration():
    # One step from rest: update = lerp(g, 0.05 g, 0.95) is a multiple of g, and the iteration ignores its size.
    torch.manual_seed(0)
    p = nn.Parameter(torch.zeros(8, 4))
    p.grad = torch.randn(8, 4)
    Muon([{"params": [p], "hidden": True}], **MUON).step()
    a, b, c = optim.QUINTIC
    u, s, vt = torch.linalg.svd(p.grad.double(), full_matrices=False)
    s = s / s.norm()
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    expected = -0.02 * math.sqrt(2) * (u * s) @ vt
    torch.testing.assert_close(p.detach().double(), expected, atol=2e-6, rtol=0)


def test_all_that_is_no_hidden_matrix_steps_as_adamw(model):
    peer_model = copy.deepcopy(model)
    groups = parameter_groups(model, "all")
    optimizer = Muon(groups, **MUON)
    others = {name for group in groups if not group["hidden"] for name in names(model, group)}
    peers = [p for name, p in peer_model.named_parameters() if name in others]
    peer = torch.optim.AdamW(peers, lr=3e-3, betas=(0.8, 0.95), eps=1e-8, weight_decay=0.01)
    for step in range(3):
        torch.manual_seed(step)
        for (name, p), q in zip(model.named_parameters(), peer_model.parameters(), strict=True):
            if name in others:
                p.grad = torch.randn(p.shape)
                q.grad = p.grad.clone()
        optimizer.step()
        peer.step()
    for (name, p), q in zip(model.named_parameters(), peer_model.parameters(), strict=True):
        torch.testing.assert_close(p, q, msg=name)


def test_a_stack_of_matrices_steps_as_its_matrices():
    torch.manual_seed(0)
    stack = nn.Parameter(torch.randn(3, 6, 4))
    alone = [nn.Parameter(m.clone()) for m in stack.detach()]
    stack.grad = torch.randn(3, 6, 4)
    for p, gradient in zip(alone, stack.grad, strict=True):
        p.grad = gradient.clone()
    Muon([{"params": [stack], "hidden": True}], **MUON).step()
    Muon([{"params": alone, "hidden": True}], **MUON).step()
    torch.testing.assert_close(stack.detach(), torch.stack([p.detach() for p in alone]))


def test_muon_refuses_vectors_and_unknown_scales():
    with pytest.raises(ValueError, match="Muon is for matrices alone"):
        Muon([{"params": [nn.Parameter(torch.zeros(3))], "hidden": True}], **MUON)
    with pytest.raises(ValueError, match=r"optimizer\.scale='none' must be one of"):
        Muon([{"params": [nn.Parameter(torch.zeros(3, 3))], "hidden": True}], **MUON | {"scale": "none"})


# NT-ASGD


def nt_asgd(model, nonmono=2):
    return build(partial(NTASGD, lr=0.5, weight_decay=1e-3, nonmono=nonmono), "all", model)


def test_averaging_begins_when_the_best_before_the_last_checks_is_not_beaten(model):
    optimizer, triggered = nt_asgd(model), []
    for metric in (5.0, 4.0, 4.5, 4.4, 4.0, 4.1):
        optimizer.observe(metric)
        triggered.append(optimizer.triggered)
    # At 4.4 the checks but the last two are [5.0]; at 4.0 they are [5, 4], not beaten but equalled; at 4.1 [5, 4, 4.5].
    assert triggered == [False, False, False, False, False, True]


def test_before_averaging_it_is_plain_sgd(model):
    peer_model = copy.deepcopy(model)
    peer = torch.optim.SGD(peer_model.parameters(), lr=0.5, weight_decay=1e-3)
    optimizer = nt_asgd(model)
    train(model, optimizer, 3)
    train(peer_model, peer, 3)
    for p, q in zip(model.parameters(), peer_model.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    with optimizer.averaged():
        assert model.up.weight.equal(peer_model.up.weight) or torch.allclose(model.up.weight, peer_model.up.weight)


def test_the_average_is_of_all_iterates_since_the_trigger_and_only_within(model):
    optimizer = nt_asgd(model, nonmono=1)
    train(model, optimizer, 2)
    for metric in (1.0, 2.0, 2.0):
        optimizer.observe(metric)
    iterates = []
    for step in range(4):
        train(model, optimizer, 1, first=step)
        iterates.append(model.up.weight.detach().clone())
    with optimizer.averaged():
        torch.testing.assert_close(model.up.weight.detach(), torch.stack(iterates).mean(0))
    assert model.up.weight.equal(iterates[-1])


def test_the_average_is_put_away_after_an_error_too(model):
    optimizer = nt_asgd(model, nonmono=1)
    for metric in (1.0, 2.0, 2.0):
        optimizer.observe(metric)
    train(model, optimizer, 3)
    before = model.up.weight.detach().clone()
    with pytest.raises(KeyError), optimizer.averaged():
        raise KeyError
    assert model.up.weight.equal(before)


# Resuming


@pytest.mark.parametrize(
    "make",
    [partial(instantiate(OmegaConf.load(path)), lr=0.1) for path in OPTIONS],
    ids=[path.stem for path in OPTIONS],
)
def test_every_option_resumes_bit_for_bit(make, model, tmp_path):
    def observe(optimizer):
        if isinstance(optimizer, NTASGD):
            for metric in (1.0, *[2.0] * 6):
                optimizer.observe(metric)
            assert optimizer.triggered

    whole, first = model, copy.deepcopy(model)
    optimizer = build(make, "hidden", whole)
    train(whole, optimizer, 3)
    observe(optimizer)
    train(whole, optimizer, 4, first=3)

    optimizer = build(make, "hidden", first)
    train(first, optimizer, 3)
    observe(optimizer)
    train(first, optimizer, 2, first=3)
    torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "last.ckpt")
    second = Tiny(tie=False)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    second.load_state_dict(checkpoint["model"])
    optimizer = build(make, "hidden", second)
    optimizer.load_state_dict(checkpoint["optimizer"])
    train(second, optimizer, 2, first=5)
    for p, q in zip(whole.parameters(), second.parameters(), strict=True):
        assert p.equal(q)
    if isinstance(optimizer, NTASGD):
        assert optimizer.param_groups[0]["n_averaged"] == 4
