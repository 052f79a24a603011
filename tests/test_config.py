"""Composing, identity, suggestions and the allow-list."""

import pytest
from omegaconf import OmegaConf

from lmlab.config import (
    ALLOWED_TARGETS,
    asked,
    check_targets,
    compose,
    differences,
    directory_name,
    flatten,
    identity,
    literal,
    parse_count,
    plain,
    short_setting,
    suggest,
    targets,
    treatment,
    with_read,
)
from lmlab.instantiate import find, instantiate


def test_compose_gives_what_the_verb_would_see():
    config = compose(["model=lstm", "model.d_model=8"])
    assert config.model.d_model == 8
    assert config.corpus._target_ == "lmlab.data.corpora.Sotu"
    assert compose(config_name="generate").num_beams == 1


def test_compose_finds_options_of_ones_own(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("defaults: [lstm, _self_]\nd_model: 7\n")
    assert compose(["model=mine"], config_dir=tmp_path).model.d_model == 7


def test_compose_works_inside_a_job_of_hydras():
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from lmlab.config import conf_dir

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        before = GlobalHydra.instance().hydra
        compose()
        assert GlobalHydra.instance().hydra is before


def test_places_and_display_are_no_part_of_a_runs_identity():
    same = ["run_dir=x", "cache_dir=y", "logger=none", "trainer=cpu", "corpus=files", "corpus.train=a.txt"]
    other = [
        "run_dir=z",
        "training.log_every=3",
        "kernels=plain",
        "text_on_device=true",
        "corpus=files",
        "corpus.train=b.txt",
    ]
    assert identity(asked(compose(same))) == identity(asked(compose(other)))


def test_what_is_speed_alone_is_asked_and_kept_and_no_part_of_a_runs_identity():
    ours = asked(compose())
    theirs = asked(compose(["validation.batch_size=4", "callbacks.checkpoints.every_minutes=1"]))
    theirs["callbacks"]["checkpoints"]["every_n_steps"] = 7
    assert theirs["validation"]["batch_size"] == 4
    assert (identity(ours), treatment(ours)) == (identity(theirs), treatment(theirs))
    assert differences(ours, theirs) == {}


@pytest.mark.parametrize("override", ["seed=1", "model.d_model=8", "optimizer.lr=0.5", "evaluation=documents"])
def test_what_changes_a_number_is_part_of_a_runs_identity(override: str):
    assert identity(asked(compose())) != identity(asked(compose([override])))


@pytest.mark.parametrize("corpus", ["corpus=files", "corpus=hf"])
def test_fields_beside_the_text_are_part_of_a_runs_identity_only_where_given(corpus: str):
    given = [corpus, "corpus.path=a"]
    assert "meta_fields" not in asked(compose(given))["corpus"]
    assert asked(compose([*given, "corpus.meta_fields=[year]"]))["corpus"]["meta_fields"] == ["year"]


def test_a_larger_budget_is_the_same_run():
    assert identity(asked(compose(["trainer.max_steps=5"]))) == identity(asked(compose(["trainer.max_steps=9"])))


def test_asked_keeps_text_that_looks_like_an_interpolation():
    config = compose()
    config.tokenizer.vocab_size = r"\${x}"
    assert asked(config)["tokenizer"]["vocab_size"] == "${x}"


def test_differences_name_dotted_keys():
    assert flatten({"a": {"b": 1, "c": {}}}) == {"a.b": 1, "a.c": {}}
    assert differences({"a": {"b": 1}}, {"a": {"b": 2}, "c": 3}) == {"a.b": (1, 2), "c": (None, 3)}


def test_every_target_of_a_node_is_found():
    node = {"_target_": "a", "x": [{"_target_": "b"}, {"y": {"_target_": "c"}}]}
    assert sorted(targets(node)) == ["a", "b", "c"]


def test_a_setting_is_short_in_a_name_and_a_name_has_nothing_that_a_shell_reads():
    assert short_setting("optimizer.lr", "0.01") == short_setting("+lr", 0.01) == "lr=0.01"
    assert short_setting("~callbacks.samples", "") == "samples="
    assert directory_name(["demo", "by=a/b", "points=[1, 2]", "é=1e-3"]) == "demo_by=a-b_points=-1,-2-_é=1e-3"


def test_only_exact_names_are_allowed():
    check_targets({"_target_": "lmlab.models.lstm.LSTMLM"})
    check_targets({"_target_": "mine.LM"}, ["mine.LM"])
    for name in ("os.system", "lmlab.models.lstm", "lmlab.models.lstm.LSTMLM.__init__", "mine.LM2"):
        with pytest.raises(PermissionError, match=name):
            check_targets({"_target_": name}, ["mine.LM"])


@pytest.mark.parametrize("name", sorted(ALLOWED_TARGETS))
def test_every_allowed_target_exists(name: str):
    assert callable(find(name))


@pytest.mark.parametrize(
    ("key", "told"),
    [("modle", "model"), ("max_steps", "trainer.max_steps"), ("model.d_modle", "model.d_model"), ("qqqq", None)],
)
def test_the_nearest_key_is_suggested(key: str, told: str | None):
    known = ["model", "model.d_model", "max_tokens", "trainer.max_steps"]
    assert suggest(key, known) == (f" (did you mean {told}?)" if told else "")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("5M", 5_000_000),
        ("650k", 650_000),
        ("1.5e6", 1_500_000),
        ("1_000", 1000),
        (7, 7),
        (None, None),
        ("2b", 2 * 10**9),
    ],
)
def test_counts_may_be_abbreviated(text, count):
    assert parse_count(text, "n_params") == count


