"""A run's directory: whose it is, who writes to it, and what a killed start leaves."""

import json
import math
import os
import subprocess
import sys

import pytest

from lmlab.run_directory import RunDirectory, budget, fresh

ASKED = {"trainer": {"max_steps": 10, "max_epochs": None, "max_time": None}, "max_tokens": None, "seed": 0}


def begun(path, **changes) -> RunDirectory:
    run = RunDirectory(path)
    path.mkdir()
    run.write_yaml("asked.yaml", ASKED | changes)
    return run


def finished(run: RunDirectory, why: str) -> RunDirectory:
    run.write_json("results.json", {"training": {"stopped_because": why}})
    return run


def test_a_run_is_new_then_continued_then_finished(tmp_path):
    assert RunDirectory(tmp_path / "run").check(ASKED) == "new"
    run = begun(tmp_path / "run")
    assert run.check(ASKED) == "continue"
    assert finished(run, "interrupted").check(ASKED) == "continue"
    assert finished(run, "budget").check(ASKED) == "finished"
    assert run.check(ASKED | {"trainer": ASKED["trainer"] | {"max_steps": 11}}) == "extend"


def test_parts_of_an_epoch_are_budgets_too(tmp_path):
    asked = ASKED | {"trainer": {"max_epochs": 0.2}}
    run = finished(begun(tmp_path / "run", **asked), "budget")
    assert run.check(asked) == "finished"
    assert run.check(asked | {"trainer": {"max_epochs": 0.4}}) == "extend"
    with pytest.raises(ValueError, match=r"trainer.max_epochs=0.1 is below the 0.2"):
        run.check(asked | {"trainer": {"max_epochs": 0.1}})


def test_budgets_only_grow_and_nothing_else_changes(tmp_path):
    run = begun(tmp_path / "run")
    with pytest.raises(ValueError, match=r"trainer.max_steps=9 is below the 10 .* can only grow"):
        run.check(ASKED | {"trainer": ASKED["trainer"] | {"max_steps": 9}})
    with pytest.raises(ValueError, match=r"seed: 0 there, 1 now"):
        run.check(ASKED | {"seed": 1})


@pytest.mark.parametrize(
    ("value", "size"),
    [(None, float("inf")), (-1, float("inf")), (5, 5.0), (0.4, 0.4), ("2M", 2e6), ("00:01:00:30", 3630.0)],
)
def test_budgets_of_all_kinds_can_be_compared(value, size):
    assert budget(value) == size


def test_a_start_that_was_killed_at_once_can_be_repeated(tmp_path):
    killed = RunDirectory(tmp_path)
    killed.claim()
    killed.release()
    (tmp_path / "asked.yaml.tmp").write_text("tr")
    assert RunDirectory(tmp_path).check(ASKED) == "new"


def test_a_directory_of_other_things_is_no_run(tmp_path):
    (tmp_path / "thesis.tex").write_text("do not touch")
    with pytest.raises(ValueError, match="is not empty and is no run"):
        RunDirectory(tmp_path).check(ASKED)


def test_the_lock_of_another_process_is_respected_until_it_dies(tmp_path):
    script = (
        "import sys; from lmlab.run_directory import RunDirectory; run = RunDirectory(sys.argv[1]); run.claim();"
        "print(flush=True); sys.stdin.read()"
    )
    words = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(ValueError, match="is being trained by another process"):
            RunDirectory(tmp_path).claim()
        other.kill()
        other.wait()
        mine = RunDirectory(tmp_path)
        mine.claim()
        mine.release()


def test_files_are_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    run = begun(tmp_path / "run")

    def fails(*args):
        raise OSError("no")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="no"):
        run.write_yaml("asked.yaml", {"seed": 1})
    assert run.asked() == ASKED
    assert os.listdir(run.path) == ["asked.yaml"]


def test_automatic_names_never_collide(tmp_path):
    assert len({fresh(tmp_path, "run") for _ in range(5)}) == 5


def test_damaged_records_are_named(tmp_path):
    run = begun(tmp_path / "run")
    (run.path / "asked.yaml").write_text("a: [")
    with pytest.raises(ValueError, match=r"asked.yaml is damaged"):
        run.asked()
    (run.path / "results.json").write_text('{"training": ')
    with pytest.raises(ValueError, match=r"results.json is damaged"):
        run.results()


def test_a_path_of_bytes_that_are_no_utf8_can_be_recorded(tmp_path):
    run = RunDirectory(tmp_path)
    run.write_yaml("config.yaml", {"format": 1, "run_dir": "a\udcd6", "n": 1})
    run.write_json("results.json", {"run_dir": "a\udcd6"})
    assert run.config() == {"format": 1, "run_dir": "a?", "n": 1}
    assert run.results() == {"run_dir": "a?"}


def test_without_locks_a_run_is_trained_all_the_same(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("lmlab.run_directory.fcntl.flock", none)
    run = RunDirectory(tmp_path)
    run.claim()
    run.write_json("results.json", {"a": 1})
    assert run.results() == {"a": 1}
    run.release()


def test_what_is_infinite_or_nan_is_null_in_the_file_and_itself_where_it_is_read(tmp_path):
    run, nan, inf = begun(tmp_path / "run"), math.nan, math.inf
    words = {"nll": 800.0, "ppl": inf, "bpb": 2.0, "word_ppl": inf, "words": 9, "unknown": None}
    blank = {"nll": 1.0, "word_ppl": nan, "words": 0}
    tree = {"splits": {"val": words, "test": blank}, "floors": {"unigram": {"val": words}}}
    tree["training"] = {"history": [{"step": 1, "val/ppl": inf, "val/gap": nan}], "mfu": None}
    run.write_json("results.json", tree)
    json.loads((run.path / "results.json").read_text(), parse_constant=pytest.fail)
    # By their text: NaN is not equal to itself.
    assert repr(run.results()) == repr(tree)
    # As older versions wrote it.
    (run.path / "results.json").write_text(json.dumps(tree))
    assert repr(run.results()) == repr(tree)
