"""Temperature and the tuning of what says auto."""

from functools import partial

import numpy as np
import pytest
import torch
from tests.evaluation.texts import Text, V

from lmlab.config import compose, plain
from lmlab.evaluation.adaptation import TEMPERATURES, Tempered, adapt, check, tune_temperature
from lmlab.evaluation.cache import THETAS, Cache
from lmlab.evaluation.evaluate import evaluate
from lmlab.evaluation.protocol import batches, resolve
from lmlab.instantiate import instantiate

WANTED = plain(compose(config_name="evaluate"))


@pytest.fixture(params=["linear", "mixture", "adaptive"])
def model(request):
    torch.manual_seed(0)
    head = [f"model/head={request.param}"]
    if request.param == "adaptive":
        head += ["model.head.cutoffs=[5]", "model.tie_embeddings=false"]
    node = compose(["model=lstm", "model.d_model=12", "model.n_layers=1", "model.init_range=1.0", *head]).model
    return instantiate(node)(vocab_size=V, token_counts=torch.ones(V).long()).eval()


def rows(model, *_, policy="carried", lanes=3):
    return batches(Text(), resolve(policy, "32", model, lanes=lanes), 0, batch_size=2)


def cost(model, score=None):
    return evaluate(model, rows(model), "32", **({} if score is None else {"score": score})).nats


def test_a_temperature_divides_the_logits(model):
    by_hand = 0.0
    for batch in batches(Text(), resolve("documents", "32", model), 0, batch_size=1):
        with torch.inference_mode():
            hidden, _ = model(batch.inputs, None)
            log_probs = (model.head.logits(hidden).double() / 1.7).log_softmax(-1)
        by_hand -= log_probs.gather(-1, batch.targets[..., None])[..., 0][batch.mask].sum().item()
    found = evaluate(model, batches(Text(), resolve("documents", "32", model), 0, 1), "32", score=Tempered(1.7))
    assert found.nats == pytest.approx(by_hand, rel=1e-5)


def test_a_temperature_of_one_is_the_model_as_it_is(model):
    assert cost(model, Tempered(1.0)) == cost(model)


def test_the_tuned_temperature_is_that_of_a_fine_grid(model):
    tuned = tune_temperature(model, partial(rows, model), "32", "cpu")
    costs = {t: cost(model, Tempered(t)) for t in np.linspace(0.6, 1.8, 61)}
    assert cost(model, Tempered(tuned)) <= min(costs.values()) * (1 + 1e-5)


@pytest.mark.parametrize("factor", [0.3, 4.0])
def test_a_temperature_beyond_the_first_grid_is_found(factor):
    torch.manual_seed(0)
    node = compose(["model=lstm", "model.d_model=12", "model.n_layers=1", "model.init_range=1.0"]).model
    model = instantiate(node)(vocab_size=V, token_counts=torch.ones(V).long()).eval()
    # Text that the model itself has drawn costs it least at the temperature of drawing.
    ids, state = [], None
    for _ in range(800):
        with torch.inference_mode():
            hidden, state = model(torch.tensor([[ids[-1] if ids else 0]]), state)
            p = (model.head.logits(hidden)[0, -1] / factor).softmax(-1)
        ids.append(int(torch.multinomial(p, 1)))

    def read():
        return batches(Text(ids=ids), resolve("carried", "32", model, lanes=1), 0, batch_size=1)

    tuned = tune_temperature(model, read, "32", "cpu")
    costs = {t: evaluate(model, read(), "32", score=Tempered(t)).nats for t in np.geomspace(0.15, 9, 60)}
    assert not min(TEMPERATURES) <= tuned <= max(TEMPERATURES)
    assert evaluate(model, read(), "32", score=Tempered(tuned)).nats <= min(costs.values()) * (1 + 1e-4)


def test_a_tuned_cache_costs_no_more_than_any_on_the_grid():
    torch.manual_seed(0)
    node = compose(["model=lstm", "model.d_model=12", "model.n_layers=1"]).model
    model = instantiate(node)(vocab_size=V, token_counts=torch.ones(V).long()).eval()
    wanted = {**WANTED, "cache": {"size": 30, "theta": "auto", "weight": "auto"}, "temperature": 0.9}
    protocol = resolve("carried", "32", model, lanes=3)
    found = adapt(wanted, model, protocol, partial(rows, model), "cpu", 2)
    assert list(found.options) == ["temperature", "cache"]
    assert found.options["cache"]["tuned_on"] == "val:50000"
    assert found.score.temperature == 0.9
    best = cost(model, found.score)
    for theta in (0.0, 0.3, 1.2):
        for weight in (0.0, 0.02, 0.1, 0.3, 0.6):
            assert best <= cost(model, Cache(30, theta, weight, 0.9)) * (1 + 1e-6)


@pytest.mark.parametrize("weight", [0.02, 0.7])
def test_a_theta_is_tuned_at_the_weight_that_is_stated(weight):
    torch.manual_seed(0)
    node = compose(["model=lstm", "model.d_model=12", "model.n_layers=1", "model.init_range=1.0"]).model
    model = instantiate(node)(vocab_size=V, token_counts=torch.ones(V).long()).eval()
    wanted = {**WANTED, "cache": {"size": 30, "theta": "auto", "weight": weight}}
    found = adapt(wanted, model, resolve("carried", "32", model, lanes=3), partial(rows, model), "cpu", 2).score
    costs = {theta: cost(model, Cache(30, theta, weight, 1.0)) for theta in THETAS}
    assert found.weight == weight
    assert found.theta == min(costs, key=costs.get)


def test_nothing_asked_is_nothing_done(model):
    assert adapt(WANTED, model, resolve("carried", "32", model, lanes=3), partial(rows, model), "cpu", 2) is None


@pytest.mark.parametrize(
    ("wanted", "how", "message"),
    [
        ({"temperature": 0.0}, {"lanes": 3}, "temperature=0.0 must be above 0"),
        ({"cache": {"size": 5, "theta": 1.0, "weight": 0.1}}, {"policy": "sliding", "max_context": 4}, "slides: add"),
        ({"cache": {"size": 5, "theta": "auto", "weight": 1.5}}, {"lanes": 3}, "weight=1.5 must be from 0 on"),
        ({"cache": {"size": 5, "theta": -1, "weight": "auto"}}, {"lanes": 3}, "theta=-1.0 must be 0 or more"),
        ({"dynamic": {"lr": 0.1}}, {"lanes": 3}, "evaluation.lanes=1"),
        ({"dynamic": {"lr": 0.1}, "mc_dropout": {"samples": 3, "seed": 0}}, {"lanes": 1}, "exclude each other"),
    ],
)
def test_what_cannot_be_is_refused(model, wanted, how, message):
    with pytest.raises(ValueError, match=message):
        check({**WANTED, **wanted}, resolve(**{"policy": "carried", **how}, precision="32", model=model))
