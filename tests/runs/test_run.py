"""Runs from Python: load, score, generate, evaluate."""

import shutil

import pytest

import lmlab
from lmlab.run_directory.plain_yaml import read_yaml, write_yaml
from lmlab.runs import settle


def test_a_run_is_used_from_python_as_on_the_command_line(trained, text_file):
    run = lmlab.load(trained["ngram"])
    assert run.evaluate(split="val").as_dict() | {"unknown": 0} == run.results["splits"]["val"]
    other = {**lmlab.compose(["corpus=files", f"corpus.test={text_file}"]).corpus}
    assert run.evaluate(corpus=other).bytes == text_file.stat().st_size
    score = run.score("the cat")
    assert score.log_prob == pytest.approx(sum(token.log_prob for token in score.tokens))
    (sample,) = run.generate("the cat", max_new_tokens=3)
    assert sample.text
    assert [len(samples) for samples in run.generate(["the", "a"], max_new_tokens=2, num_samples=3)] == [3, 3]
    assert "ngram" in repr(run)


def test_both_checkpoints_load_and_a_third_is_refused(trained):
    assert lmlab.load(trained["lstm"], checkpoint="last").score("a").log_prob < 0
    with pytest.raises(ValueError, match="checkpoint=first must be one of best, last"):
        lmlab.load(trained["lstm"], checkpoint="first")


def test_a_moved_run_is_the_same_run(trained, tmp_path):
    shutil.copytree(trained["transformer"], tmp_path / "elsewhere")
    moved = lmlab.load(tmp_path / "elsewhere")
    assert moved.score("the cat").log_prob == lmlab.load(trained["transformer"]).score("the cat").log_prob


def test_an_older_run_is_measured_under_the_name_of_what_is_measured_today(trained, tmp_path):
    shutil.copytree(trained["transformer"], tmp_path / "older")
    path = tmp_path / "older" / "config.yaml"
    config = read_yaml(path.read_text())
    config["decided"]["protocol"] |= {"version": 1, "unknown": "spelled"}
    path.write_text(write_yaml(config))
    older = lmlab.load(tmp_path / "older")
    assert older.protocol.name.endswith("-spelled-v2")
    # What it recorded is held against a published number as it was measured, under the older version.
    figure = {"value": 1.0, "tokens": older.results["splits"]["val"]["tokens"], "under": older.protocol.name}
    published = {"source": "-", "metric": "ppl", "tolerance": 0.1, "protocol": "-", "steps": 1, "cost": "-"}
    path.write_text(write_yaml(config | {"published": published | {"splits": {"val": figure}}}))
    (line,) = lmlab.load(tmp_path / "older").diagnose().distances
    assert "under another protocol" in line


def test_lanes_are_refused_where_there_are_none(trained):
    lstm, transformer = lmlab.load(trained["lstm"]), lmlab.load(trained["transformer"])
    assert lstm.resolve({"lanes": 1}).name == "carried-1"
    with pytest.raises(ValueError, match=r"evaluation.lanes=1 does nothing under sliding-16/8: add evaluation=carried"):
        transformer.resolve({"lanes": 1})
    with pytest.raises(ValueError, match=r"evaluation.lanes=1 does nothing under documents"):
        lstm.resolve({"policy": "documents", "lanes": 1})
    # Options have lanes for whichever model carries its state, and so has who asks several runs.
    assert transformer.resolve(lmlab.compose([]).evaluation).name == "sliding-16/8"
    assert transformer.resolve({"lanes": 1}, others=True).name == "sliding-16/8"
    assert transformer.resolve({"stride": 4, "lanes": None}).name == "sliding-16/4"


@pytest.mark.parametrize("damage", [lambda path: path.write_text("{"), lambda path: path.unlink()])
def test_a_damaged_tokenizer_is_made_again_from_the_cache(trained, tmp_path, damage):
    shutil.copytree(trained["transformer"], tmp_path / "run")
    whole = (tmp_path / "run" / "tokenizer.json").read_bytes()
    damage(tmp_path / "run" / "tokenizer.json")
    assert (
        lmlab.load(tmp_path / "run").score("the cat").log_prob
        == lmlab.load(trained["transformer"]).score("the cat").log_prob
    )
    assert (tmp_path / "run" / "tokenizer.json").read_bytes() == whole


def test_a_damaged_tokenizer_of_which_there_is_no_copy_is_named(trained, tmp_path):
    shutil.copytree(trained["transformer"], tmp_path / "run")
    (tmp_path / "run" / "tokenizer.json").write_text("{")
    run = lmlab.load(tmp_path / "run", cache_dir=tmp_path / "empty")
    with pytest.raises(ValueError, match=r"tokenizer\.json is damaged or missing, and .* has no copy"):
        run.score("the cat")


def test_the_number_of_beams_decides_what_null_means():
    drawn = {"num_beams": 1, "temperature": None, "top_p": None}
    assert settle(drawn) == drawn | {"temperature": 0.8, "top_p": 0.95}
    searched = {"num_beams": 4, "temperature": None, "top_p": None}
    assert settle(searched) == searched | {"temperature": 0.0}
    stated = {"num_beams": 1, "temperature": 0.0, "top_p": 1.0}
    assert settle(stated) == stated
