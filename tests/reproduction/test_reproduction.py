"""Recipes and their numbers: whole in each file, outside of a run's identity, and the steps are those of the text."""

import math

import numpy as np
import pytest
import torch

from lmlab.config import asked, compose, identity, plain
from lmlab.evaluation.published import read
from lmlab.reproduction import read_record, recipes, records
from lmlab.run_directory import RunDirectory

NUMBERS = {name: target for name, target in recipes().items() if target is not None}
# Tokens of train, under the tokenizer of the recipes that count epochs.
TRAIN = {"WikiText2": 2_088_628, "PennTreebank": 929_589, "Sotu": 1_897_364}


def test_every_recipe_but_one_has_a_number():
    assert set(recipes()) - set(NUMBERS) == {"song_ci_char"}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_recipes_file_says_all_of_its_number(name):
    config = plain(compose([f"experiment={name}"]))
    assert read(config["published"]) == NUMBERS[name], "nothing of it is another recipe's"


def test_the_number_is_no_part_of_a_runs_identity():
    with_number, without = compose(["experiment=demo"]), compose(["experiment=demo", "published=null"])
    assert plain(with_number)["published"] is not None
    assert asked(with_number) == asked(without)
    assert "published" not in asked(with_number)
    # As it was before there were such nodes: a stored run is still the run that it was.
    assert identity(asked(compose(["experiment=examples_650_tied", "validation.train_tokens=20000"]))) == "c7b2f1a24ea2"


@pytest.mark.parametrize("name", NUMBERS)
def test_the_steps_are_those_of_the_recipe_on_its_text(name):
    from lmlab.data.store import Split
    from lmlab.decisions import total_steps
    from lmlab.instantiate import instantiate

    config, target = compose([f"experiment={name}"]), NUMBERS[name]
    if config.trainer.max_steps is not None:
        assert target.steps == config.trainer.max_steps
    elif config.trainer.max_epochs is None:
        assert target.steps == 1, "it counts"
    else:
        text = Split.__new__(Split)
        text.ids = np.zeros(TRAIN[config.corpus._target_.rpartition(".")[2]], np.uint16)
        batching = instantiate(config.batching)(split=text, start_id=0, seed=config.seed)
        assert target.steps == total_steps(config, batching)


@pytest.mark.parametrize("name", NUMBERS)
def test_the_protocol_that_a_number_states_is_that_of_its_recipe(name):
    from lmlab.experiment import protocol_without_text

    for figure in NUMBERS[name].splits.values():
        config = compose([f"experiment={name}"])
        config.evaluation.update(figure.evaluation)
        assert protocol_without_text(config).name == figure.under


def test_the_recipes_evaluation_is_taken_in_the_sizes_of_what_was_trained():
    from lmlab.reproduction.reproduce import stated_evaluation

    recipe = compose(["experiment=nanogpt_char_cpu"])
    config = compose(["experiment=nanogpt_char_cpu", "evaluation.stride=1", "model.max_context=32"])
    assert (config.evaluation.stride, recipe.evaluation.stride) == (1, 64)
    assert stated_evaluation(recipe, config)["stride"] == 32
    assert stated_evaluation(recipe, compose(["experiment=nanogpt_char_cpu", "evaluation=carried"]))["stride"] == 64


def test_t12_has_the_published_size_less_its_positions():
    from lmlab.instantiate import instantiate
    from lmlab.sizes import count_parameters

    config = compose(["experiment=t12_enwik8"])
    with torch.device("meta"):
        model = instantiate(config.model)(vocab_size=257, token_counts=None)
    # Of a layer: attention and feed-forward with their biases, two norms, and those of queries and keys.
    layer = 4 * (512 * 512 + 512) + (512 * 2048 + 2048) + (2048 * 512 + 512) + 2 * 2 * 512 + 2 * 64
    assert count_parameters(model) == 257 * 512 + 12 * layer + 2 * 512 == 37_962_752
    # Theirs without the auxiliary heads, 41 M, learns 512 positions for each layer.
    assert round((count_parameters(model) + 12 * 512 * 512) / 1e6) == 41


def test_records_are_found_and_a_damaged_one_is_named(tmp_path):
    assert records(tmp_path / "nothing") == []
    (tmp_path / "a").mkdir()
    (tmp_path / "a/reproduction.json").write_text('{"recipe": "a"}')
    with pytest.raises(ValueError, match=r"reproduction\.json is damaged"):
        records(tmp_path)
    with pytest.raises(ValueError, match="the command that made it"):
        read_record(tmp_path / "a/reproduction.json")


def test_a_record_of_which_a_digit_changed_is_damaged(tmp_path):
    whole = {"recipe": "a", "splits": {"val": 1.8337}, "training": {}, "machine": {}}
    RunDirectory(tmp_path).write_json("reproduction.json", whole)
    path = tmp_path / "reproduction.json"
    assert read_record(path) == whole
    path.write_text(path.read_text().replace("1.8337", "1.7337"))
    with pytest.raises(ValueError, match="its checksum differs"):
        read_record(path)


def test_tolerances_are_smaller_than_what_they_judge():
    for target in NUMBERS.values():
        for figure in target.splits.values():
            assert 0 <= target.tolerance < 0.02 * figure.value
            assert math.isfinite(figure.value)
