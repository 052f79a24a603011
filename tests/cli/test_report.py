"""lmlab report: a directory in, a page and tables out, or one clear line."""

import sys

import pytest
from tests.benchmarks.many_runs import make

from lmlab import cli


@pytest.fixture
def many(tmp_path):
    # An equals sign in a directory's name does not make it a key.
    make(tmp_path / "lr=3", 5)
    return tmp_path / "lr=3"


@pytest.mark.parametrize("key", ["", "root="])
def test_the_page_and_the_tables_lie_in_the_directory(key, many, capsys):
    assert cli.main(["report", f"{key}{many}"]) == 0
    made = {path.name for path in many.iterdir() if path.is_file()}
    assert made == {"report.html", "trials.csv", "trials.parquet", "curves.parquet"}
    said = capsys.readouterr().out
    assert all(name in said for name in made)


def test_without_pyarrow_the_rest_is_made_and_it_is_said(many, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert cli.main(["report", str(many)]) == 0
    assert (many / "report.html").exists()
    assert (many / "trials.csv").exists()
    assert "lmlab[sweeps]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nowhere"], "root=nowhere is no directory"),
        (["{}", "metric=val/bbp"], "no run has metric=val/bbp (did you mean val/bpb"),
        (["{}", "out={}/a/b.html"], "is in no directory"),
        (["{}", "metrics=val/bpb"], "metric"),
    ],
)
def test_a_mistake_is_one_line(words, line, many, capsys, monkeypatch):
    monkeypatch.chdir(many.parent)
    assert cli.main(["report", *(word.format(many) for word in words)]) == 2
    said = capsys.readouterr().err
    assert line in said
    assert len(said.splitlines()) == 1
    assert not list(many.glob("*.html"))
