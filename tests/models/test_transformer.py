from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from lmlab import types

CONF = str(Path(__file__).parents[2] / "conf")
V = 17
TINY = {"d_model": 32, "n_layers": 3, "n_heads": 4, "max_context": 8, "init_std": 0.2}


def build(option="transformer", vocab_size=V, **changes):
    with initialize_config_dir(CONF, version_base=None):
        cfg = compose(overrides=[f"+model={option}"]).model
    for key, value in changes.items():
        cfg[key] = value
    torch.manual_seed(0)
    return instantiate(cfg)(vocab_size=vocab_size).eval()


def tiny(**changes):
    return build(**(TINY | changes))


def tokens(B, T):
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(1))


def in_chunks(model, x, sizes, state=None):
    hidden = []
    for part in x.split(sizes, dim=1):
        h, state = model(part, state)
        hidden.append(h)
    return torch.cat(hidden, 1), state


def assert_equal(a, b):
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


# Two bands long and more, so that the ring wraps.
SPLITS = ([1] * 11, [3, 1, 1, 6], [4, 4, 3], [10, 1], [2, 9])


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("positions", ["rotary", "alibi", "none"])
def test_chunks_equal_the_whole(positions, window, grad):
    model = tiny(positions=positions, window=window, embed_ngram=3, n_kv_heads=2, n_layers=2, max_context=4)
    x = tokens(2, 11)
    with torch.set_grad_enabled(grad):
        whole, _ = model(x)
        for sizes in SPLITS:
            assert_equal(in_chunks(model, x, list(sizes))[0], whole)


def test_a_window_of_one_needs_no_cache():
    model = tiny(window=1)
    x = tokens(2, 5)
    with torch.no_grad():
        assert_equal(in_chunks(model, x, [2, 1, 2])[0], model(x)[0])


@pytest.mark.parametrize("sizes", [[1] * 8, [3, 1, 1, 3], [7, 1]])
def test_chunks_equal_the_whole_with_learned_positions(sizes):
    model = tiny(positions="learned", window=3)
    x = tokens(2, 8)
    with torch.no_grad():
        assert_equal(in_chunks(model, x, sizes)[0], model(x)[0])


