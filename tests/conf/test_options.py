"""Every option composes, fits its constructor and is built offline; every recipe trains two steps."""

import pytest

from lmlab.config import compose, conf_dir, plain
from lmlab.instantiate import instantiate
from lmlab.schema import check_keys, check_known, check_node

GROUPS = sorted(p.name for p in conf_dir().iterdir() if p.is_dir() and p.name not in ("experiment", "hydra"))
OPTIONS = [(p.parent.relative_to(conf_dir()).as_posix(), p.stem) for p in sorted(conf_dir().glob("*/**/*.yaml"))]
PLAIN = [(group, option) for group, option in OPTIONS if group.partition("/")[0] in GROUPS and group != "hydra"]
RECIPES = [option for group, option in OPTIONS if group == "experiment"]
VERBS = sorted(p.stem for p in conf_dir().glob("*.yaml"))
# What an option cannot know by itself.
NEEDED = {
    "corpus": {"files": ["corpus.train=t.txt"], "hf": ["corpus.path=somewhere"]},
    "tokenizer": {"pretrained": ["tokenizer.source=somewhere"]},
}
# Built by tests of their own: from what only a run knows, and from text that is fetched.
ELSEWHERE = {("corpus", name) for name in ("enwik8", "hf", "ptb", "tiny_shakespeare", "wikitext2")}
ELSEWHERE |= {(group, option) for group, option in PLAIN if group.partition("/")[0] in ("trainer", "callbacks")}
BUILT = [one for one in PLAIN if one not in ELSEWHERE]
# A recipe on a text of a few kilobytes.
TINY = [
    "trainer.max_epochs=null",
    "trainer.max_time=null",
    "max_tokens=null",
    "trainer.max_steps=2",
    "logger=none",
    "floors=false",
    "compile=false",
    "callbacks.samples=null",
    "validation.train_tokens=200",
    "batching.batch_size=2",
    "batching.seq_len=8",
    "model.d_model=12",
    "model.n_layers=2",
    "trainer.val_check_interval=null",
]


def composed(group: str, option: str):
    return compose([f"{group}={option}", *NEEDED.get(group, {}).get(option, [])])


@pytest.mark.parametrize("verb", VERBS)
def test_every_verbs_config_composes_and_is_valid(verb: str):
    check_keys(plain(compose(config_name=verb)))


@pytest.mark.parametrize(("group", "option"), PLAIN, ids=lambda p: p)
def test_every_option_composes_and_fits_its_constructor(group: str, option: str):
    config = plain(composed(group, option))
    check_keys(config)
    name = group.partition("/")[0]
    check_node(config.get(name), name)


@pytest.mark.parametrize(("group", "option"), BUILT, ids=lambda p: p)
def test_every_option_is_built_offline(group: str, option: str, text_file):
    config = plain(composed(group, option))
    node = config.get(group.partition("/")[0])
    if option == "files":
        node["train"] = str(text_file)
    if node:  # none of them: logger=none
        assert instantiate(node) is not None


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=lambda p: p)
def test_every_option_says_what_it_is(group: str, option: str):
    first = (conf_dir() / group / f"{option}.yaml").read_text().splitlines()[0]
    assert first.startswith("# ")


def test_recipes_are_few():
    assert len(RECIPES) <= 13


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_trains_two_steps(recipe: str, text_file, tmp_path):
    from lmlab.experiment import train

    base = compose([f"experiment={recipe}"])
    counts = "order" in base.model
    tiny = [word for word in TINY if not (counts and word.startswith("model."))]
    own = [f"run_dir={tmp_path}/run", "corpus=files", f"corpus.train={text_file}", *tiny]
    if base.model.get("sublayers"):
        own.append("model.n_layers=null")
    for key in ("d_embed", "d_hidden", "n_heads", "n_kv_heads", "d_head", "d_ff"):
        if base.model.get(key) is not None:
            own.append(
                f"model.{key}={ {'d_embed': 10, 'd_hidden': 14, 'n_heads': 2, 'n_kv_heads': 2}.get(key, 'null') }"
            )
    if base.evaluation.get("stride") is not None:
        own.append("evaluation.stride=null")
    if "vocab_size" in base.tokenizer:
        own.append("tokenizer.vocab_size=300")
    results = train(compose([f"experiment={recipe}", *own]))
    assert results["training"]["steps"] == (1 if counts else 2)
    assert results["splits"]["val"]["bpb"] > 0


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_states_its_source(recipe: str):
    text = (conf_dir() / "experiment" / f"{recipe}.yaml").read_text()
    assert "# @package _global_" in text
    assert sum(line.startswith("#") for line in text.splitlines()) >= 2
    check_known(plain(compose([f"experiment={recipe}"])), [*plain(compose()), "callbacks"])
