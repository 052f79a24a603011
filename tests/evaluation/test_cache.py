"""The cache against itself written out plainly, and at its edges."""

import math

import numpy as np
import pytest
import torch
from tests.evaluation.texts import Text, V

from lmlab.config import compose
from lmlab.evaluation.cache import Cache
from lmlab.evaluation.evaluate import evaluate
from lmlab.evaluation.protocol import batches, resolve
from lmlab.instantiate import instantiate


@pytest.fixture
def model():
    torch.manual_seed(0)
    node = compose(["model=lstm", "model.d_model=12", "model.n_layers=1"]).model
    return instantiate(node)(vocab_size=V, token_counts=torch.ones(V).long()).eval()


def measure(model, cache, lanes=1, chunk=128, text=None):
    """Nats of each token, in the order of the text."""
    text = text or Text()
    protocol, nats = resolve("carried", "32", model, lanes=lanes), np.full(len(text), np.nan)

    def keep(batch, nll):
        for row, start in enumerate(batch.starts.tolist()):
            counted = slice(None) if batch.mask is None else batch.mask[row]
            columns = torch.arange(nll.shape[1])[counted]
            nats[start + columns.numpy()] = nll[row, columns].numpy()

    rows = batches(text, protocol, 0, batch_size=8, chunk=chunk)
    how = {} if cache is None else {"score": cache}
    evaluate(model, rows, "32", keep=keep, **how)
    return nats


def plainly(model, text, size, theta, weight):
    """Equations 2 and 3 of Grave et al., one position after the other."""
    ids = text.ids.astype(int).tolist()
    inputs = torch.tensor([[0, *ids[:-1]]])
    with torch.inference_mode():
        hidden, _ = model(inputs, None)
        log_probs = model.head.log_probs(hidden)[0].double()
    h, found = hidden[0].double(), []
    for t, w in enumerate(ids):
        p = math.exp(log_probs[t, w])
        past = range(max(0, t - size), t)
        if past:
            weights = [math.exp(theta * float(h[t] @ h[i])) for i in past]
            pointed = sum(x for i, x in zip(past, weights, strict=True) if ids[i] == w) / sum(weights)
            p = (1 - weight) * p + weight * pointed
        found.append(-math.log(p))
    return np.array(found)


@pytest.mark.parametrize(("size", "theta", "weight"), [(5, 0.7, 0.3), (500, 2.0, 0.1), (17, 0.0, 0.5)])
def test_the_cache_is_the_papers_written_out(model, size, theta, weight):
    text = Text()
    found = measure(model, Cache(size, theta, weight), text=text)
    np.testing.assert_allclose(found, plainly(model, text, size, theta, weight), rtol=1e-5)


def test_the_memory_is_no_larger_than_the_text(model):
    """Of a thousand million places, a few hundred are ever filled."""
    large, enough = (measure(model, Cache(size, 0.3, 0.2)) for size in (10**9, 10**4))
    assert np.array_equal(large, enough)


def test_without_weight_it_is_the_model_alone(model):
    assert measure(model, Cache(20, 1.0, 0.0)).tolist() == measure(model, None).tolist()


def test_without_theta_it_counts(model):
    # Token 3 twice among the last four: half of the cache.
    text = Text(ids=[3, 5, 3, 7, 3])
    alone, found = measure(model, None, text=text), measure(model, Cache(4, 0.0, 0.25), text=text)
    assert math.exp(-found[4]) == pytest.approx(0.75 * math.exp(-alone[4]) + 0.25 * 0.5, rel=1e-6)
    # Nothing has been read before the first, and nothing like the second and fourth.
    assert found[0] == alone[0]
    assert math.exp(-found[3]) == pytest.approx(0.75 * math.exp(-alone[3]), rel=1e-6)


def test_chunks_change_nothing_and_each_lane_has_a_memory_of_its_own(model):
    cache = Cache(9, 0.5, 0.2)
    whole = measure(model, cache, lanes=3)
    np.testing.assert_allclose(measure(model, cache, lanes=3, chunk=4), whole, rtol=1e-5)
    # Each lane starts with nothing in its memory, as the model alone does.
    starts = [0, 33, 67]
    np.testing.assert_allclose(whole[starts], measure(model, None, lanes=3)[starts], rtol=1e-6)


def test_probabilities_of_the_next_token_sum_to_one(model):
    total = 0.0
    for w in range(V):
        total += math.exp(-measure(model, Cache(6, 1.5, 0.4), text=Text(ids=[4, 9, 4, 2, 9, w]))[-1])
    assert total == pytest.approx(1, rel=1e-5)


def test_windows_that_slide_have_no_memory(model):
    protocol = resolve("sliding", "32", model, max_context=6)
    with pytest.raises(ValueError, match="needs a state that is carried"):
        evaluate(model, batches(Text(), protocol, 0, 4), "32", score=Cache(5, 1.0, 0.1))


@pytest.mark.parametrize(("size", "theta", "weight"), [(0, 1.0, 0.1), (5, -1.0, 0.1), (5, 1.0, 1.0)])
def test_senseless_settings_are_refused(size, theta, weight):
    with pytest.raises(ValueError, match="cache"):
        Cache(size, theta, weight)
