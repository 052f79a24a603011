"""The diagnosis of real small runs that its rules were not chosen on."""

import importlib.util
import sys
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
TRAIN = "import sys; from pathlib import Path; from tests.evaluation.made_runs import train_all; "
TRAIN += "train_all(Path(sys.argv[1]), 'check', map(int, sys.argv[2:]))"


def test_at_least_nine_tenths_of_the_check_set_get_the_right_verdict_and_the_wrong_ones_are_these():
    told = [(kind, diagnose(points, facts).verdict) for kind, points, facts in made_runs.recorded()]
    assert [kind for kind, _ in told] == [kind for kind, *_ in made_runs.CHECK]
    wrong = {n: verdict for n, (kind, verdict) in enumerate(told) if not made_runs.is_right(kind, verdict)}
    assert wrong == {0: "rate too high", 6: "rate too high", 25: "diverged"}
    assert len(told) >= 30
    assert 10 * len(wrong) <= len(told)


@pytest.mark.slow
def test_a_run_of_each_kind_that_is_trained_again_gets_the_right_verdict(warm, tmp_path):
    """In another process, where shapes are not checked in every call: a third of the time of so small models."""
    kinds = Counter(made_runs.CHECK[n][0] for n in AGAIN)
    assert kinds == Counter({kind for kind, *_ in made_runs.CHECK})
    done = warm.run([sys.executable, "-c", TRAIN, str(tmp_path), *map(str, AGAIN)], tmp_path)
    assert done.returncode == 0, done.stderr
    for n in AGAIN:
        kind, verdict = made_runs.CHECK[n][0], load(tmp_path / f"check{n:02}").diagnose().verdict
        assert made_runs.is_right(kind, verdict), f"{n} {kind}: {verdict}"
