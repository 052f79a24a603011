"""The diagnosis of real small runs that its rules were not chosen on."""

import importlib.util
from collections import Counter
from pathlib import Path

import pytest

from lmlab.evaluation.diagnosis import diagnose
from lmlab.runs import load

SPEC = importlib.util.spec_from_file_location("made_runs", Path(__file__).with_name("made_runs.py"))
made_runs = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(made_runs)
# One of each kind, of those whose verdict is right by a margin.
AGAIN = (1, 4, 9, 14, 17, 22, 24, 26, 33, 36)


def test_at_least_nine_tenths_of_the_check_set_get_the_right_verdict_and_the_wrong_ones_are_these():
    told = [(kind, diagnose(points, facts).verdict) for kind, points, facts in made_runs.recorded()]
    assert [kind for kind, _ in told] == [kind for kind, *_ in made_runs.CHECK]
    wrong = {n: verdict for n, (kind, verdict) in enumerate(told) if not made_runs.is_right(kind, verdict)}
    assert wrong == {0: "rate too high", 6: "rate too high", 25: "diverged"}
    assert len(told) >= 30
    assert 10 * len(wrong) <= len(told)


@pytest.mark.slow
def test_a_run_of_each_kind_that_is_trained_again_gets_the_right_verdict(tmp_path):
    kinds = Counter(made_runs.CHECK[n][0] for n in AGAIN)
    assert kinds == Counter({kind for kind, *_ in made_runs.CHECK})
    made_runs.train_all(tmp_path, "check", AGAIN)
    for n in AGAIN:
        kind, verdict = made_runs.CHECK[n][0], load(tmp_path / f"check{n:02}").diagnose().verdict
        assert made_runs.is_right(kind, verdict), f"{n} {kind}: {verdict}"
