"""The diagnosis of real small runs that its rules were not chosen on."""

import importlib.util
from pathlib import Path

import pytest

from lmlab.runs import load

SPEC = importlib.util.spec_from_file_location("made_runs", Path(__file__).with_name("made_runs.py"))
made_runs = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(made_runs)


@pytest.mark.slow
def test_at_least_nine_tenths_of_the_check_set_get_the_right_verdict(tmp_path):
    made_runs.train_all(tmp_path, "check")
    told = [load(tmp_path / f"check{n:02}").diagnose().verdict for n in range(len(made_runs.CHECK))]
    wrong = [
        f"{n} {kind}: {verdict}"
        for n, ((kind, *_), verdict) in enumerate(zip(made_runs.CHECK, told, strict=True))
        if not made_runs.is_right(kind, verdict)
    ]
    assert len(told) >= 30
    assert 10 * len(wrong) <= len(told), "\n".join(wrong)