def test_gradients_flow_through_a_carried_state():
    model = tiny()
    x = tokens(2, 21)
    model(x)[0].square().sum().backward()
    whole = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    in_chunks(model, x, [4, 9, 8])[0].square().sum().backward()
    for p, g in zip(model.parameters(), whole, strict=True):
        torch.testing.assert_close(p.grad, g, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("positions", ["rotary", "learned", "alibi", "none"])
def test_future_tokens_do_not_change_the_past(positions, window):
    model = tiny(positions=positions, window=window, embed_ngram=2)
    x = tokens(1, 8)
    y = x.clone()
    y[:, 5:] = (y[:, 5:] + 1) % V
    assert torch.equal(model(x)[0][:, :5], model(y)[0][:, :5])


def test_a_layer_hears_of_its_window_and_no_more():
    model = tiny(n_layers=1, window=3, init_std=0.5)
    x = tokens(1, 8)
    hidden, _ = model(x)
    for t in range(8):
        y = x.clone()
        y[:, t] = (y[:, t] + 1) % V
        changed = (model(y)[0] - hidden).abs().amax(-1)[0] > 1e-6
        assert changed.tolist() == [t <= s < t + 3 for s in range(8)]


def test_rows_may_stand_at_different_positions():
    model = tiny(embed_ngram=2)
    a, b, x = tokens(1, 3), tokens(1, 14).flip(1), tokens(2, 10)
    with torch.no_grad():
        # Rings of equal size: every state that was continued has full ones.
        states = [in_chunks(model, row, [1, row.shape[1] - 1])[1] for row in (a, b)]
        state = merge(*states)
        for sizes in ([10], [1] * 10, [2, 1, 7]):
            together, _ = in_chunks(model, x, sizes, types.select(state, torch.arange(2)))
            for i, row in enumerate((a, b)):
                alone = model(torch.cat((row, x[i : i + 1]), 1))[0][:, -10:]
                assert_equal(together[i : i + 1], alone)


def merge(*states):
    if isinstance(states[0], torch.Tensor):
        return torch.cat(states)
    return tuple(merge(*parts) for parts in zip(*states, strict=True))


@pytest.mark.parametrize("n", [3, 8, 13])
def test_a_zero_row_is_the_start_of_text(n):
    model = tiny(embed_ngram=3)
    x = tokens(2, 10)
    with torch.no_grad():
        _, state = model(tokens(2, n).flip(1))
        for sizes in ([10], [1] * 10):
            again = types.reset(state, torch.tensor([True, False]))
            assert_equal(in_chunks(model, x, sizes, again)[0][0], model(x)[0][0])


def test_a_step_writes_into_the_cache():
    model = tiny()
    with torch.no_grad():
        _, state = model(tokens(2, 10))
        _, new = model(tokens(2, 1), state)
    assert [k.data_ptr() for k, _ in new[3]] == [k.data_ptr() for k, _ in state[3]]


def test_a_step_with_gradients_leaves_the_cache_alone():
    model = tiny()
    _, state = model(tokens(2, 10))
    before = types.map_state(torch.clone, state)
    model(tokens(2, 1), state)
    assert torch.equal(before[3][0][0], state[3][0][0])


@pytest.mark.parametrize("n", [2, 6, 20])
def test_branching_from_a_state_spoils_neither_branch(n):
    model = tiny()
    x, a, b = tokens(2, n), tokens(2, 2), tokens(2, 2).flip(1)
    with torch.no_grad():
        _, state = in_chunks(model, x, [1, n - 1])
        _, left = model(a[:, :1], state)
        _, right = model(b[:, :1], state)
        for state, branch in ((left, a), (right, b)):
            whole = model(torch.cat((x, branch), 1))[0][:, -1:]
            assert_equal(model(branch[:, 1:], state)[0], whole)


def test_going_back_to_what_was_overwritten_is_refused():
    model = tiny()
    with torch.no_grad():
        _, state = in_chunks(model, tokens(2, 10), [1, 9])
        kept = types.select(state, torch.arange(2))
        in_chunks(model, tokens(2, 2), [1, 1], state)
        with pytest.raises(ValueError, match="continued by 2 tokens, which overwrote what it needs"):
            model(tokens(2, 1), state)
        model(tokens(2, 1), kept)


def test_going_back_further_works_while_the_text_fits_the_window():
    model = tiny()
    x = tokens(2, 6)
    with torch.no_grad():
        _, state = in_chunks(model, x[:, :3], [2, 1])
        in_chunks(model, x[:, 3:].flip(1), [1, 1, 1], state)
        for sizes in ([1, 1, 1], [3]):
            assert_equal(in_chunks(model, x[:, 3:], sizes, state)[0], model(x)[0][:, 3:])


def test_steps_may_change_between_inference_and_training():
    model = tiny()
    x = tokens(2, 12)
    whole = model(x)[0].detach()
    with torch.inference_mode():
        _, state = in_chunks(model, x[:, :9], [1, 8])
    with torch.no_grad():
        h, state = model(x[:, 9:10], state)
        assert_equal(h, whole[:, 9:10])
    h, state = model(x[:, 10:11], state)
    assert_equal(h, whole[:, 10:11])
    with torch.inference_mode():
        assert_equal(model(x[:, 11:], state)[0], whole[:, 11:])


@pytest.mark.parametrize(("norm", "positions"), [("rms", "rotary"), ("layer", "alibi")])
def test_bf16_steps_follow_bf16_training(norm, positions):
    model = tiny(norm=norm, positions=positions)
    x = tokens(2, 12)
    with torch.autocast("cpu", torch.bfloat16):
        h, _ = model(x)
        h.sum().backward()
        with torch.no_grad():
            steps, state = in_chunks(model, x, [9, 1, 1, 1])
    torch.testing.assert_close(steps, h, atol=0.1, rtol=0.1)
    with torch.no_grad():
        model(x[:, :1], state)  # and out of autocast again


def test_zero_projections_pass_the_embedding_through_at_the_start():
    model = tiny(zero_init_out=True)
    x = tokens(2, 5)
    assert_equal(model(x)[0], model.norm(model.embed(x, None)[0]))


def test_residual_projections_start_smaller():
    model = tiny(d_model=128, init_std=0.02)
    for name, p in model.blocks.named_parameters():
        if p.ndim == 2:
            out = name.endswith(("out.weight", "down.weight"))
            assert p.std().item() == pytest.approx(0.02 / 6**0.5 if out else 0.02, rel=0.05), name


def test_gpt2_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = build("gpt2", vocab_size=50257)
    assert sum(p.numel() for p in model.parameters()) == 124_439_808


def test_facts_that_others_ask_for():
    model = tiny(positions="learned")
    assert (model.max_context, model.vocab_size, model.d_model) == (8, V, 32)
    assert not model.recurrent
    assert not model.slides
    assert tiny().slides


def test_learned_positions_end_at_max_context():
    model = tiny(positions="learned")
    _, state = model(tokens(2, 8))
    for x, s in ((tokens(2, 9), None), (tokens(2, 1), state)):
        with pytest.raises(ValueError, match="a text of 9 tokens exceeds max_context=8"):
            model(x, s)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_heads": 5}, "d_model=32 must be a multiple of n_heads=5: n_heads=1 suits it, or set d_head"),
        ({"d_model": 200, "n_heads": 3}, "n_heads=4 suits it"),
        ({"n_kv_heads": 3}, "n_heads=4 must be a multiple of n_kv_heads=3"),
        ({"d_model": 12}, "d_head=3 must be even with positions=rotary"),
        ({"n_kv_heads": 0}, "n_heads=4 must be a multiple of n_kv_heads=0"),
        ({"window": 0}, "model.window=0 must lie between 1 and model.max_context=8"),
        ({"window": 9}, "model.window=9 must lie between 1 and model.max_context=8"),
        ({"positions": "sinusoidal"}, "positions=sinusoidal is not an option: choose rotary, learned, alibi, none"),
    ],
)
def test_what_cannot_be_built_says_why(changes, message):
    with pytest.raises(Exception, match=message):  # Hydra wraps the ValueError
        tiny(**changes)


