"""The diagnosis of real small runs: one of each kind."""

import importlib.util
from pathlib import Path

import pytest

from lmlab.runs import load

SPEC = importlib.util.spec_from_file_location("made_runs", Path(__file__).with_name("made_runs.py"))
made_runs = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(made_runs)


@pytest.mark.slow
def test_a_real_run_of_each_kind_gets_its_verdict(tmp_path):
    """But for a rate that is too high: at forty times the usual rate these models, which normalise, still learn."""
    numbers = [n for n in range(0, 32, 4) if made_runs.DESIGN[n][0] != "rate too high"]
    made_runs.train_all(tmp_path, "design", numbers)
    found = {made_runs.DESIGN[n][0]: load(tmp_path / f"design{n:02}").diagnose().verdict for n in numbers}
    assert found == {kind: kind for kind in found}
    assert len(found) == 7
