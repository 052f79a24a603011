"""lmlab bench: what it prints and writes can be typed, and trains."""

import json
import shlex

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from lmlab.cli import main
from lmlab.cli.bench import command


def test_what_it_recommends_trains(small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe = [o for o in small["lstm"] if not o.startswith("cache_dir")]
    assert main(["bench", *recipe, "seconds=3", "name=mine", "format=json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert "tokens/s" in captured.err, "it shows how it goes on"
    assert {row["precision"] for row in found["settings"]} >= {"32-true"}
    assert all(row["tokens_per_s"] > 0 and row["loss"] > 0 for row in found["settings"])
    assert found["file"] == "outputs/conf/tuned/mine.yaml"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["outputs"], "no run is left"
    chosen = yaml.safe_load((tmp_path / found["file"]).read_text())
    assert main([*shlex.split(found["command"])[1:], "run_dir=run"]) == 0
    decided = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert decided["decided"]["precision"] == chosen["precision"]
    assert decided["threads"] == chosen["threads"]
    capsys.readouterr()
    assert main(["train", *recipe, *found["overrides"].split(), "run_dir=typed"]) == 0
    asked = [yaml.safe_load((tmp_path / name / "asked.yaml").read_text()) for name in ("run", "typed")]
    assert asked[0] == asked[1]
    assert "threads" not in asked[0], "another number of threads is the same run"


def test_a_table_tells_the_same(small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *small["lstm"], "seconds=1"]) == 0
    shown = capsys.readouterr().out
    for piece in (
        "tokens/s",
        "MFU",
        "times as fast as without: precision=",
        "lmlab train",
        "+tuned=files_byte_lstm_cpu",
    ):
        assert piece in shown


def test_wrong_keys_are_refused_by_name(small, capsys):
    for word, told in (
        ("seconds=soon", "seconds=soon must be a number"),
        ("model.d_modle=3", "d_model"),
        ("format=xml", "format=xml must be one of table, json"),
        ("model.d_model=abc", "model.d_model=abc"),
    ):
        assert main(["bench", *small["lstm"], word]) == 2
        assert told in capsys.readouterr().err


def test_help_tells_its_own_keys(capsys):
    assert main(["bench", "--help"]) == 0
    assert "seconds: 90" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["fast", "files_char_lstm_cpu", "快 一点"])
def test_the_command_reads_the_name_that_was_given(name: str):
    *_, word = shlex.split(command(["model=lstm"], "outputs/conf", name))
    (override,) = OverridesParser.create().parse_overrides([word])
    assert override.value() == name