def test_sublayers_come_in_the_order_asked():
    model = tiny(n_layers=None, sublayers="fsf")
    kinds = [name for block in model.blocks for name in ("attention", "mlp") if getattr(block, name) is not None]
    assert kinds == ["mlp", "attention", "mlp"]
    # By hand: x + mlp(norm(x)), then the usual block.
    x = model.embed(tokens(2, 8), None)[0]
    first, second = model.blocks
    x = x + first.mlp(first.mlp_norm(x))
    place = model._place(8, None, None, False, x.device)
    x = x + second.attention(second.attention_norm(x), place, None)[0]
    x = x + second.mlp(second.mlp_norm(x))
    torch.testing.assert_close(model(tokens(2, 8))[0], model.norm(x))


def test_the_usual_order_spelt_out_is_the_usual_model():
    usual, spelt = tiny(n_layers=2), tiny(n_layers=None, sublayers="sfsf")
    spelt.load_state_dict(usual.state_dict())
    assert torch.equal(spelt(tokens(2, 8))[0], usual(tokens(2, 8))[0])


@pytest.mark.parametrize(
    ("n_layers", "sublayers", "message"),
    [
        (None, "ff", "at least one s"),
        (None, "sax", r"model\.sublayers=sax must be of s"),
        (2, "sf", r"model\.n_layers=2 with model\.sublayers=sf"),
        (None, None, "n_layers=None must be at least 1"),
        (0, None, "n_layers=0 must be at least 1"),
    ],
)
def test_orders_that_mean_nothing_are_refused(n_layers, sublayers, message):
    with pytest.raises(ValueError, match=message):
        tiny(n_layers=n_layers, sublayers=sublayers)
