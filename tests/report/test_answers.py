"""What runs answer beside which is best: as the page is given it."""

import json

import numpy as np
import pandas as pd
import pytest

from lmlab import report
from lmlab.report.answers import equalities, scaling_laws, sizes
from lmlab.report.gather import clean

N, D = (x.ravel() for x in np.meshgrid(np.geomspace(1e5, 1.6e6, 5), np.geomspace(2.5e5, 2e6, 4)))


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    told = {"treatment": [str(i) for i in range(len(N))], "state": "budget", "parameters": N, "tokens": D, "seed": 0}
    told |= {"seconds": N * D / 1e9, "n_params": N, "max_tokens": D, "val/bpb": 1.2 + 40 / N**0.34 + 300 / D**0.45}
    one = pd.DataFrame(told | {"model": "TransformerLM"})
    return pd.concat([one, one.assign(model="LSTMLM", treatment=one["treatment"] + "l")], ignore_index=True)


def test_the_page_is_given_laws_with_points_lines_and_intervals(frame):
    laws = clean(scaling_laws(frame, "val/bpb"))
    assert [law["label"] for law in laws] == ["model=LSTMLM", "model=TransformerLM"]
    (law, _) = laws
    assert len(law["points"]) == law["n"] == 20
    assert [round(line["parameters"], -5) for line in law["lines"]] == [1e5, 2e5, 4e5, 8e5, 1.6e6]
    assert law["numbers"]["alpha"][0] == pytest.approx(0.34, rel=1e-2)
    assert max(law["lines"][0]["tokens"]) == pytest.approx(4 * D.max())
    json.dumps(laws, allow_nan=False)


def test_there_are_no_laws_of_speed_and_none_of_a_few_runs(frame):
    assert scaling_laws(frame, "tokens_per_s") == []
    assert scaling_laws(frame.head(5), "val/bpb") == []


def test_families_are_compared_three_ways(frame):
    rows = equalities(frame, "val/bpb", 1)
    assert {row["held"] for row in rows} == {"parameters", "tokens", "seconds"}
    assert equalities(frame[frame["model"] == "LSTMLM"], "val/bpb", 1) == []
    assert equalities(frame, "seconds", 1) == []


def test_nearly_equal_sizes_share_a_line():
    assert sizes(np.array([100.0, 101.0, 99.0, 200.0])) == [100.0, 200.0]
    assert len(sizes(np.geomspace(1, 1e6, 30))) == 6


def test_the_page_has_places_for_its_answers():
    page = report.render({})
    assert 'id="equal"' in page
    assert 'id="scaling"' in page
    assert "function scaling()" in page
