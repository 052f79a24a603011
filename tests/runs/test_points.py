"""Curves of many runs are one table."""

import pandas as pd
import pytest
from tests.benchmarks.many_runs import POINTS, VALIDATIONS, make

from lmlab.run_directory import RunDirectory
from lmlab.runs import curves


@pytest.fixture
def three(tmp_path):
    make(tmp_path, 3)
    return tmp_path


def test_every_point_of_every_run_is_a_row(three):
    frame = curves(three)
    assert frame.groupby("run").size().tolist() == [POINTS + VALIDATIONS] * 3
    assert frame["val/bpb"].notna().sum() == 3 * VALIDATIONS
    name = frame["run"][0]
    one = pd.DataFrame(RunDirectory(three / name).points()).apply(pd.to_numeric)
    mine = frame[frame["run"] == name].drop(columns="run").reset_index(drop=True)
    pd.testing.assert_frame_equal(mine, one, check_exact=False)


def test_runs_of_different_columns_stand_in_one_table(three):
    first = sorted(three.iterdir())[0]
    (first / "curves.csv").write_text("step,tokens,seconds,mine/metric\n1,10,0.5,7\n2,20,1.0,\n")
    frame = curves(three)
    mine = frame[frame["run"] == first.name]
    assert mine["mine/metric"].tolist()[0] == 7
    assert mine["val/bpb"].isna().all()
    assert len(frame) == 2 + 2 * (POINTS + VALIDATIONS)


@pytest.mark.parametrize(
    "damage", ["", "step,tokens", "no curve\nat all\n", "\x00\x00", "step,tokens,seconds\n1,a,b\n"]
)
def test_a_damaged_curve_costs_no_other_run_its_points(damage, three):
    sorted(three.iterdir())[1].joinpath("curves.csv").write_text(damage)
    frame = curves(three)
    assert frame["run"].nunique() == 2
    assert len(frame) == 2 * (POINTS + VALIDATIONS)


def test_one_damaged_line_among_files_of_the_same_columns_is_found(three):
    path = sorted(three.iterdir())[1] / "curves.csv"
    path.write_text(path.read_text().replace("\n4,", "\n4,x,y,z,", 1))
    assert curves(three)["run"].nunique() == 2


def test_a_point_that_is_being_written_is_left_out(three):
    path = sorted(three.iterdir())[0] / "curves.csv"
    path.write_text(path.read_text()[:-5])
    assert len(curves(three)) == 3 * (POINTS + VALIDATIONS) - 1


def test_a_run_of_an_older_version_has_its_validations(three):
    first = sorted(three.iterdir())[0]
    (first / "curves.csv").unlink()
    frame = curves(three)
    assert frame[frame["run"] == first.name]["step"].tolist() == [400]


def test_no_runs_are_no_points(tmp_path):
    assert curves(tmp_path).empty
