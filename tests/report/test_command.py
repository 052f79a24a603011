"""The command that repeats a run composes to what the run was asked, as the command line would take it."""

import shlex

import pytest

from lmlab import cli
from lmlab.config import asked, compose, flatten, plain, with_budget
from lmlab.report.command import repeat
from lmlab.run_directory import RunDirectory

ASKED = [
    ["corpus=files", "corpus.train=texts/诗 词's.txt", "tokenizer=char", "model=lstm", "seed=3"],
    ["corpus=files", "corpus.train=[a.txt,b c.txt]", "corpus.document_separator=\\n\\n", "corpus.split_by=share"],
    ["optimizer=adamw", "optimizer.lr=1e-4", "schedule=cosine", "model/head=adaptive", "model.tie_embeddings=false"],
    ["experiment=awd_lstm_wikitext2", "corpus.path=folder"],
    ["model=gpt2", "n_params=2M", "max_tokens=1e6", "precision=32", "callbacks/early_stopping=patience"],
    ["model=ngram", "batching=lanes", "evaluation=documents", "trainer=cpu", "callbacks/averaging=ema"],
]


def stored(path, overrides: list[str]) -> RunDirectory:
    """What a run of these overrides leaves of its config."""
    config = with_budget(compose([cli.quote(word) for word in overrides]))
    directory = RunDirectory(path)
    directory.write_yaml("asked.yaml", asked(config))
    directory.write_yaml("config.yaml", {"format": 1, **plain(config), "decided": {}})
    return directory


@pytest.mark.parametrize("overrides", ASKED, ids=lambda words: words[0])
def test_the_command_asks_for_the_same_run(overrides, tmp_path):
    directory = stored(tmp_path, overrides)
    told = repeat(directory)
    assert told["exact"]
    lmlab, train, *words = shlex.split(told["line"])
    assert (lmlab, train) == ("lmlab", "train")
    again = with_budget(compose([cli.quote(word) for word in words]))
    assert flatten(asked(again)) == flatten(directory.asked())
    for place in ("path", "train"):
        assert plain(again)["corpus"].get(place) == directory.config()["corpus"].get(place)


def test_the_default_needs_no_words(tmp_path):
    assert repeat(stored(tmp_path, ["trainer.max_steps=7"]))["line"] == "lmlab train trainer.max_steps=7"


def test_a_lengthened_run_or_one_of_another_version_or_of_own_classes_is_not_called_exact(tmp_path):
    directory = stored(tmp_path, ["model=lstm"])
    directory.write_yaml("asked.yaml", directory.asked() | {"code": 0})
    told = repeat(directory)
    assert told["line"].startswith("lmlab train model=lstm")
    assert not told["exact"]
    directory = stored(tmp_path, ["model=lstm", "trainer.max_steps=9"])
    assert repeat(directory)["exact"]
    # Its first steps were of a schedule over four.
    directory.write_json("results.json", {"training": {"horizons": [[4, 4]]}})
    assert not repeat(directory)["exact"]
    directory.write_yaml("asked.yaml", directory.asked() | {"mine": {"_target_": "mine.Own", "size": 3}})
    directory.write_json("environment.json", {"command": ["lmlab", "train", "+mine=own", "text=it's"]})
    told = repeat(directory)
    assert not told["exact"]
    assert "mine" in told["line"]