def test_a_count_that_is_none_is_refused():
    with pytest.raises(ValueError, match="n_params=many"):
        parse_count("many", "n_params")


def record(**arguments):
    return arguments


RECORD = {"_target_": f"{__name__}.record"}


@pytest.fixture
def _importable(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or type(sys)(__name__))
    monkeypatch.setattr(sys.modules[__name__], "record", record, raising=False)


@pytest.mark.usefixtures("_importable")
def test_nodes_are_built_from_the_inside_out():
    node = RECORD | {"a": RECORD | {"b": 1}, "c": [RECORD], "_convert_": "all"}
    assert instantiate(node, d=2) == {"a": {"b": 1}, "c": [{}], "d": 2}
    assert instantiate(RECORD | {"_partial_": True, "a": 1})(b=2) == {"a": 1, "b": 2}


@pytest.mark.usefixtures("_importable")
@pytest.mark.parametrize("text", ["${x}", "${oc.create:'{_target_: os.getcwd}'}", r"\${x}", "a\\"])
def test_a_string_in_plain_data_means_itself(text: str):
    assert instantiate(RECORD | {"a": text}) == {"a": text}
    assert plain(OmegaConf.create(literal({"a": [text]}))) == {"a": [text]}


def test_a_target_that_is_missing_or_takes_other_arguments_is_a_users_error():
    with pytest.raises(ValueError, match=r"no\.such\.Class"):
        instantiate({"_target_": "no.such.Class"})
    with pytest.raises(ValueError, match="does not fit its config"):
        instantiate({"_target_": "lmlab.models.ngram.NGramLM", "order": 2})


def test_what_is_read_from_a_place_makes_another_treatment_and_a_seed_does_not():
    made = {"fingerprint": "0123456789", "tokenizer": "abcdef0123"}
    own = asked(compose(["tokenizer=bpe"]))
    one = treatment(own, made)
    assert one == treatment(asked(compose(["tokenizer=bpe", "seed=1"])), made)
    assert one != treatment(own, made | {"fingerprint": "9876543210"})
    # A tokenizer of one's own is what was asked, trained on the text; one of somebody else's is whatever lies there.
    assert one == treatment(own, made | {"tokenizer": "other"})
    foreign = asked(compose(["tokenizer=pretrained", "tokenizer.source=a.json"]))
    assert treatment(foreign, made) != treatment(foreign, made | {"tokenizer": "other"})
    assert with_read(foreign, made)["tokenizer.hash"] == "abcdef01"
