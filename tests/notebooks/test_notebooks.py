"""Notebooks import and call, never define; they are stored with their outputs, and run."""

import ast
from pathlib import Path

import nbformat
import pytest

DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))

# What makes a training cell take seconds; put in front of the notebook's own, which stays as it is.
TINY = """
import lmlab
_compose = lmlab.compose
lmlab.compose = lambda overrides: _compose([*overrides, *{overrides}])
"""
OVERRIDES = [
    "corpus=files",
    "corpus.split_by=share",
    "tokenizer.vocab_size=300",
    "model.d_model=24",
    "model.n_layers=1",
    "trainer.max_steps=3",
    "validation.train_tokens=500",
]
TEXT = "My fellow citizens, the state of the Union is strong.\nThe people know it; we shall not rest.\n" * 60


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


def test_the_parameters_are_plain_values_in_a_tagged_cell(path):
    (cell,) = [cell for cell in code(read(path)) if "parameters" in cell.metadata.get("tags", [])]
    for statement in ast.parse(cell.source).body:
        assert isinstance(statement, ast.Assign)
        ast.literal_eval(statement.value)


@pytest.mark.slow
def test_a_notebook_trains_the_run_that_is_missing_and_reads_it(path, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="it is in lmlab[notebooks]")
    (tmp_path / "speeches.txt").write_text(TEXT, encoding="utf-8")
    overrides = [*OVERRIDES, f"corpus.train={tmp_path / 'speeches.txt'}"]
    for key in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(key, str(tmp_path / key.lower()))
    notebook = read(path)
    cells = code(notebook)
    (parameters,) = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    parameters.source = f"{TINY.format(overrides=overrides)}\nrun_dir = {str(tmp_path / 'run')!r}"
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}})
    client.execute()
    assert (tmp_path / "run" / "results.json").exists()
    assert not [o for c in cells for o in c.outputs if o.output_type == "error"]
