"""What pruning frees, and what it keeps."""

import shutil

import pytest

from lmlab.run_directory import RunDirectory
from lmlab.runs import prune


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


@pytest.mark.parametrize("keep", ["best", "results", "finished"])
def test_a_run_that_is_being_trained_or_is_damaged_is_passed_over_and_named(keep, trained, tmp_path, caplog):
    for name in ("a", "held", "open", "z"):
        shutil.copytree(trained["lstm"], tmp_path / name)
    (tmp_path / "a/results.json").write_text("{}")
    (tmp_path / "open/results.json").unlink()
    training = RunDirectory(tmp_path / "held" if keep != "finished" else tmp_path / "open")
    training.claim()
    with caplog.at_level("WARNING", "lmlab"):
        freed = prune(tmp_path, keep, do_it=True)
    assert {path.relative_to(tmp_path).parts[0] for path, _ in freed} == ({"z"} if keep != "finished" else set())
    assert [f"{path} is passed over" in caplog.text for path in (tmp_path / "a", training.path)] == [True, True]
    assert training.last.exists()
    training.release()
    assert prune(tmp_path, keep, do_it=False)[0][0].is_relative_to(training.path)


def test_an_unknown_rule_is_refused(tmp_path):
    with pytest.raises(ValueError, match="keep=all must be one of"):
        prune(tmp_path, "all", do_it=True)
