"""Weights that learn on: by hand, never from the future, and put back."""

import numpy as np
import pytest
import torch
from tests.evaluation.texts import Text, V
from torch import nn

from lmlab.config import compose
from lmlab.evaluation.cache import Cache
from lmlab.evaluation.dynamic import Dynamic, gradient_rms
from lmlab.evaluation.evaluate import evaluate
from lmlab.evaluation.protocol import batches, resolve
from lmlab.evaluation.scores import Keeper
from lmlab.instantiate import instantiate
from lmlab.models.ngram import NGramLM

OVERRIDES = {
    "lstm": ["model=lstm", "model.d_model=12", "model.n_layers=1"],
    "transformer": ["model=transformer", "model.d_model=12", "model.n_layers=1", "model.n_heads=2"],
}


@pytest.fixture(params=OVERRIDES)
def model(request):
    torch.manual_seed(0)
    node = compose(
        [*OVERRIDES[request.param], "model.max_context=9"] if request.param == "transformer" else OVERRIDES["lstm"]
    )
    return instantiate(node.model)(vocab_size=V, token_counts=torch.ones(V).long()).eval()


def measure(model, text=None, score=None):
    text = text or Text()
    protocol = resolve("carried", "32", model, lanes=1)
    keeper = Keeper(text, protocol)
    rows = batches(text, protocol, 0, batch_size=1)
    if score is None:
        evaluate(model, rows, "32", keep=keeper)
    else:
        with score.learning(model):
            evaluate(model, rows, "32", score=score, keep=keeper)
    return keeper.nats


def rms(model):
    rows = batches(Text(), resolve("carried", "32", model, lanes=4), 0, batch_size=4, chunk=10)
    return gradient_rms(model, rows, "32")


def test_a_rate_of_nothing_is_the_model_as_it_was(model):
    still = Dynamic(rms(model), lr=0.0, decay=0.1, segment=7, epsilon=1e-3)
    np.testing.assert_allclose(measure(model, score=still), measure(model), rtol=1e-5)


def test_it_learns_from_text_that_repeats_itself_and_is_put_back(model):
    before = {name: p.clone() for name, p in model.named_parameters()}
    text = Text(ids=[4, 7, 1, 9] * 25)
    even = {name: torch.full_like(p, 0.05) for name, p in model.named_parameters()}
    learning = Dynamic(even, lr=2e-2, decay=0.02, segment=5, epsilon=1e-3)
    assert measure(model, text, learning)[-20:].mean() < 0.7 * measure(model, text)[-20:].mean()
    assert all(torch.equal(before[name], p) and p.grad is None for name, p in model.named_parameters())


def test_what_comes_later_changes_nothing_before(model):
    ids = Text().ids.tolist()
    learning = Dynamic(rms(model), lr=1e-2, decay=0.02, segment=5, epsilon=1e-3)
    one = measure(model, Text(ids=ids), learning)
    other = measure(model, Text(ids=[*ids[:60], *reversed(ids[60:])]), learning)
    np.testing.assert_allclose(one[:60], other[:60], rtol=1e-6)
    assert (one[61:] != other[61:]).any()


class Bias(nn.Module):
    """P(1) = sigmoid(b), whatever was read."""

    recurrent, max_context, vocab_size = True, None, 2

    def __init__(self):
        super().__init__()
        self.b = nn.Parameter(torch.zeros(1))

    # It is its own; as an attribute it were its own child.
    head = property(lambda self: self)

    def forward(self, tokens, state=None):
        return self.b.expand(*tokens.shape, 1), tokens[:, -1:]

    def nll(self, hidden, targets):
        return nn.functional.softplus(hidden[..., 0] * (1 - 2 * targets))


def test_two_steps_by_hand():
    # Segments of one token, each a 1: nll = softplus(-b), whose gradient is -(1 - sigmoid(b)). With rms 0.3, epsilon
    # 0.2 and lr 0.1 the first step is b = 0 + 0.1 * 0.5 / 0.5 = 0.1. There is one weight, so rms / mean(rms) is 1 and
    # the pull back is 0.25 * (0 - 0.1) in the second: b = 0.1 + 0.1 * (1 - sigmoid(0.1)) / 0.5 - 0.025.
    model = Bias()
    learning = Dynamic({"b": torch.tensor([0.3])}, lr=0.1, decay=0.25, segment=1, epsilon=0.2)
    found = measure(model, Text(ids=[1, 1, 1]), learning)
    sigmoid = 1 / (1 + np.exp(-0.1))
    b = [0.0, 0.1, 0.1 + 0.2 * (1 - sigmoid) - 0.025]
    np.testing.assert_allclose(found, np.log1p(np.exp(-np.array(b))), rtol=1e-5)


def test_the_root_mean_square_of_gradients_by_hand():
    # Two batches of b = 0 (one lane, a token each): gradients -(1 - 1/2) for a 1 and 1/2 for a 0.
    rows = batches(Text(ids=[1, 0]), resolve("carried", "32", Bias(), lanes=1), 0, batch_size=1, chunk=1)
    assert gradient_rms(Bias(), rows, "32")["b"].item() == pytest.approx(0.5)


def test_a_model_that_counts_is_refused():
    model = NGramLM(vocab_size=V, order=2)
    model.fit(Text().ids, 0)
    with pytest.raises(ValueError, match="a model that counts has none of"):
        gradient_rms(model, batches(Text(), resolve("carried", "32", model, lanes=4), 0, batch_size=4), "32")


def test_with_a_cache_the_memory_is_carried_through_segments(model):
    cache = Cache(20, 0.5, 0.2)
    still = Dynamic(rms(model), lr=0.0, decay=0.0, segment=6, epsilon=1e-3, score=cache)
    text, protocol = Text(), resolve("carried", "32", model, lanes=1)
    keeper = Keeper(text, protocol)
    evaluate(model, batches(text, protocol, 0, 1), "32", score=cache, keep=keeper)
    np.testing.assert_allclose(measure(model, score=still), keeper.nats, rtol=1e-4)


def test_padding_teaches_nothing(model):
    learning = Dynamic(rms(model), lr=1e-2, decay=0.02, segment=5, epsilon=1e-3)
    text, protocol = Text(), resolve("carried", "32", model, lanes=1)
    keeper = Keeper(text, protocol)
    with learning.learning(model):
        # Batches of 40 leave 21 tokens in the last, which ends in whole segments of padding.
        evaluate(model, batches(text, protocol, 0, 1, chunk=40), "32", score=learning, keep=keeper)
    np.testing.assert_allclose(keeper.nats, measure(model, text, learning), rtol=1e-4)


def test_rows_side_by_side_are_refused(model):
    learning = Dynamic(rms(model), lr=0.1, decay=0.0, segment=5, epsilon=1e-3)
    rows = batches(Text(), resolve("carried", "32", model, lanes=2), 0, batch_size=2)
    with pytest.raises(ValueError, match="one row"), learning.learning(model):
        evaluate(model, rows, "32", score=learning)
