"""Runs from Python: load, score, generate, evaluate, and the table of many."""

import json
import shutil
import time

import pytest
import yaml

import lmlab
from lmlab.runs import class_name, find, prune, settle, table


def test_a_run_is_used_from_python_as_on_the_command_line(trained, text_file):
    run = lmlab.load(trained["ngram"])
    assert run.evaluate(split="val").as_dict() == run.results["splits"]["val"]
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
    run = lmlab.load(tmp_path / "run")
    run.config["cache_dir"] = str(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"tokenizer\.json is damaged or missing, and .* has no copy"):
        run.score("the cat")


def test_the_number_of_beams_decides_what_null_means():
    drawn = {"num_beams": 1, "temperature": None, "top_p": None}
    assert settle(drawn) == drawn | {"temperature": 0.8, "top_p": 0.95}
    searched = {"num_beams": 4, "temperature": None, "top_p": None}
    assert settle(searched) == searched | {"temperature": 0.0}
    stated = {"num_beams": 1, "temperature": 0.0, "top_p": 1.0}
    assert settle(stated) == stated


def test_the_table_has_a_row_a_run_and_a_column_a_difference(trained):
    frame = table(trained["lstm"].parent).set_index("run")
    assert sorted(frame.index) == ["lstm", "ngram", "transformer"]
    assert frame.loc["lstm", "model"] == "LSTMLM"
    assert frame.loc["lstm", "batching"] == "Lanes"
    assert frame.loc["transformer", "model.n_heads"] == 2
    results = json.loads((trained["lstm"] / "results.json").read_text())
    assert frame.loc["lstm", "val/bpb"] == results["splits"]["val"]["bpb"]
    assert "evaluation.precision" not in frame  # the same everywhere


def test_runs_that_cannot_be_read_say_why(trained, tmp_path):
    shutil.copytree(trained["ngram"], tmp_path / "a")
    for name, file, content in [("b", "asked.yaml", "[1, 2"), ("c", "results.json", "{}"), ("d", "results.json", "[")]:
        shutil.copytree(trained["ngram"], tmp_path / name)
        (tmp_path / name / file).write_text(content)
    (tmp_path / "e").mkdir()
    shutil.copy(trained["ngram"] / "asked.yaml", tmp_path / "e")
    states = dict(table(tmp_path)[["run", "state"]].values.tolist())
    assert {run: state.split(":")[0] for run, state in states.items()} == {
        "a": "counted",
        "b": "damaged",
        "c": "damaged",
        "d": "damaged",
        "e": "unfinished",
    }


def test_no_runs_are_an_empty_table(tmp_path):
    assert table(tmp_path).empty


def test_many_runs_are_read_quickly(trained, tmp_path):
    asked, results = (trained["transformer"] / name for name in ("asked.yaml", "results.json"))
    tree = yaml.safe_load(asked.read_text())
    for i in range(300):
        folder = tmp_path / f"run{i}"
        folder.mkdir()
        shutil.copy(results, folder)
        (folder / "asked.yaml").write_text(yaml.safe_dump(tree | {"seed": i}))
    began = time.process_time()
    frame = table(tmp_path)
    # A millisecond each was measured alone; generous, as other work shares the machine.
    assert time.process_time() - began < 5
    assert sorted(frame["seed"]) == list(range(300))


def test_runs_are_found_below_folders_but_not_inside_runs(trained, tmp_path):
    shutil.copytree(trained["ngram"], tmp_path / "x" / "run")
    shutil.copytree(trained["ngram"], tmp_path / "x" / "run" / "inner")
    assert [d.path for d in find(tmp_path)] == [tmp_path / "x" / "run"]


@pytest.mark.parametrize(
    ("keep", "gone"),
    [
        ("best", ["done/checkpoints/last.ckpt"]),
        ("results", ["done/checkpoints/last.ckpt", "done/checkpoints/best.ckpt"]),
        ("finished", ["open"]),
    ],
)
def test_prune_frees_what_its_rule_says(keep: str, gone: list[str], trained, tmp_path):
    for name in ("done", "open"):
        shutil.copytree(trained["lstm"], tmp_path / name)
    (tmp_path / "open" / "results.json").unlink()
    freed = prune(tmp_path, keep, do_it=False)
    assert sorted(str(path.relative_to(tmp_path)) for path, _ in freed) == sorted(gone)
    assert all(path.exists() and size > 0 for path, size in freed)
    prune(tmp_path, keep, do_it=True)
    assert not any(path.exists() for path, _ in freed)


def test_an_unknown_rule_is_refused(tmp_path):
    with pytest.raises(ValueError, match="keep=all must be one of"):
        prune(tmp_path, "all", do_it=True)


def test_a_class_has_a_short_name():
    assert class_name({"_target_": "lmlab.models.lstm.LSTMLM"}) == "LSTMLM"
    assert class_name({"_target_": "lmlab.tokenizers.bpe.train"}) == "bpe"
    assert class_name({"_target_": "alone"}) == "alone"
