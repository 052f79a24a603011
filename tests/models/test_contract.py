"""What every model promises, tried on every option of conf/model and on variants that take other paths."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig

from lmlab.types import expand, map_state, reset, select

CONF = Path(__file__).parents[2] / "conf"
V, B, T = 13, 3, 10

# How each option becomes tiny. A new option of conf/model needs a line here.
LSTM = ["d_model=8"]
TRANSFORMER = ["d_model=16", "n_layers=2", "n_heads=2", "max_context=16"]
TINY = {"lstm": LSTM, "transformer": TRANSFORMER, "gpt2": TRANSFORMER, "ngram": ["order=3"], "unigram": []}
# Those are fitted by counting: no parameters, no gradients.
COUNTED = ("ngram", "unigram")
AWD = ["n_layers=3", "d_embed=6", "d_hidden=10", "d_model=6", "locked=true", "dropout_words=0.1", "weight_drop=0.5"]
MIXTURE = ["head=mixture", "head.n_experts=3"]
ADAPTIVE = ["head=adaptive", "tie_embeddings=false", "head.cutoffs=[4,8]", "head.div_value=2.0"]
VARIANTS = {
    "lstm awd": ["lstm", *LSTM, *AWD],
    "lstm gru": ["lstm", *LSTM, "cell=gru", "d_embed=6"],
    "lstm rnn_tanh free": ["lstm", *LSTM, "cell=rnn_tanh", "tie_embeddings=false", "d_embed=6"],
    "lstm adaptive": ["lstm", *LSTM, *ADAPTIVE],
    "lstm mixture": ["lstm", *LSTM, *MIXTURE],
    "lstm softcap": ["lstm", *LSTM, "head.softcap=5.0"],
    "transformer bounded": ["transformer", *TRANSFORMER, "max_context=4"],
    "transformer window": ["transformer", *TRANSFORMER, "window=3", "n_kv_heads=1", "embed_ngram=3"],
    "transformer alibi": ["transformer", *TRANSFORMER, "positions=alibi", "window=5"],
    "transformer fsf": ["transformer", *TRANSFORMER, "n_layers=null", "sublayers=fsf"],
    "transformer products": ["transformer", *TRANSFORMER, "attention=products", "window=4"],
    "transformer sdpa": ["transformer", *TRANSFORMER, "attention=sdpa", "positions=alibi"],
    "transformer adaptive": ["transformer", *TRANSFORMER, *ADAPTIVE],
    "transformer mixture": ["transformer", *TRANSFORMER, *MIXTURE],
}
OPTIONS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
CASES = {option: [option, *TINY.get(option, [])] for option in OPTIONS} | VARIANTS
LEARNED = [name for name, (option, *_) in CASES.items() if option not in COUNTED]


@cache
def config(name: str) -> DictConfig:
    option, *overrides = CASES[name]
    keys = [f"model/{o}" if o.startswith("head=") else f"model.{o}" for o in overrides]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(overrides=[f"+model={option}", *keys]).model


def build(name: str, seed: int = 0) -> torch.nn.Module:
    """The case's model with random weights, or fitted to random text, in evaluation mode."""
    torch.manual_seed(seed)
    model = instantiate(config(name))(vocab_size=V, token_counts=torch.randint(100, (V,)))
    if CASES[name][0] in COUNTED:
        model.fit(np.random.default_rng(seed).integers(0, V, 500), start_id=0)
    else:
        for p in model.parameters():  # away from zeros and from tiny scales, where mistakes hide
            torch.nn.init.normal_(p, std=0.5)
    return model.eval()


@pytest.fixture(params=CASES)
def model(request) -> torch.nn.Module:
    return build(request.param)


@pytest.fixture(params=LEARNED)
def learned(request) -> torch.nn.Module:
    return build(request.param)


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(1))


def read(model, tokens, state=None):
    hidden, state = model(tokens, state)
    return model.head.log_probs(hidden), state


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_every_option_is_made_tiny_here():
    assert sorted(TINY) == OPTIONS


def test_a_model_says_what_it_is(model, tokens):
    hidden, state = model(tokens, None)
    assert hidden.shape == (B, T, model.d_model)
    assert model.vocab_size == V == model.head.logits(hidden).shape[-1]
    assert isinstance(model.recurrent, bool)
    assert model.max_context is None or model.max_context > 0
    shapes = []
    map_state(lambda t: shapes.append(t.shape) or t, state)
    assert shapes
    assert all(shape[0] == B for shape in shapes)


