"""Notebooks import and call, never define; they are stored with their outputs, and run."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

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


@pytest.mark.slow
def test_a_notebook_makes_what_is_missing_and_reads_it(path, tmp_path, monkeypatch):
    """As it is, from an empty directory: it trains what it shows, in less than two minutes."""
    nbclient = pytest.importorskip("nbclient", reason="it is in lmlab[notebooks]")
    for key in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(key, str(tmp_path / key.lower()))
    notebook = read(path)
    cell = parameters(notebook)
    name = ast.parse(cell.source).body[0].targets[0].id
    cell.source = f"{name} = {str(tmp_path / 'made')!r}"
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert (tmp_path / "made" / ("results.json" if name == "run_dir" else "trials.csv")).exists()
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
