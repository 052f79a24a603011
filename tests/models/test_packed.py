"""Packed products: the same numbers, where they pay, and nothing left behind."""

from functools import partial
from itertools import product as product_of

import pytest
import torch
from tests.generation.toys import write
from tests.models.test_contract import build
from torch import nn

from lmlab import native
from lmlab.models import kernels
from lmlab.models import packed as module
from lmlab.models.head import LinearHead
from lmlab.models.lstm_layer import onednn_computes_in
from lmlab.models.packed import can_pack, is_ours, packed, pays, product
from lmlab.types import map_state

# The op is there on every build that the suite runs on but Apple's; whether it pays is another question.
needs_onednn = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"), reason="this build of torch has no oneDNN"
)
FAMILIES = ("lstm", "lstm awd", "lstm softcap", "transformer", "transformer alibi", "transformer window", "gpt2")


@pytest.fixture
def no_tiles(monkeypatch):
    monkeypatch.setattr(kernels, "have_tiles", lambda device: False)


@pytest.fixture
def everything(monkeypatch, no_tiles):
    """Every matrix is packed, however small, whatever the machine, and no step is one call; not where plain kernels are
    asked for."""
    monkeypatch.setattr(module, "can_pack", lambda weight: kernels.may_be_ours(weight.device))
    monkeypatch.setattr(module, "can_step", lambda model: False)
    monkeypatch.setattr(module, "SMALLEST", 1)
    monkeypatch.setattr(module, "LARGE", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


@pytest.fixture(params=["ours", "oneDNN"])
def whose(request, monkeypatch):
    if request.param == "ours" and not native.serves(torch.zeros(1)):
        pytest.skip("no compiled kernels")
    monkeypatch.setattr(module, "is_ours", lambda weight: request.param == "ours")
    return request.param


def log_probs(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Of each token read in a step of its own."""
    state, parts = None, []
    for token in tokens.split(1, 1):
        hidden, state = model(token, state)
        parts.append(model.head.log_probs(hidden))
    return torch.cat(parts, 1)


@needs_onednn
@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("name", FAMILIES)
def test_packed_steps_are_the_plain_ones(name, rows, everything, whose):
    model = build(name)
    tokens = torch.randint(13, (rows, 10), generator=torch.Generator().manual_seed(1))
    plain = log_probs(model, tokens)
    with packed(model, rows, 100):
        assert "multiply" in model.head.__dict__
        torch.testing.assert_close(log_probs(model, tokens), plain, atol=1e-5, rtol=1e-5)


@needs_onednn
@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("name", FAMILIES)
def test_steps_in_bf16_are_as_near_packed_as_under_autocast_alone(name, rows, everything, whose):
    if not onednn_computes_in(torch.bfloat16) and whose == "oneDNN":
        pytest.skip("oneDNN has no bf16 kernels for this processor, so nothing is packed in it")
    # One text may be unlucky.
    plain = ours = 0.0
    for seed in range(6):
        model = build(name, seed)
        tokens = torch.randint(13, (rows, 10), generator=torch.Generator().manual_seed(seed))
        exact = log_probs(model, tokens)
        with torch.autocast("cpu", torch.bfloat16):
            plain += (log_probs(model, tokens) - exact).square().sum()
            with packed(model, rows, 100):
                assert "multiply" in model.head.__dict__
                ours += (log_probs(model, tokens) - exact).square().sum()
    assert 0 < ours < 1.2 * plain


@needs_onednn
@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 64, 65])
def test_a_packed_product_is_a_linear_layer(rows, bias, whose):
    layer = nn.Linear(512, 1024, bias=bias)
    x = torch.randn(rows, 1, 512)
    torch.testing.assert_close(product(layer.weight, layer.bias)(x), layer(x), atol=1e-5, rtol=1e-5)


@needs_onednn
@torch.no_grad()
def test_weights_that_moved_in_between_are_packed_anew(everything, whose):
    layer = nn.Linear(8, 8)
    x = torch.randn(2, 8)
    for _ in range(2):
        with packed(layer, 2, 100):
            torch.testing.assert_close(layer(x), x @ layer.weight.T + layer.bias, atol=1e-5, rtol=1e-5)
        layer.weight.add_(1.0)


@needs_onednn
@pytest.mark.parametrize("fails", [True, False])
def test_nothing_stays_packed(fails, everything, whose):
    model = build("gpt2")
    before = [set(part.__dict__) for part in model.modules()]
    try:
        with packed(model, 1, 100):
            assert [set(part.__dict__) for part in model.modules()] != before
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert [set(part.__dict__) for part in model.modules()] == before


def test_small_matrices_and_many_rows_are_left_alone(monkeypatch, no_tiles):
    small, large = torch.empty(256, 256), torch.empty(3072, 768)
    for threads, expected in ((2, [True, True, True, False]), (1, [False, True, True, False])):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert [pays(large, rows, torch.float32, False) for rows in (1, 2, 64, 65)] == expected
        for dtype in (torch.float32, torch.bfloat16):
            assert not any(pays(small, rows, dtype, ours) for rows in (1, 2, 64, 65) for ours in (True, False))
            assert [pays(large, rows, dtype, True) for rows in (1, 2, 64, 65)] == [True, True, True, False]
        assert all(pays(large, rows, torch.bfloat16, False) for rows in (1, 2, 64, 65))
    monkeypatch.setattr(kernels, "have_tiles", lambda device: True)
    assert [pays(large, rows, torch.float32, False) for rows in (1, 2, 3, 64, 65)] == [False, False, True, True, False]


def test_what_is_packed_for_whom(monkeypatch):
    weight = torch.empty(8, 8)
    for compiled, half in product_of((True, False), repeat=2):
        monkeypatch.setattr(native, "serves", lambda *tensors, compiled=compiled: compiled)
        monkeypatch.setattr(module, "onednn_computes_in", lambda dtype, half=half: half)
        capable = torch.backends.cpu.get_cpu_capability() in module.CAPABLE
        assert not can_pack(weight.bfloat16())
        assert is_ours(weight) == compiled
        assert can_pack(weight) == (compiled or capable)
        with torch.autocast("cpu", torch.bfloat16):
            assert is_ours(weight) == (compiled and not half)
            assert can_pack(weight) == (is_ours(weight) or (half and capable))
        with torch.autocast("cpu", torch.float16):
            assert not can_pack(weight)


@needs_onednn
@pytest.mark.parametrize(("vocab_size", "steps", "expected"), [(5462, 16, True), (5462, 15, False), (5461, 16, False)])
def test_small_models_and_short_texts_are_left_alone(vocab_size, steps, expected, monkeypatch, no_tiles):
    monkeypatch.setattr(module, "can_pack", lambda weight: True)
    monkeypatch.setattr(module, "is_ours", lambda weight: False)
    head = LinearHead(768, vocab_size, bias=False, softcap=None)
    with packed(head, 2, steps):
        assert ("multiply" in head.__dict__) == expected


@needs_onednn
def test_both_kernels_write_the_same_text(everything, monkeypatch, whose):
    model = build("gpt2")
    tell = partial(write, model, ["ab", "abcd"], max_new_tokens=40, stop_at_eos=False)
    taken = []
    monkeypatch.setattr(module, "product", lambda *matrix: taken.append(matrix) or product(*matrix))
    for how in ({}, {"temperature": 1.0}, {"num_beams": 2}):
        plain = [[t.ids for t in texts] for texts in tell(kernels="plain", **how)]
        assert not taken
        assert [[t.ids for t in texts] for texts in tell(kernels="auto", **how)] == plain
        assert taken
        taken.clear()
    with pytest.raises(ValueError, match="kernels=fast"):
        tell(kernels="fast")


@torch.no_grad()
def test_rows_at_one_position_are_read_as_rows_apart():
    """One step of rows that stand level looks at slots in use alone; rows that do not stand so look at all, masked."""
    for name in ("transformer", "transformer alibi", "transformer window", "transformer bounded", "gpt2"):
        model = build(name)
        tokens = torch.randint(13, (2, 12), generator=torch.Generator().manual_seed(2))
        long = log_probs(model, tokens[:, :10])
        # The second row is put three tokens behind: it starts anew while the first goes on.
        state, parts = None, []
        for at in range(10):
            pair = torch.stack((tokens[0, at], tokens[1, max(at - 3, 0)]))[:, None]
            hidden, state = model(pair, state)
            parts.append(model.head.log_probs(hidden))
            if at == 2:
                state = map_state(lambda t: t.index_fill(0, torch.tensor([1]), 0), state)
        apart = torch.cat(parts, 1)
        torch.testing.assert_close(apart[0], long[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(apart[1, 3:], long[1, :7], atol=1e-5, rtol=1e-5)