def test_probabilities_sum_to_one(model, tokens):
    log_probs, _ = read(model, tokens)
    close(log_probs.exp().sum(-1), torch.ones(B, T))


def test_log_probs_are_the_log_softmax_of_logits(model, tokens):
    hidden, _ = model(tokens, None)
    close(F.log_softmax(model.head.logits(hidden).float(), -1), model.head.log_probs(hidden))


def test_nll_is_minus_the_log_prob_of_the_target(model, tokens):
    hidden, _ = model(tokens, None)
    targets = tokens.roll(3, 1)
    nll = model.head.nll(hidden, targets)
    assert nll.dtype == torch.float32
    close(nll, -model.head.log_probs(hidden).gather(-1, targets[..., None])[..., 0])


def test_future_tokens_do_not_change_the_past(model, tokens):
    for cut in (1, T // 2, T - 1):
        other = tokens.clone()
        other[:, cut:] = (other[:, cut:] + 1) % V
        close(read(model, tokens)[0][:, :cut], read(model, other)[0][:, :cut])


def test_no_gradient_flows_from_the_past_to_future_tokens(learned, tokens, monkeypatch):
    embedded, embedding = [], F.embedding

    def capture(ids, *args, **kwargs):
        out = embedding(ids, *args, **kwargs)
        out.retain_grad()
        embedded.append((out, ids.shape.index(T)))
        return out

    monkeypatch.setattr(F, "embedding", capture)
    log_probs, _ = read(learned, tokens)
    t = T // 2
    (log_probs[:, t] * torch.randn(V)).sum().backward()
    assert embedded
    for out, dim in embedded:
        assert out.grad.narrow(dim, t, 1).abs().sum() > 0
        assert out.grad.narrow(dim, t + 1, T - t - 1).abs().sum() == 0


@pytest.mark.parametrize("sizes", [[4, 6], [1, 5, 1, 3], [1] * T], ids=["halves", "uneven", "tokens"])
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_chunked_equals_whole(model, tokens, sizes, grad):
    with torch.set_grad_enabled(grad):
        whole, _ = read(model, tokens)
        state, parts = None, []
        for chunk in tokens.split(sizes, 1):
            part, state = read(model, chunk, state)
            parts.append(part)
        close(torch.cat(parts, 1), whole)


def test_gradients_reach_every_parameter(learned, tokens):
    learned.train()
    # Two passes: dropout may silence a parameter of a tiny model once.
    for shift in (1, 2):
        hidden, _ = learned(tokens, None)
        learned.head.nll(hidden, (tokens + shift) % V).sum().backward()
    silent = [name for name, p in learned.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


@pytest.mark.parametrize("name", CASES)
def test_save_then_load_is_exact(name, tokens, tmp_path):
    saved, fresh = build(name), build(name, seed=1)
    torch.save(saved.state_dict(), tmp_path / "model.pt")
    fresh.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert torch.equal(read(fresh, tokens)[0], read(saved, tokens)[0])


def test_a_zeroed_row_of_the_state_is_the_start_of_text(model, tokens):
    old, new = tokens[:, :6], tokens[:, 6:]
    _, state = model(old, None)
    rows = torch.tensor([False, True, False])
    after, _ = read(model, new, reset(state, rows))
    close(after[1], read(model, new)[0][1])
    close(after[[0, 2]], read(model, tokens)[0][[0, 2], 6:])
    zeros = map_state(torch.zeros_like, state)
    close(read(model, new, zeros)[0], read(model, new)[0])


def test_rows_of_a_state_can_be_selected_and_repeated(model, tokens):
    old, new = tokens[:, :6], tokens[:, 6:]
    _, state = model(old, None)
    after, _ = read(model, new, map_state(torch.clone, state))
    rows = torch.tensor([2, 0, 0])
    close(read(model, new[rows], select(state, rows))[0], after[rows])
    close(read(model, new.repeat_interleave(2, 0), expand(state, 2))[0], after.repeat_interleave(2, 0))


def test_a_row_does_not_depend_on_its_neighbours(model, tokens):
    close(read(model, tokens[1:2])[0], read(model, tokens)[0][1:2])
