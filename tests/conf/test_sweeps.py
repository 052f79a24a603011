"""Every ready sweep: its space parses, its keys exist, its first points compose; those with conditions, under both."""

from pathlib import Path

import pytest
import yaml

from lmlab.config import conf_dir
from lmlab.experiment import build_model, check_config
from lmlab.instantiate import instantiate
from lmlab.sweeps import asked as asking
from lmlab.sweeps import pruning
from lmlab.sweeps.composer import Composer
from lmlab.sweeps.space import grid, parse, samples
from lmlab.sweeps.trial import config_of

READY = sorted(path.stem for path in (conf_dir() / "sweep").glob("*.yaml"))
ISSUED = ("lr", "lstm_vs_transformer", "optuna_asha", "regularisation", "size", "tokenizer")
# The command line's words that a sweep's comment offers, as far as they choose other branches of its conditions.
SMALL = ["corpus=files", "corpus.train=texts", "corpus.val_share=0.1", "corpus.test_share=0.1"]
BRANCHES = {
    "regularisation": [[], ["model=transformer", "batching=windows"], SMALL],
    "tokenizer": [[], ["trainer.max_epochs=0.3", "trainer.max_steps=null"]],
}


def options(name: str) -> dict:
    stated = yaml.safe_load((conf_dir() / "sweep.yaml").read_text(encoding="utf-8"))
    own = yaml.safe_load((conf_dir() / f"sweep/{name}.yaml").read_text(encoding="utf-8"))
    assert set(own) <= set(stated)
    assert set(own.get("pruning", {})) <= set(stated["pruning"])
    return stated | own | {"pruning": stated["pruning"] | own.get("pruning", {})}


def test_all_that_were_promised_are_there():
    assert set(ISSUED) <= set(READY)


@pytest.mark.parametrize("name", READY)
def test_its_keys_are_those_of_a_sweep_and_it_is_chosen_by_bits_per_byte(name: str):
    told = options(name)
    asking.check(told)
    pruning.check(told["pruning"])
    assert told["objective"] == [{"metric": "val/bpb", "direction": "minimize"}]


@pytest.mark.parametrize(("name", "words"), [(n, w) for n in READY for w in BRANCHES.get(n, [[]])])
def test_its_first_points_compose_to_what_lmlab_train_takes(name: str, words: list[str]):
    told = options(name)
    every = [*told["overrides"], *words]
    fixed = dict(o.partition("=")[::2] for o in every)
    parameters = parse(told["space"], told["when"], fixed)
    seen = set()
    for point in samples(parameters):
        check_config(config_of([*every, *asking.overrides(parameters, point)], 0, Composer(None)))
        seen |= set(point)
    assert seen == {p.key for p in parameters}


@pytest.mark.parametrize(("name", "points"), [("lr", 6), ("size", 20), ("tokenizer", 6), ("lstm_vs_transformer", 12)])
def test_a_grid_has_as_many_points_as_its_comment_says(name: str, points: int):
    told = options(name)
    fixed = dict(o.partition("=")[::2] for o in told["overrides"])
    found = list(grid(parse(told["space"], told["when"], fixed)))
    assert len(found) == points
    text = Path(conf_dir() / f"sweep/{name}.yaml").read_text(encoding="utf-8")
    assert f"{points * told['replicates']} runs" in text


@pytest.mark.parametrize(
    ("name", "key", "protocol"),
    [("lstm_vs_transformer", "model", "sliding-32/16"), ("tokenizer", "tokenizer", "sliding-64/32-spelled-v2")],
)
def test_what_is_compared_is_measured_under_one_protocol(name: str, key: str, protocol: str):
    """A point of each model, or of each tokenizer: else the sweep would have no winner."""
    told = options(name)
    parameters = parse(told["space"], told["when"], dict(o.partition("=")[::2] for o in told["overrides"]))
    points = {point[key]: point for point in grid(parameters)}
    assert len(points) > 1
    for point in points.values():
        config = config_of([*told["overrides"], *asking.overrides(parameters, point)], 0, Composer(None))
        model = build_model(config.model, 64, None)
        assert instantiate(config.evaluation)(model=model).name == protocol


@pytest.mark.parametrize("name", READY)
def test_a_comment_says_its_question_and_its_cost(name: str):
    comment = [line for line in (conf_dir() / f"sweep/{name}.yaml").read_text().splitlines() if line.startswith("#")]
    text = " ".join(comment)
    assert "?" in text or name == "optuna_asha"
    assert "minutes on two cores" in text
    assert str(options(name)["trials"] or "runs") in text
