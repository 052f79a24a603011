"""The house stands: imports point down, every option has its class and test, no room is called 'misc'."""

import ast
from functools import cache
from pathlib import Path

import pytest
import yaml

from lmlab.config import ALLOWED_TARGETS, conf_dir
from lmlab.instantiate import find

SOURCE = Path(__file__).parents[1] / "src" / "lmlab"
TESTS = Path(__file__).parent

# Room: the rooms that it may import, besides itself. What is not in the table has no place in the house yet.
FOUNDATION = {"errors", "types", "metrics", "deferred", "seal", "terminal"}
ROOMS = {
    "errors": set(),
    "seal": set(),
    "terminal": set(),
    "types": set(),
    "deferred": set(),
    "metrics": {"types", "deferred"},
    "config": set(),
    "decisions": {"config"},
    "hardware": {"data", "models"},
    "instantiate": {"config"},
    "schema": {"config", "instantiate"},
    "run_directory": {"config", "seal"},
    "sizes": {"models"},
    "speed": {"config", "data", "decisions", "hardware", "models", "sizes"},
    "tokenizers": set(),
    "native": {"data"},
    "models": {"types", "native"},
    "data": {"tokenizers", "types", "deferred", "seal"},
    "scoring": {"models", "tokenizers", "metrics", "types", "errors"},
    "generation": {"models", "tokenizers", "types", "errors"},
    "interop": {"models", "tokenizers"},
    "evaluation": {"config", "scoring", "generation", "data", "models", "tokenizers", *FOUNDATION},
    "interpret": {"scoring", "models", "tokenizers", *FOUNDATION},
    "training": {
        *("config", "instantiate", "run_directory", "sizes", "tokenizers", "models", "data", "scoring", "generation"),
        *("decisions", "hardware"),
        *("evaluation", *FOUNDATION),
    },
    "initial": {"config", "run_directory", "interop", "training"},
    "plots": set(),
}
ROOMS["experiment"] = set(ROOMS)
ROOMS["rank"] = {"experiment", "models", "run_directory", "training", "errors"}
ROOMS["tuning"] = set(ROOMS) - {"rank"}
ROOMS["runs"] = set(ROOMS)
ROOMS["measurement"] = set(ROOMS)
ROOMS["reproduction"] = set(ROOMS)
ROOMS["report"] = {"config", "data", "run_directory", "runs"}
ROOMS["sweeps"] = {"config", "data", "decisions", "run_directory", "schema", "sizes", "experiment", "runs", "report"}
ROOMS["sweeps"] |= FOUNDATION
ROOMS["cli"] = set(ROOMS)
ROOMS["__main__"] = {"cli"}
# (file, room): why the arrow points up.
EXCEPTIONS = {
    # A worker of a sweep is a process of its own, which says what went wrong as `lmlab train` says it.
    ("sweeps/worker.py", "cli"),
    # A launcher's job gets its words through Hydra, quoted as those of a command line.
    ("sweeps/crew.py", "cli"),
}

# Who may import what costs seconds, or is optional.
HEAVY = {
    "lightning": ("training/", "data/datamodule.py", "experiment.py", "sweeps/reporter.py"),
    "transformers": ("interop/", "tokenizers/pretrained.py"),
    "matplotlib": ("plots.py",),
    "datasets": ("data/corpora/hf.py",),
    "rich": ("cli/", "data/progress.py", "scoring/display.py", "training/progress.py", "sweeps/live.py", "terminal.py"),
    "tensorboard": ("training/", "cli/board.py"),
    "optuna": ("sweeps/", "report/importance.py"),
    "sklearn": ("report/importance.py",),
}
# Where configuration becomes objects.
BUILDERS = ("experiment.py", "runs/run.py")
BUILDERS += tuple(f"training/{name}.py" for name in ("fit", "plan", "rehearsal", "results"))


@cache
def imports() -> list[tuple[str, str]]:
    """(file, imported module), wherever in the file it stands."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        file = path.relative_to(SOURCE).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "lmlab":
                found += [(file, f"lmlab.{alias.name}") for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file} has a relative import"
                found.append((file, str(node.module)))
            elif isinstance(node, ast.Import):
                found += [(file, alias.name) for alias in node.names]
    return found


def room(file: str) -> str:
    return file.partition("/")[0].removesuffix(".py")


def test_every_file_stands_in_a_room():
    standing = {room(path.relative_to(SOURCE).as_posix()) for path in SOURCE.rglob("*.py")} - {"__init__"}
    assert standing <= set(ROOMS)


def test_imports_point_down():
    wrong = [
        f"{file} imports {module}"
        for file, module in imports()
        if module.startswith("lmlab.")
        and module != "lmlab.__version__"
        and room(file) not in ("__init__", (other := module.split(".")[1]))
        and other not in ROOMS[room(file)]
        and (file, other) not in EXCEPTIONS
    ]
    assert wrong == []


@pytest.mark.parametrize("library", HEAVY)
def test_a_heavy_library_is_imported_in_its_places_only(library: str):
    users = {file for file, module in imports() if module.partition(".")[0] == library}
    assert {file for file in users if not file.startswith(HEAVY[library])} == set()


def test_tokenizers_need_no_torch():
    assert not [file for file, module in imports() if file.startswith("tokenizers/") and module.startswith("torch")]


def test_configuration_becomes_objects_in_few_places():
    users = {file for file, module in imports() if module in ("lmlab.instantiate", "hydra.utils")}
    calling = {file for file in users if "instantiate(" in (SOURCE / file).read_text(encoding="utf-8")}
    assert calling <= set(BUILDERS)
    assert not {file for file, module in imports() if module == "hydra.utils"}


def test_no_room_is_for_what_has_no_name():
    names = {part.removesuffix(".py") for path in SOURCE.rglob("*.py") for part in path.relative_to(SOURCE).parts}
    assert not names & {"utils", "util", "helpers", "common", "components", "misc"}


def nodes(tree):
    if isinstance(tree, dict):
        if "_target_" in tree:
            yield tree["_target_"]
        for value in tree.values():
            yield from nodes(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from nodes(value)


@cache
def targets() -> dict[str, set[str]]:
    """Target: the options that name it."""
    found: dict[str, set[str]] = {}
    for path in conf_dir().rglob("*.yaml"):
        for target in nodes(yaml.safe_load(path.read_text(encoding="utf-8"))):
            found.setdefault(target, set()).add(path.relative_to(conf_dir()).as_posix())
    return found


@pytest.mark.parametrize("target", sorted(t for t in targets() if t.startswith("lmlab.")))
def test_every_option_has_its_class_and_test(target: str):
    function = find(target)
    parts = function.__module__.split(".")[1:]
    folder, name = parts[0], "_".join(parts[1:])
    if (TESTS / folder / f"test_{name}.py").exists():
        return
    naming = [
        p for p in (TESTS / folder).glob("test_*.py") if target.rpartition(".")[2] in p.read_text(encoding="utf-8")
    ]
    assert naming, f"no tests/{folder}/test_{name}.py, and no test there names {target}"


def test_a_stored_run_may_name_all_that_our_options_name():
    """Of the groups that loading a run builds."""
    needed = {
        t
        for t, options in targets().items()
        if {o.partition("/")[0] for o in options} & {"model", "corpus", "tokenizer"}
    }
    assert needed <= ALLOWED_TARGETS
