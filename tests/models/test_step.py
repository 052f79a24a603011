"""A step of all blocks in one call is the blocks' own, one after another, and is left alone where it would not be."""

import threading

import pytest
import torch
from tests.generation.toys import write
from tests.models.test_contract import CASES, TRANSFORMER, build
from tests.native.test_native import pytestmark  # noqa: F401
from torch import Tensor, nn

from lmlab.models import kernels
from lmlab.models import step as module
from lmlab.models.layers import LayerNorm, Linear
from lmlab.models.packed import packed
from lmlab.models.step import Step, can_step
from lmlab.models.transformer import TransformerLM
from lmlab.types import State, expand, select

# Other widths than the contract's, none a multiple of a vector's; every norm, MLP and kind of positions, with biases.
OTHERS = {
    "swiglu": ["mlp=swiglu", "d_ff=37", "norm=rms", "bias=true", "qk_norm=true"],
    "relu2": ["mlp=relu2", "d_ff=70", "norm=layer", "bias=false", "positions=none", "n_layers=null", "sublayers=fssff"],
    "gelu": ["mlp=gelu", "norm=layer", "bias=true", "positions=learned", "qk_norm=true"],
    "grouped alibi": ["n_heads=6", "n_kv_heads=2", "d_model=42", "positions=alibi", "window=4"],
    "grouped rotary": ["n_heads=3", "n_kv_heads=1", "d_model=15", "d_head=10", "window=7"],
}
NAMES = [name for name, (option, *_) in CASES.items() if option in ("transformer", "gpt2")]
# Whose attention is chosen by name.
NAMES = [name for name in NAMES if name not in ("transformer products", "transformer sdpa")] + list(OTHERS)


@pytest.fixture(autouse=True, scope="module")
def more_cases():
    with pytest.MonkeyPatch.context() as patch:
        for name, keys in OTHERS.items():
            patch.setitem(CASES, name, ["transformer", *TRANSFORMER, *keys])
        yield


def read(model: nn.Module, tokens: Tensor, start: int, state: State = None) -> tuple[Tensor, list[State]]:
    """The hidden vectors of tokens, the first `start` of them at once, and the state after each reading."""
    parts, states = [], []
    for part in tokens.split([start, *[1] * (tokens.shape[1] - start)], 1):
        hidden, state = model(part, state)
        parts.append(hidden.float())
        states.append(state)
    return torch.cat(parts, 1), states


def words(rows: int, n: int = 14) -> Tensor:
    return torch.randint(13, (rows, n), generator=torch.Generator().manual_seed(rows))


