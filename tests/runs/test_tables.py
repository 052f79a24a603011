"""Runs as a table."""

import json
import os
import shutil
import sys

import pandas as pd
import pytest
import yaml
from tests.benchmarks.many_runs import make

from lmlab.run_directory import RunDirectory
from lmlab.runs import curves, find, table, write_tables
from lmlab.runs.tables import class_name, size
from lmlab.seal import seal, unseal


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


def test_no_directory_is_no_empty_table(tmp_path):
    for read in (table, curves):
        with pytest.raises(FileNotFoundError, match=r"root=.*nope is no directory; train a run first"):
            read(tmp_path / "nope")


def test_runs_are_found_below_folders_but_not_inside_runs(trained, tmp_path):
    shutil.copytree(trained["ngram"], tmp_path / "x" / "run")
    shutil.copytree(trained["ngram"], tmp_path / "x" / "run" / "inner")
    assert [d.path for d in find(tmp_path)] == [tmp_path / "x" / "run"]


def test_a_class_has_a_short_name():
    assert class_name({"_target_": "lmlab.models.lstm.LSTMLM"}) == "LSTMLM"
    assert class_name({"_target_": "lmlab.tokenizers.bpe.train"}) == "bpe"
    assert class_name({"_target_": "alone"}) == "alone"


def test_a_table_says_best_and_last_and_why_a_run_failed(tmp_path):
    make(tmp_path, 25)
    frame = table(tmp_path)
    failed = frame.iloc[24]
    assert (failed["state"], failed["reason"]) == ("failed", "TrainingFailed: the loss is no longer finite")
    assert failed["steps"] == 132
    # Three validations, each better than the one before it.
    assert failed["val/bpb_best"] == failed["val/bpb_last"]
    assert frame["treatment"].nunique() == 9
    assert frame["val/bpb"].isna().sum() == 1


def test_sections_that_were_read_before_change_nothing(tmp_path):
    make(tmp_path, 4)
    odd = sorted(tmp_path.iterdir())[2] / "asked.yaml"
    odd.write_text("# a remark\n" + json.dumps(yaml.safe_load(odd.read_text())))
    frame = table(tmp_path)
    for name, lr in zip(frame["run"], frame["optimizer.lr"], strict=True):
        assert yaml.safe_load((tmp_path / name / "asked.yaml").read_text())["optimizer"]["lr"] == lr


def test_aliases_are_refused_also_across_sections(tmp_path):
    make(tmp_path, 2)
    path = sorted(tmp_path.iterdir())[0] / "asked.yaml"
    path.write_text("a: &a [1]\nb: *a\n" + path.read_text())
    assert table(tmp_path)["state"][0].startswith("damaged")


def test_tables_are_written_as_csv_and_parquet(tmp_path):
    make(tmp_path, 4)
    asked = sorted(tmp_path.iterdir())[0] / "asked.yaml"
    # Of two kinds in one column, which parquet has not.
    asked.write_text(seal(unseal(asked.read_text()).replace("n_params: null", "n_params: 二百万")))
    names = [path.name for path in write_tables(tmp_path)]
    assert names == ["trials.csv", "trials.parquet", "curves.parquet"]
    frame = table(tmp_path)
    for read in (pd.read_csv(tmp_path / "trials.csv"), pd.read_parquet(tmp_path / "trials.parquet")):
        assert read["run"].tolist() == frame["run"].tolist()
        assert read["val/bpb"].tolist() == pytest.approx(frame["val/bpb"].tolist())
        assert read["n_params"][0] == "二百万"
    assert len(pd.read_parquet(tmp_path / "curves.parquet")) == len(curves(tmp_path))


@pytest.mark.parametrize("values", [({}, {"a": 1}), ([1, "a"], [2.5]), ([], [0.9])])
def test_lists_and_mappings_of_any_kind_are_written_as_text(tmp_path, values):
    make(tmp_path, 2)
    for path, value in zip(sorted(tmp_path.glob("*/asked.yaml")), values, strict=True):
        asked = yaml.safe_load(path.read_text())
        asked["optimizer"]["own"] = value
        path.write_text(yaml.safe_dump(asked))
    write_tables(tmp_path)
    assert pd.read_parquet(tmp_path / "trials.parquet")["optimizer.own"][0] == str(values[0])


def test_without_pyarrow_the_csv_is_written_and_the_extra_is_named(tmp_path, monkeypatch):
    make(tmp_path, 1)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'lmlab\[sweeps\]'"):
        write_tables(tmp_path)
    assert (tmp_path / "trials.csv").exists()


def made(root, name: str, bpb=1.0, because="budget") -> None:
    run = RunDirectory(root / name)
    run.path.mkdir()
    run.write_yaml("asked.yaml", {"seed": 1, "model": {"_target_": "a.B"}})
    training = {"stopped_because": because, "history": []}
    sums = {"bpb": bpb, "ppl": 2.0, "nll": 1.0}
    told = {"training": training, "model": {"parameters": 1}, "protocol": {"name": "p"}, "splits": {"val": sums}}
    run.write_json("results.json", told)


@pytest.mark.parametrize(("change", "told"), [({"bpb": "<b>1</b>"}, "val/bpb='<b>"), ({"because": 7}, "state=7")])
def test_a_word_among_numbers_costs_its_own_row_alone(tmp_path, change, told):
    made(tmp_path, "a")
    made(tmp_path, "b", **change)
    frame = table(tmp_path)
    assert frame["val/bpb"].dtype.kind == "f"
    assert frame["state"][0] == "budget"
    assert frame["state"][1].startswith(f"damaged: results.json says {told}")


def test_what_vanishes_while_a_run_is_measured_is_not_counted(tmp_path, monkeypatch):
    made(tmp_path, "a")
    whole = size(tmp_path / "a")
    gone = tmp_path / "a" / "last.ckpt.tmp"
    gone.write_text("x")
    scan = os.scandir

    class Racing:
        def __init__(self, path):
            self.entries = scan(path)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.entries.close()

        def __iter__(self):
            for entry in self.entries:
                if entry.name == gone.name:
                    gone.unlink()
                yield entry

    monkeypatch.setattr("lmlab.runs.tables.os.scandir", Racing)
    assert size(tmp_path / "a") == whole


def test_more_yaml_than_a_run_writes_is_not_read(tmp_path):
    made(tmp_path, "a")
    (tmp_path / "a" / "asked.yaml").write_text("a: [" + "1, " * 1_500_000 + "1]\n")
    assert "bytes: it is no run's asked.yaml" in table(tmp_path)["state"][0]
