"""Configs composed from remembered options are those that Hydra composes anew."""

import pytest
from hydra.errors import HydraException
from tests.conf.test_sweeps import options

from lmlab.config import compose, plain
from lmlab.sweeps import asked as asking
from lmlab.sweeps import composer as composing
from lmlab.sweeps.composer import Composer
from lmlab.sweeps.space import parse, samples

WORDS = [
    [],
    ["seed=3", "n_params=1M", "optimizer.lr=1e-3"],
    ["model=lstm", "batching=lanes", "model.d_model=8", "callbacks.samples=null", "tokenizer.vocab_size=300"],
    # A later word has the last say, an option beside its own values, in whatever order.
    ["model.d_model=8", "model=lstm", "model.d_model=9", "optimizer=sgd", "optimizer.lr=2"],
    ["experiment=tutorial_lstm", "trainer.max_steps=3"],
    ["callbacks/early_stopping=patience", "model/head=adaptive", "logger=none", "++corpus.extra=1"],
    ["optimizer={lr:3}", "optimizer.lr=4", "corpus=tiny_shakespeare", "~callbacks.samples"],
    ["runs_root='a, b: x'", "trainer.max_time=00:00:01:00"],
]


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_it_composes_what_hydra_composes(words):
    composer = Composer(None)
    hydras = compose(words)
    for _ in range(2):
        ours = composer(words)
        assert ours == hydras
        assert list(plain(ours)) == list(plain(hydras))
        # What is wrong is refused as it is there.
        with pytest.raises(HydraException):
            composer([*words, "optimizer.none_such=1"])
    ours.seed = 99
    assert composer(words).seed != 99, "what a run changes is its own"


@pytest.mark.parametrize("name", ["lr", "lstm_vs_transformer"])
def test_so_it_does_for_a_ready_sweep_and_reads_options_once(name, monkeypatch):
    told = options(name)
    parameters = parse(told["space"], told["when"], dict(o.partition("=")[::2] for o in told["overrides"]))
    points = [[*told["overrides"], *asking.overrides(parameters, p)] for p in samples(parameters)]
    hydras = [compose(point) for point in points]
    read = []
    monkeypatch.setattr(composing, "compose", lambda words, **more: read.append(words) or compose(words, **more))
    composer = Composer(None)
    for _ in range(2):
        assert [composer([*point, "seed=0"]) for point in points] == hydras
    assert len(read) == len(set(read)) <= len(points)


def test_options_of_ones_own_are_found(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/mine.yaml").write_text("defaults: [lstm]\nd_model: 7\n")
    words = ["model=mine", "model.n_layers=1"]
    assert Composer(str(tmp_path))(words) == compose(words, config_dir=tmp_path)
    assert Composer(str(tmp_path))(words).model.d_model == 7


@pytest.mark.parametrize(
    "word", ["model=none_such", "no_such_key=1", "optimizer.lr=1,2", "optimizer.lr=[", "model=lstm,gpt2"]
)
def test_what_hydra_refuses_is_refused_with_its_error(word):
    with pytest.raises(HydraException) as hydras:
        compose([word])
    with pytest.raises(type(hydras.value)) as ours:
        Composer(None)([word])
    assert str(ours.value) == str(hydras.value)
