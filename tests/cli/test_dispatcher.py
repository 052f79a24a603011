"""`lmlab` itself: verbs found, text kept exactly, and errors as one line with an exit status."""

import ast
import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab import __version__, cli
from lmlab.cli import VERBS, main, quote
from lmlab.cli.command import show_log

# Every character that Hydra's or OmegaConf's grammar knows, and any other but lone surrogates and NUL, which no
# command line can hold.
CHARACTERS = st.one_of(
    st.sampled_from("\\\"'${}[],=:()~+@%# \n\t\r第"),
    st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"),
)


def as_hydra_reads(argument: str):
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    override = OverridesParser.create().parse_override(argument)
    assert not override.is_sweep_override()
    config = OmegaConf.create({"value": None})
    OmegaConf.update(config, "value", override.value())
    return OmegaConf.to_container(config, resolve=True)["value"]


@settings(max_examples=300, deadline=None)
@given(st.text(CHARACTERS, max_size=15))
def test_free_text_reaches_the_verb_exactly(text: str):
    assert as_hydra_reads(quote(f"text={text}")) == text


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("prompt=第一句", "第一句"),
        ("text=It's", "It's"),
        ("text=a,b=c", "a,b=c"),
        ('text="quoted"', '"quoted"'),
        ("text=null", "null"),
        ("text=", ""),
        ("text=[1,2]", "[1,2]"),
        ("run_dir=a b/${x}", "a b/${x}"),
        ("run_dir=null", None),
        ("corpus.train=[第一.txt, a b.txt]", ["第一.txt", "a b.txt"]),
        ("corpus.train=a,b.txt", "a,b.txt"),
        ("corpus.meta_fields=[作者, 2020]", ["作者", "2020"]),
        (r"stop=\n\n", "\n\n"),
        (r'stop=["\n","a, b"]', ["\n", "a, b"]),
        (r"stop=[the, \n,\t]", ["the", "\n", "\t"]),
        (r'corpus.document_separator="\n\n"', "\n\n"),
    ],
)
def test_text_and_paths_are_taken_as_they_stand(typed: str, meant):
    assert as_hydra_reads(quote(typed)) == meant


SHOWN = {"gbk": b"\xc3\xf7 \\u2423 \\U0001f600", "ascii": b"\\u660e \\u2423 \\U0001f600", "utf-8": "明 ␣ 😀".encode()}


@pytest.mark.parametrize("encoding", SHOWN)
def test_what_the_terminals_encoding_lacks_is_shown_as_its_escape(encoding: str):
    code = (
        "import sys; from lmlab.cli import command, main; main([]); text = '\u660e \u2423 \U0001f600'; "
        "print(text, file=sys.stderr); print('|'); command.show_json(text)"
    )
    how = {"env": os.environ | {"PYTHONIOENCODING": encoding}, "check": True, "capture_output": True}
    done = subprocess.run([sys.executable, "-c", code], **how)
    assert done.stderr.strip() == SHOWN[encoding]
    # JSON's own escapes, where some are needed.
    assert json.loads(done.stdout.split(b"|")[1].decode(encoding)) == "明 ␣ 😀"


def test_other_keys_keep_hydras_grammar():
    assert quote("seed=1,2") == "seed=1,2"
    assert quote("model.d_model=8") == "model.d_model=8"


def test_the_bare_command_lists_every_verb(capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {verb} " in shown and phrase in shown for verb, phrase in VERBS.items())


def test_the_version_is_shown(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lmlab {__version__}\n"


def test_the_bare_command_loads_nothing_heavy():
    code = (
        "import sys; from lmlab.cli import main; main([]); main(['--version']); "
        "print(sorted({'torch','hydra','numpy','omegaconf','yaml','pandas','rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_python_m_lmlab_is_the_command():
    done = subprocess.run([sys.executable, "-m", "lmlab", "trian"], capture_output=True, text=True)
    assert (done.returncode, "'train'" in done.stderr) == (2, True)


@pytest.mark.parametrize(("typed", "near"), [("trian", "'train'"), ("xyzzy", "`lmlab` lists them")])
def test_an_unknown_verb_names_the_nearest(typed: str, near: str, capsys):
    assert main([typed]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert repr(typed) in error
    assert near in error


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_its_keys(verb: str, capsys):
    assert main([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert VERBS[verb] in shown
    assert ": " in shown.split("\n\n", 1)[1]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_shows_its_composed_config(verb: str, capsys):
    import yaml

    assert main([verb, "--cfg", "job"]) == 0
    assert isinstance(yaml.safe_load(capsys.readouterr().out), dict)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["generate", "-m"], "one run at a time"),
        (["train", "--foo"], "no flag '--foo'"),
        (["train", "--cfg"], "--cfg needs a value"),
        (["train", "--config-dir=/nonexistent"], "/nonexistent"),
        (["train", "-m", "run_dir=x", "seed=1,2"], "run_dir"),
        (["train", "seed=1,2"], "add -m"),
        (["train", "seed"], "key=value"),
    ],
)
def test_a_wrong_command_line_is_refused_in_one_line(arguments: list[str], told: str, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert told in error


def raised_by_a_library():
    int("no number at all")


def fake_verb(monkeypatch, error):
    """`lmlab board` that does nothing but fail."""
    import lmlab.cli.board

    def fail(arguments):
        raise error

    monkeypatch.setattr(lmlab.cli.board, "main", fail)


def test_the_exit_status_tells_whose_fault_it_is(monkeypatch, capsys):
    from lmlab.errors import TrainingFailed

    for error, status in [
        (TrainingFailed("the loss is nan"), 3),
        (OSError(28, os.strerror(28), "f"), 3),
        (FileNotFoundError(2, os.strerror(2), "f"), 2),
        (KeyError("ours"), 1),
        (AssertionError("ours"), 1),
        (KeyboardInterrupt(), 130),
    ]:
        fake_verb(monkeypatch, error)
        assert main(["board"]) == status, error
        told = capsys.readouterr().err
        assert ("please report" in told) == (status == 1)
        assert status == 1 or told.count("\n") == 1


@pytest.mark.parametrize(
    ("verb", "remedy"),
    [("evaluate", "a smaller batch_size= needs less"), ("train", "a smaller model needs less"), ("score", None)],
)
def test_memory_that_runs_out_is_no_fault_of_ours(verb: str, remedy: str | None):
    error = ValueError("could not be measured")
    error.__cause__ = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation")
    for raised in (error.__cause__, error, MemoryError()):
        status, message = cli.classify(raised, verb)
        assert status == 3
        assert message.startswith("out of memory")
        assert "\n" not in message
        assert remedy is None or remedy in message


def test_the_log_goes_once_to_what_is_standard_error_by_then(monkeypatch):
    for _ in range(2):
        show_log()
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        logging.getLogger("lmlab").info("a line")
        assert sys.stderr.getvalue() == "a line\n"


def test_no_function_of_the_dispatcher_is_named_as_a_verb():
    """Importing the verb's module would put it in the function's place."""
    tree = ast.parse(Path(cli.__file__).read_text(encoding="utf-8"))
    assert not {node.name for node in tree.body if isinstance(node, ast.FunctionDef)} & set(cli.VERBS)
