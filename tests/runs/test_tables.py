"""Runs as a table."""

import json
import shutil
import time

import yaml

from lmlab.runs import find, table
from lmlab.runs.tables import class_name


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


def test_a_class_has_a_short_name():
    assert class_name({"_target_": "lmlab.models.lstm.LSTMLM"}) == "LSTMLM"
    assert class_name({"_target_": "lmlab.tokenizers.bpe.train"}) == "bpe"
    assert class_name({"_target_": "alone"}) == "alone"
