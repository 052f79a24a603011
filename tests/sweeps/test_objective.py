"""What a sweep chooses by: how it is written, and what is refused."""

import pytest

from lmlab.run_directory import RunDirectory
from lmlab.sweeps import objective
from lmlab.sweeps.trial import values

OURS = {"callbacks": {"samples": {"_target_": "lmlab.training.callbacks.Samples"}}, "model": {"_target_": "own.Model"}}
OWN = {"callbacks": {"mine": {"_target_": "own.Callback"}}}


@pytest.mark.parametrize("written", ["val/ppl", ["val/ppl"], [{"metric": "val/ppl"}]])
def test_the_direction_of_most_is_known(written):
    assert objective.read(written) == [{"metric": "val/ppl", "direction": "minimize"}]
    assert objective.read("perf/mfu")[0]["direction"] == "maximize"


def test_a_stated_direction_is_the_one_that_counts():
    assert objective.read([{"metric": "steps", "direction": "maximize"}])[0]["direction"] == "maximize"


@pytest.mark.parametrize("written", [3, [["val/bpb"]], [{"name": "val/bpb"}], {"metric": "val/bpb", "sign": 1}])
def test_what_is_written_otherwise_is_refused(written):
    with pytest.raises(ValueError, match="must be written val/bpb"):
        objective.read(written)


def test_a_metric_of_ones_own_needs_a_callback_that_may_log_it_and_a_direction():
    with pytest.raises(ValueError, match="no run logs it"):
        objective.check_logged([{"metric": "own/score", "direction": "maximize"}], OURS)
    with pytest.raises(ValueError, match="say which way is better"):
        objective.check_logged(objective.read("own/score"), OWN)
    with pytest.raises(ValueError, match="log it as own/score: a name without a group is a config's key"):
        objective.check_logged([{"metric": "score", "direction": "maximize"}], OWN)
    objective.check_logged([{"metric": "own/score", "direction": "maximize"}], OWN)


def test_all_that_a_run_tells_can_be_asked_for(trained):
    directory = RunDirectory(trained["transformer"])
    told = values(directory.results(), directory)
    assert {"optim/update_ratio", "val/bpb"} <= set(told)
    chosen_by = {name for name in told if not name.startswith("test/")}
    assert chosen_by - {"step", "measuring_seconds", "protocol"} <= set(objective.METRICS)


def test_pruning_needs_one_that_validations_measure():
    with pytest.raises(ValueError, match="compares at validations"):
        objective.check(objective.read("seconds"), "asha", "grid")
    objective.check(objective.read("val/nll"), "asha", "grid")
    with pytest.raises(ValueError, match="direction=up must be one of minimize, maximize"):
        objective.check([{"metric": "seconds", "direction": "up"}], "none", "grid")
