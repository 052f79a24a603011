"""lmlab export as a person calls it."""

import json
import subprocess
import sys

import pytest
from tests.cli.test_verbs import call, refused


def test_export_writes_a_folder_and_says_what_is_in_it(trained, tmp_path, capsys):
    told = call(capsys, "export", f"run_dir={trained['transformer']}", f"out={tmp_path}/a b")
    names = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert [line.split(maxsplit=2)[2] for line in told.splitlines()] == [f"{tmp_path}/a b/{name}" for name in names]
    assert json.loads((tmp_path / "a b" / "config.json").read_text())["model_type"] == "qwen3"
    # And again: what it made it may replace.
    assert told == call(capsys, "export", f"run_dir={trained['transformer']}", f"out={tmp_path}/a b")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("run_dir=LSTM", "out=... is needed: the folder to write"),
        ("out=x", "run_dir=... is needed"),
        ("run_dir=LSTM out=x", "a LSTMLM has no counterpart in transformers"),
        ("run_dir=TRANSFORMER out=TRANSFORMER", "is not empty and is no export of lmlab's; name another directory"),
        ("run_dir=TRANSFORMER out=README.md", "README.md is a file; name a directory"),
        ("run_dir=TRANSFORMER out=x checkpoint=foo", "checkpoint=foo must be one of best, last"),
        ("run_dir=TRANSFORMER ou=x", "did you mean out?"),
    ],
)
def test_a_mistake_is_one_line(arguments, told, trained, capsys):
    words = [w.replace("LSTM", str(trained["lstm"])).replace("TRANSFORMER", str(trained["transformer"]))
             for w in arguments.split()]  # fmt: skip
    assert told in refused(capsys, "export", *words)


def test_a_verb_that_is_near_is_named(capsys):
    assert "did you mean 'export'?" in refused(capsys, "exprt")


def test_exporting_imports_no_transformers(trained, tmp_path):
    code = (
        "import sys; from lmlab.cli import main; "
        f"status = main(['export', 'run_dir={trained['transformer']}', 'out={tmp_path}/hf']); "
        "print(status, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 False", done.stderr
