"""Notebooks import and call, never define; they are stored with their outputs, and run."""

import ast
import os
import re
from pathlib import Path

import nbformat
import pytest
from tests.evaluation.made_runs import speeches
from tests.warm import PLACES

DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))

# What an installation, a machine or a careless cell leaves behind in an output.
TRACES = re.compile(r"/(?:home|root|tmp|Users|work|usr)/|[A-Z]:\\\\|Warning\b|Traceback")
# Bytes of an image: a page of ten loads at once.
IMAGE = 120_000


def read(path: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


def test_a_notebook_defines_nothing(path):
    for cell in code(read(path)):
        found = [type(node).__name__ for node in ast.walk(ast.parse(cell.source)) if isinstance(node, DEFINITIONS)]
        assert not found, f"move it to src: {cell.source}"


def test_a_notebook_is_stored_as_one_run_from_top_to_bottom(path):
    cells = code(read(path))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]


def test_outputs_tell_nothing_of_the_machine_and_images_are_small(path):
    for cell in code(read(path)):
        for output in cell.outputs:
            told = output.get("data", {})
            texts = [output.get("text", ""), told.get("text/plain", ""), told.get("text/html", "")]
            assert not TRACES.search("\n".join(texts)), cell.source
            assert len(told.get("image/png", "")) < IMAGE, cell.source


def parameters(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """papermill's convention: the one cell whose values a caller replaces."""
    (cell,) = [cell for cell in code(notebook) if "parameters" in cell.metadata.get("tags", [])]
    return cell


def test_the_one_parameter_is_a_directory(path):
    (statement,) = ast.parse(parameters(read(path)).source).body
    assert isinstance(statement, ast.Assign)
    assert statement.targets[0].id in ("run_dir", "sweep_dir")
    assert ast.literal_eval(statement.value).startswith("../outputs/")


def test_every_notebook_has_its_line_in_the_readme(path):
    assert f"](notebooks/{path.name})" in (path.parents[1] / "README.md").read_text(encoding="utf-8")


# Appended to what a notebook asks of a run, and of a sweep, as its first cell does here: its own words, made small.
SMALL_RUN = ["model.d_model=48", "trainer.max_steps=20", "validation.limit_tokens=2000", "validation.train_tokens=2000"]
SMALL_SWEEP = ["trainer.max_steps=20", "replicates=2", "validation.limit_tokens=500", "validation.train_tokens=500"]
SMALL_SWEEP += ["trainer.val_check_interval=4", "batching.batch_size=4", "threads=1"]
# Each width would be timed in both precisions.
SMALL_SWEEP += ["precision=32", "compile=false"]
PATCH = """
import lmlab
from lmlab.sweeps.crew import LocalCrew
from tests.sweeps.conftest import alone

LocalCrew.run = alone
compose, sweep = lmlab.compose, lmlab.sweep
lmlab.compose = lambda words: compose([*words, *{run}])
lmlab.sweep = lambda words: sweep([*words, *{sweep}])
"""
# What is executed as it is: one; with LMLAB_NOTEBOOKS_WHOLE=1 all, which takes ten minutes.
WHOLE = ("01_first_run",) if not os.environ.get("LMLAB_NOTEBOOKS_WHOLE") else tuple(path.stem for path in NOTEBOOKS)


def small(name: str, folder: Path) -> nbformat.NotebookNode:
    """The cell that goes before a notebook's own. The tutorial and the speeches of `run_dir` keep their text."""
    text = folder / "text.txt"
    text.write_text(speeches(1990, 1999)[:100_000], encoding="utf-8")
    shares = ["corpus.split_by=share", "corpus.val_share=0.03", "corpus.test_share=0.03"]
    files = [] if name == "00_教程" else ["corpus=files", f"corpus.train={text}", *shares]
    run = SMALL_RUN if name == "05_scoring_and_surprisal" else []
    return nbformat.v4.new_code_cell(PATCH.format(run=run, sweep=[*SMALL_SWEEP, *files]))


@pytest.mark.slow
def test_a_notebook_makes_what_is_missing_and_reads_it(path, tmp_path, monkeypatch):
    """From an empty directory: it trains what it shows, one as it is and the others at small sizes."""
    nbclient = pytest.importorskip("nbclient", reason="it is in lmlab[notebooks]")
    for key in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(key, str(tmp_path / key.lower()))
    monkeypatch.setenv("PYTHONPATH", PLACES)
    notebook = read(path)
    cell = parameters(notebook)
    name = ast.parse(cell.source).body[0].targets[0].id
    cell.source = f"{name} = {str(tmp_path / 'made')!r}"
    cells = code(notebook)
    if path.stem not in WHOLE:
        notebook.cells.insert(0, small(path.stem, tmp_path))
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert (tmp_path / "made" / ("results.json" if name == "run_dir" else "trials.csv")).exists()
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