def stepped(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    assert can_step(model)
    model.__dict__["through"] = Step(model, dtype)
    return model


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("name", NAMES)
def test_steps_are_the_blocks_own(name, rows):
    model, tokens = build(name), words(rows)
    plain, states = read(model, tokens, 3)
    ours, ours_states = read(stepped(model), tokens, 3)
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
    for theirs, mine in zip(states[-1][3], ours_states[-1][3], strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_steps_in_bf16_are_as_near_as_under_autocast_alone(name):
    model, tokens = build(name), words(3)
    exact, _ = read(model, tokens, 3)
    with torch.autocast("cpu", torch.bfloat16):
        plain, states = read(model, tokens, 3)
        ours, ours_states = read(stepped(model, torch.bfloat16), tokens, 3)
    assert 0 < (ours - exact).norm() < 1.2 * (plain - exact).norm()
    assert [t.dtype for kv in ours_states[-1][3] for t in kv] == [t.dtype for kv in states[-1][3] for t in kv]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_row_is_the_same_alone_and_among_others_on_one_thread_and_on_two(dtype, monkeypatch):
    model, tokens = build("grouped rotary"), words(9)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        # So that the first token's product, which is PyTorch's, does not differ by itself.
        _, (state, *_) = read(model, tokens[:, :3], 3)
        stepped(model, dtype)
        all_rows, _ = read(model, tokens[:, 3:], 1, expand(state, 1))
        try:
            torch.set_num_threads(2)
            on_two, _ = read(model, tokens[:, 3:], 1, expand(state, 1))
        finally:
            torch.set_num_threads(1)
        assert torch.equal(on_two, all_rows)
        for few in ([4], [8, 0], [1, 2, 3]):
            some, _ = read(model, tokens[few, 3:], 1, select(state, torch.tensor(few)))
            assert torch.equal(some, all_rows[few])


@torch.no_grad()
def test_a_state_can_be_gone_on_from_twice():
    """What a step writes in place is not what an older state still needs."""
    for name in ("transformer", "grouped alibi", "gpt2"):
        model, tokens = stepped(build(name)), words(2)
        hidden, states = read(model, tokens, 3)
        # Further back than one step only where the ring holds all that was seen.
        for at in (13,) if name == "grouped alibi" else (3, 8, 13):
            again, _ = model(tokens[:, at : at + 1], states[at - 3])
            torch.testing.assert_close(again, hidden[:, at : at + 1], atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_a_prompt_as_long_as_the_window_or_longer_leaves_a_ring_to_go_on_from():
    for name in ("transformer window", "grouped alibi", "transformer bounded"):
        for start in (2, 3, 4, 5, 9):
            model, tokens = build(name), words(2)
            plain, _ = read(model, tokens, start)
            ours, _ = read(stepped(model), tokens, start)
            torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_what_is_no_single_step_goes_through_the_blocks(monkeypatch):
    model, tokens = build("transformer"), words(2)
    plain, states = read(model, tokens, 5)
    apart = select(states[0], torch.tensor([0, 1]))
    apart[0][1] -= 1
    apart[1][1] -= 1
    uneven, _ = model(tokens[:, 5:6], expand(apart, 1))
    monkeypatch.setattr(module.compiled, "run", None)
    stepped(model)
    torch.testing.assert_close(read(model, tokens, 14)[0], read(build("transformer"), tokens, 14)[0])
    torch.testing.assert_close(model(tokens[:, 5:7], states[0])[0], plain[:, 5:7], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(tokens[:, 5:6], apart)[0], uneven)
    with torch.enable_grad():
        assert model(tokens[:, 5:6], states[0])[0].requires_grad
    # With dropout it is drawn.
    assert model.train()(tokens[:, 5:6], states[0])[0].isfinite().all()
    model.eval()
    # The cache is fp32's.
    stepped(model, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(tokens[:, 5:6], states[0])[0].isfinite().all()


def watched(model):
    model.blocks[1].mlp.down.register_forward_hook(lambda module, given, out: out + 1)


def replaced(model):
    model.blocks[0].mlp = nn.Identity()


def wrapped(model):
    class Other(Linear):
        pass

    model.blocks[0].attention.out.__class__ = Other


def half(model):
    model.bfloat16()


def renamed(model):
    model.blocks[0].attention.kernel = "sdpa"


def of_another_kind(name: str, *keys: str):
    """The first block comes from a model that has these options instead."""

    def change(model):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(CASES, name, ["transformer", *TRANSFORMER, "qk_norm=true", *keys])
            model.blocks[0] = build(name).blocks[0]

    change.__name__ = name
    return change


def with_a_bias(model):
    model.blocks[0].attention.q_norm = LayerNorm(8, bias=True)


CHANGES = [watched, replaced, wrapped, half, renamed, with_a_bias, of_another_kind("mlp", "mlp=relu2")]
CHANGES += [of_another_kind("d_ff", "d_ff=7"), of_another_kind("eps", "norm_eps=0.1")]
CHANGES += [of_another_kind("norm", "norm=layer"), of_another_kind("heads", "n_heads=1", "d_head=8")]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_changed_model_is_left_alone(change, monkeypatch):
    monkeypatch.setitem(CASES, "normed", ["transformer", *TRANSFORMER, "qk_norm=true"])
    model = build("normed")
    assert can_step(model)
    change(model)
    assert not can_step(model)
    with packed(model, 1, 100):
        assert "through" not in model.__dict__


def test_a_model_that_is_watched_with_all_others_is_left_alone():
    handle = nn.modules.module.register_module_forward_hook(lambda module, given, out: None)
    try:
        assert not can_step(build("transformer"))
    finally:
        handle.remove()
    assert can_step(build("transformer"))


@torch.no_grad()
def test_numbers_that_lie_apart_or_are_wider_are_read_as_what_they_are():
    for name in ("grouped rotary", "grouped alibi"):
        model, tokens = build(name), words(2)
        plain, _ = read(model, tokens, 3)
        for block in model.blocks:
            block.mlp_norm.weight.data = block.mlp_norm.weight.data.repeat_interleave(2)[::2]
            block.attention.out.weight.data = block.attention.out.weight.data.t().contiguous().t()
        for table in ("cos", "sin", "slopes"):
            if (values := getattr(model, table)) is not None:
                setattr(model, table, values.double())
        torch.testing.assert_close(read(stepped(model), tokens, 3)[0].float(), plain, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_cache_of_other_rows_is_refused_as_without_steps():
    model = stepped(build("transformer"))
    _, states = read(model, words(1), 5)
    count, _, _, past = states[-2]
    place = model._place(1, count, past[0][0].shape[2], True, count.device, int(count))
    assert model.through(torch.ones(1, 1, 16), place, past)[0].isfinite().all()
    with pytest.raises(RuntimeError):
        model.through(torch.ones(3, 1, 16), place, past)


def test_scratch_is_the_models_type_whatever_is_made_by_default():
    model = build("transformer")
    expected = [t[0].ids for t in write(model, ["ab"], max_new_tokens=20)]
    try:
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("meta"):
            x, state = torch.zeros(1, 1, dtype=torch.long, device="cpu"), None
            through = Step(model, torch.float32)
        with torch.no_grad():
            plain = model(x, model(x, state)[1])[0]
            model.__dict__["through"] = through
            torch.testing.assert_close(model(x, model(x, state)[1])[0], plain, atol=1e-5, rtol=1e-5)
            del model.__dict__["through"]
    finally:
        torch.set_default_dtype(torch.float32)
    assert [t[0].ids for t in write(model, ["ab"], max_new_tokens=20)] == expected


def test_two_threads_write_with_one_model_and_a_text_within_a_text():
    model = build("transformer")
    expected = write(model, ["ab"], max_new_tokens=60)[0][0].ids
    found = []

    def many():
        for _ in range(15):
            found.append(write(model, ["ab"], max_new_tokens=60)[0][0].ids)

    threads = [threading.Thread(target=many) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 30
    inner = []
    how = {"max_new_tokens": 60, "on_text": lambda text: inner.append(write(model, ["ab"], max_new_tokens=20))}
    assert write(model, ["ab"], **how)[0][0].ids == expected
    assert [texts[0][0].ids for texts in inner] == [expected[:20]] * len(inner)
    assert inner
    assert "through" not in model.__dict__


def test_other_models_and_plain_kernels_are_left_alone():
    assert not can_step(build("lstm"))
    assert not can_step(build("transformer products"))

    class Mine(TransformerLM):
        pass

    model = build("transformer")
    with kernels.using("plain"):
        assert not can_step(model)
    model.__class__ = Mine
    assert not can_step(model)


def test_it_writes_the_text_that_the_blocks_write(monkeypatch):
    calls = []
    run = module.compiled.run
    monkeypatch.setattr(module.compiled, "run", lambda *given: calls.append(given) or run(*given))
    for name in NAMES:
        model = build(name)
        for how in ({}, {"temperature": 1.0, "num_samples": 3}, {"num_beams": 3}):
            plain, ours = (
                [[t.ids for t in texts] for texts in write(model, ["ab", "b"], max_new_tokens=20, kernels=k, **how)]
                for k in ("plain", "auto")
            )
            assert ours == plain
        assert not any({"through", "forward"} & set(part.__dict__) for part in model.modules())
    assert calls
