"""The README's own commands, run in order as they are written, in one directory of their own.

Written commands are not changed. What makes them small is appended to those that train (`SMALL`); the text that a
reader is asked to bring (`texts/`, `poems.txt`) is brought; `lmlab board` is not left running; `make` and `pip`,
which would install, are asked what they would do.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.sweeps.conftest import alone

import lmlab
from lmlab import cli
from lmlab.sweeps.crew import LocalCrew

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = [line for language, block in BLOCKS if language == "bash" for line in block.splitlines() if line.strip()]

SPEECH = "Fellow citizens, the state of the Union is strong; the people know it.\nWe shall not rest, and it's yours.\n"
POEM = "明月几时有？把酒问青天。\n不知天上宫阙，今夕是何年。\n我欲乘风归去，又恐琼楼玉宇，高处不胜寒。\n\n"
SMALL = ["validation.train_tokens=200", "callbacks.samples.max_new_tokens=4"]
BUDGETS = ("trainer.max_steps=", "trainer.max_epochs=", "max_tokens=")


def small(words: list[str]) -> list[str]:
    """What is appended to the overrides of a training command."""
    chosen = {word.partition("=")[0] for word in words}
    added = [*SMALL, f"trainer.max_steps={4 if any(w.startswith(BUDGETS) for w in words) else 2}"]
    added += ["n_params=200k"] if "n_params" in chosen else ["model.d_model=24"] * ("model=ngram" not in words)
    if "experiment" not in chosen:
        added += ["tokenizer.vocab_size=300"]
    if not chosen & {"experiment", "corpus"}:
        added += ["corpus=files", "corpus.train=speeches.txt"]
    return added if "experiment" in chosen else [*added, "corpus.split_by=share"]


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """An empty directory with the text that a reader brings."""
    monkeypatch.chdir(tmp_path)
    Path("speeches.txt").write_text(SPEECH * 100, encoding="utf-8")
    Path("texts").mkdir()
    Path("texts/one.txt").write_text(SPEECH * 60, encoding="utf-8")
    Path("texts/two.md").write_text(SPEECH * 60, encoding="utf-8")
    Path("poems.txt").write_text(POEM * 120, encoding="utf-8")
    # Each worker would import everything; tests/sweeps has workers that are processes of their own.
    monkeypatch.setattr(LocalCrew, "run", alone)
    compose = lmlab.compose
    monkeypatch.setattr(lmlab, "compose", lambda overrides: compose([*overrides, *small(overrides)]), raising=False)
    return tmp_path


def run(command: str, monkeypatch) -> int:
    words = shlex.split(command, comments=True)
    if words[0] == "make":
        return subprocess.run([*words, "--dry-run"], cwd=ROOT, stdout=subprocess.DEVNULL).returncode
    if words[0] == "pip":
        offline = ["--dry-run", "--quiet", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
        return subprocess.run([sys.executable, "-m", *words, *offline], cwd=ROOT).returncode
    if words[0] == "source":
        return 0 if f"VENV := {Path(words[1]).parts[0]}\n" in (ROOT / "Makefile").read_text() else 1
    if words[0] != "lmlab":
        return subprocess.run(["bash", "-ec", command]).returncode
    if words[1:2] and words[1] in ("train", "bench", "sweep") and "--help" not in words and "status=" not in command:
        words += small(words) + ["seconds=1"] * (words[1] == "bench")
    if words[1:2] == ["reproduce"] and words[2:]:
        words += ["corpus=files", "corpus.train=speeches.txt", "corpus.split_by=share"]
        counts = "kneser_ney_5" in words
        words += ["tokenizer.vocab_size=300"] if counts else [*SMALL, "model.d_model=24", "trainer.max_steps=4"]
    if words[1:2] == ["compare"]:
        words += ["block_bytes=20"]
    with monkeypatch.context() as patched:
        if words[1:2] == ["board"]:
            patched.setattr("lmlab.cli.board.serve", lambda root, port: 0)
        return cli.main(words[1:])


NAMED = sorted(set(re.findall(r"\blmlab\.([a-z_]+)(?:\.[a-z_]+)?\(", README)))


@pytest.mark.parametrize("name", NAMED)
def test_what_the_readme_calls_needs_no_other_import(name: str):
    # Asked of the package itself: here other tests may have imported the module already.
    assert lmlab.__getattr__(name) is getattr(lmlab, name)
    assert name in dir(lmlab)


@pytest.mark.slow
def test_every_command_of_the_readme_works_in_its_order(workspace, monkeypatch, capfd):
    for language, block in BLOCKS:
        if language == "python" and "import lmlab" in block:
            exec(compile(block, "README.md", "exec"), {})
        if language == "python" and "class MyLM" in block:
            Path("my_lm.py").write_text(block, encoding="utf-8")
        for command in block.splitlines() if language == "bash" else ():
            if command.strip():
                status = run(command, monkeypatch)
                said = capfd.readouterr()
                # The text that the tests bring is two lines again and again: an audit must say so.
                expected = 3 if command.startswith("lmlab audit") else 0
                assert status == expected, f"{command}\n{said.out}\n{said.err}"
    made = {path.parent.name for path in Path("outputs").rglob("results.json")}
    assert {"first", "mine", "poems", "small_gru", "from_python", "my_lm"} <= made
    assert {"fast", "profiled"} <= made
    assert {"counts", "second"} <= made
    assert len(made) == 22, "four more of the multirun, four of the sweep, and two reproduced"


def test_the_readme_has_commands_and_each_make_target_exists():
    assert len(COMMANDS) > 20
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in COMMANDS:
        words = shlex.split(command, comments=True)
        assert words[0] in ("make", "pip", "source", "mkdir", "printf", "lmlab"), command
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), command
        if words[0] == "lmlab" and words[1:]:
            assert words[1] in cli.VERBS, command


def test_every_option_and_recipe_is_in_the_tables_and_nothing_else():
    groups = {path.relative_to(ROOT / "conf").as_posix() for path in (ROOT / "conf").rglob("*/") if path.is_dir()}
    rows = dict(re.findall(r"^\| (`[a-z_/`, ]+`) \| (.*) \|$", README, re.MULTILINE))
    listed = {}
    for names, told in rows.items():
        for name in re.findall(r"`([a-z_/]+)`", names):
            if name in groups:
                listed[name] = set(" ".join(re.findall(r"`([a-z0-9_ ]+)`", told)).split())
    options = {g: {p.stem for p in (ROOT / "conf" / g).glob("*.yaml")} for g in groups - {".", "hydra", "experiment"}}
    listed.pop("experiment")
    assert listed == options
    recipes = set(re.findall(r"^\| `(\w+)` \| [^|]+ \| [^|]+ \|$", README, re.MULTILINE))
    assert recipes == {path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml")}


def test_what_is_where_names_what_is_there():
    (tree,) = [block for language, block in BLOCKS if language == "text"]
    folder = Path()
    for line in tree.splitlines():
        name = line.split()[0]
        at = folder / name if line.startswith(" ") else Path(name)
        folder = folder if line.startswith(" ") else at
        assert (ROOT / at).exists(), line
    shown = {line.split()[0].strip("/") for line in tree.splitlines() if line.startswith(" ")}
    there = {p.name for p in (ROOT / "src/lmlab").iterdir() if not p.name.startswith("__")}
    assert there == shown


def test_links_of_the_readme_lead_somewhere():
    titles = [title.lower() for title in re.findall(r"^#+ (.+)$", README, re.MULTILINE)]
    anchors = {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if target.startswith("#"):
            assert target[1:] in anchors
        elif not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_the_pip_command_pins_torch_as_the_constraints_do():
    (pinned,) = re.findall(r"^torch==\S+$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert any(command.startswith("pip install " + pinned) for command in COMMANDS)


def test_python_names_of_the_readme_are_public():
    for name in set(re.findall(r"lmlab\.(\w+)\(", README)):
        assert hasattr(lmlab, name), name
    assert yaml.safe_load((ROOT / "conf/train.yaml").read_text(encoding="utf-8"))["runs_root"] == "outputs/runs"
