"""kernels=plain takes PyTorch's own operations alone, in every model; auto takes ours, with the same numbers."""

import pytest
import torch
import torch.nn.functional as F
from tests.models.test_contract import LEARNED, B, T, V, build
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from lmlab.models import cross_entropy, kernels, lstm_layer, workspace
from lmlab.models.dropout import Dropout, LockedDropout, drop_weights
from lmlab.models.layers import MLP
from lmlab.models.mask_pool import PooledDropout

CPU = torch.device("cpu")


def own_functions(loss: Tensor) -> set[str]:
    """Names of the autograd functions below a loss that are written in Python."""
    found, seen, left = set(), set(), [loss.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, BackwardCFunction):
            found.add(type(node).__name__.removesuffix("Backward"))
        left += [before for before, _ in node.next_functions]
    return found


def trained(model: nn.Module, how: str) -> tuple[float, dict[str, Tensor], set[str]]:
    """Loss, gradients and own functions of a step on the same tokens."""
    tokens = torch.randint(V, (B, T + 1), generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    with kernels.using(how):
        hidden, _ = model(tokens[:, :-1], None)
        loss = model.head.nll(hidden, tokens[:, 1:]).mean()
        own = own_functions(loss)
        loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}, own


@pytest.fixture
def everything(monkeypatch):
    """However small, the logits are worked out in blocks."""
    monkeypatch.setattr(cross_entropy, "SMALL", 0)


@pytest.mark.parametrize("name", LEARNED)
def test_plain_takes_no_function_of_ours_and_agrees_with_auto(name, everything):
    # In evaluation mode, where nothing is drawn; gradients flow all the same.
    model = build(name)
    loss, gradients, own = trained(model, "auto")
    plain_loss, plain_gradients, plain_own = trained(model, "plain")
    assert "_BlockNLL" in own
    assert not plain_own
    assert loss == pytest.approx(plain_loss, rel=1e-5)
    torch.testing.assert_close(gradients, plain_gradients, atol=1e-5, rtol=1e-4)


def test_auto_takes_the_paths_that_plain_leaves(everything):
    assert "_Shared" in trained(build("lstm"), "auto")[2]
    assert "_Products" in trained(build("transformer"), "auto")[2]
    squared = MLP("relu2", 4, 8, bias=True)
    assert own_functions(squared(torch.randn(1, 2, 4)).sum()) == {"_SquaredReLU"}
    x = torch.randn(1, 2, 4)
    with kernels.using("plain"):
        plain = squared(x)
        assert not own_functions(plain.sum())
    assert torch.equal(plain, squared(x))


def test_plain_layers_are_nn_lstm(monkeypatch):
    x, w = torch.zeros(3, 8, 16, dtype=torch.bfloat16), torch.zeros(64, 16)
    monkeypatch.setattr(lstm_layer, "onednn_computes_in", lambda dtype: True)
    monkeypatch.setattr(lstm_layer, "SMALLEST", 0)
    assert lstm_layer.is_quicker(x, w)
    with torch.no_grad():
        assert lstm_layer.is_step(x[:1].float())
    with kernels.using("plain"):
        assert not lstm_layer.is_quicker(x, w)
        with torch.no_grad():
            assert not lstm_layer.is_step(x[:1].float())


@torch.no_grad()
@pytest.mark.parametrize("name", ["lstm", "transformer alibi", "gpt2"])
def test_steps_of_one_token_agree(name):
    model, scores = build(name), []
    tokens = torch.randint(V, (B, T), generator=torch.Generator().manual_seed(1))
    for how in kernels.KERNELS:
        state, parts = None, []
        with kernels.using(how):
            for token in tokens.split(1, 1):
                hidden, state = model(token, state)
                parts.append(model.head.log_probs(hidden))
        scores.append(torch.cat(parts, 1))
    torch.testing.assert_close(*scores, atol=1e-5, rtol=1e-5)


def test_plain_dropout_is_torchs():
    x, p = torch.randn(6, 5), 0.3

    def after(f) -> Tensor:
        torch.manual_seed(0)
        return f()

    theirs = after(lambda: F.dropout(x, p))
    with kernels.using("plain"):
        for ours in (Dropout(p), PooledDropout(p), lambda x: drop_weights(x, p)):
            assert torch.equal(after(lambda ours=ours: ours(x)), theirs)
        locked = after(lambda: LockedDropout(p)(x[None]))
    assert torch.equal(locked, x[None] * after(lambda: F.dropout(torch.ones(1, 1, 5), p)))


def test_plain_leaves_the_heap_alone(monkeypatch):
    asked = []
    monkeypatch.setattr(workspace, "_glibc", lambda: asked.append("libc"))
    with kernels.using("plain"), workspace.kept():
        pass
    assert not asked
    with workspace.kept():
        pass
    assert asked


def test_auto_is_as_plain_as_what_is_around_it():
    assert kernels.may_be_ours(CPU)
    with kernels.using("plain"):
        with kernels.using("auto"):
            assert kernels.are_plain()
        assert not kernels.may_be_ours(CPU)
    assert not kernels.are_plain()
    with pytest.raises(KeyError), kernels.using("plain"):
        raise KeyError
    assert not kernels.are_plain(), "an error left the choice behind"
    with pytest.raises(ValueError, match="kernels=fast is not an option: choose auto, plain"), kernels.using("fast"):
        pass


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_what_was_written_for_a_processor_stays_there(device):
    assert not kernels.may_be_ours(torch.device(device))
