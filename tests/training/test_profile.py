"""profile=true leaves a trace and a table, and changes nothing else."""

import json
import logging

import pytest
import torch

from lmlab.training.checkpoints import read, weights

TINY = ["model=lstm", "model.d_model=8", "model.n_layers=1", "batching.batch_size=4", "batching.seq_len=16"]
TINY += ["evaluation.lanes=2", "trainer.val_check_interval=100"]


@pytest.mark.parametrize(("steps", "profiled"), [(20, "11-15"), (12, "8-12"), (3, "1-3")])
def test_a_trace_and_a_table_are_left(steps, profiled, train, tmp_path, caplog):
    caplog.set_level(logging.INFO, "lmlab")
    train("run", *TINY, f"trainer.max_steps={steps}", "profile=true")
    trace = tmp_path / f"run/profile/steps_{profiled}.pt.trace.json"
    names = [event.get("name") for event in json.loads(trace.read_text())["traceEvents"]]
    assert "aten::lstm" in names
    first, _, last = profiled.partition("-")
    assert sum(str(name).startswith("Optimizer.step#") for name in names) == int(last) - int(first) + 1
    table = (tmp_path / "run/profile/operators.txt").read_text()
    assert "Self CPU" in table
    assert "aten::" in table
    assert str(trace) in caplog.text
    assert sorted(p.name for p in trace.parent.iterdir()) == ["operators.txt", trace.name]


def test_a_validation_among_the_profiled_steps_is_none_of_them(train, tmp_path):
    """With its samples it is hundreds of steps of the model: a minute, and gigabytes, of a short run."""
    train("run", *TINY, "trainer.max_steps=8", "profile=true", "trainer.val_check_interval=2")
    (trace,) = (tmp_path / "run/profile").glob("*.json")
    names = [event.get("name") for event in json.loads(trace.read_text())["traceEvents"]]
    assert names.count("aten::lstm") == 5
    assert sum(str(name).startswith("Optimizer.step#") for name in names) == 5


def test_starting_the_profiler_is_no_part_of_a_step(train):
    told = train("run", *TINY, "trainer.max_steps=20", "profile=true")["training"]["performance"]
    assert sum(told["shares"].values()) < 1


def test_a_profiled_run_is_the_same_run(train, tmp_path):
    train("plain", *TINY, "trainer.max_steps=14")
    assert not (tmp_path / "plain/profile").exists()
    train("profiled", *TINY, "trainer.max_steps=14", "profile=true")
    ours, theirs = (weights(read(tmp_path / name / "checkpoints/last.ckpt")) for name in ("profiled", "plain"))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_the_table_is_on_the_board(train, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train("run", *TINY, "trainer.max_steps=14", "profile=true", "logger=tensorboard")
    board = EventAccumulator(str(tmp_path / "run")).Reload()
    assert "profile/text_summary" in board.Tags()["tensors"]
    assert {"perf/mfu", "perf/forward_share", "perf/backward_share", "perf/optimizer_share"} <= {
        *board.Tags()["scalars"]
    }
