"""The one evaluator: numbers depend on the protocol, never on how the work is grouped."""

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from lmlab.config import compose
from lmlab.data.store import Split
from lmlab.evaluation.evaluate import evaluate, score_batch
from lmlab.evaluation.protocol import batches, resolve
from lmlab.types import reset

V = 20
SMALL = ["model.d_model=12", "model.n_layers=1"]
MODELS = {
    "lstm": ["model=lstm", *SMALL],
    "transformer": ["model=transformer", *SMALL, "model.n_heads=2", "model.max_context=6"],
}


class Text(Split):
    """Three documents in memory; every token is one byte, one character, half a word."""

    def __init__(self):
        self.ids = np.random.default_rng(0).integers(0, V, 101).astype(np.uint16)
        self.n_bytes = self.n_chars = np.ones(101, np.uint8)
        self.n_words = (np.arange(101) % 2).astype(np.uint8)
        self.doc_starts = np.array([0, 40, 47])


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    return instantiate(compose(MODELS[request.param]).model)(vocab_size=V, token_counts=torch.ones(V).long())


def measure(model, policy, precision="32", **how):
    limits = {"max_context": 6} if policy == "sliding" and model.max_context is None else {}
    protocol = resolve(policy, precision, model, lanes=3 if policy != "documents" else None, **limits)
    return evaluate(model, batches(Text(), protocol, 0, **how), protocol.precision)


@pytest.mark.parametrize("policy", ["carried", "sliding", "documents"])
def test_numbers_do_not_depend_on_the_batch_size(model, policy):
    ones = measure(model, policy, batch_size=1)
    assert ones.tokens == ones.bytes == 101
    for how in ({"batch_size": 2}, {"batch_size": 64}, {"batch_size": 3, "chunk": 5}):
        other = measure(model, policy, **how)
        assert other.nats == pytest.approx(ones.nats, rel=1e-6)
        assert (other.tokens, other.bytes, other.words) == (ones.tokens, ones.bytes, ones.words)


@pytest.mark.parametrize("policy", ["carried", "sliding", "documents"])
def test_targets_that_do_not_count_are_not_scored_and_the_others_get_the_same_nll(model, policy):
    limits = {"max_context": 6} if policy == "sliding" and model.max_context is None else {}
    protocol = resolve(policy, "32", model, lanes=3 if policy != "documents" else None, **limits)
    masked, whole, state, model = 0, model.head.nll, None, model.eval()
    asked = []
    model.head.nll = lambda hidden, targets: asked.append(targets.numel()) or whole(hidden, targets)
    for batch in batches(Text(), protocol, 0, batch_size=3):
        before = None if batch.reset is None else reset(state, batch.reset)
        expected = whole(model(batch.inputs, before)[0], batch.targets)
        nll, state = score_batch(model, batch, state, "32")
        mask = torch.ones_like(batch.targets, dtype=torch.bool) if batch.mask is None else batch.mask
        torch.testing.assert_close(nll[mask], expected[mask], rtol=1e-6, atol=1e-6)
        assert not nll[~mask].any()
        assert nll.shape == batch.targets.shape
        masked += int((~mask).sum())
    assert masked
    assert sum(asked) == 101


def test_lower_precision_is_accepted_and_near(model):
    exact, rounded = measure(model, "auto", batch_size=8), measure(model, "auto", "bf16-mixed", batch_size=8)
    assert rounded.nats != exact.nats
    assert rounded.nats == pytest.approx(exact.nats, rel=0.01)


def test_the_models_mode_is_put_back_and_dropout_is_off(model):
    model.train()
    assert measure(model, "auto", batch_size=4).nats == measure(model, "auto", batch_size=4).nats
    assert model.training
    model.eval()
    measure(model, "auto", batch_size=4)
    assert not model.training


def test_progress_counts_every_scored_target(model):
    scored = []
    protocol = resolve("auto", "32", model, lanes=3)
    evaluate(model, batches(Text(), protocol, 0, batch_size=2), "32", on_batch=scored.append)
    assert sum(scored) == 101
