"""What `auto` becomes: decision tables by hand, on measurements that are given."""

import logging

import pytest
import yaml

from lmlab import decisions, hardware
from lmlab.config import compose
from lmlab.decisions import COMPILE_FROM, MARGIN, choose_compile, choose_precision, estimated_seconds, find_compiler
from lmlab.experiment import plan

TINY = ["model=lstm", "model.d_model=8", "model.n_layers=1", "batching.batch_size=4", "batching.seq_len=16"]
TINY += ["tokenizer=byte", "trainer=cpu", "evaluation.lanes=2", "logger=none", "floors=false", "callbacks.samples=null"]


@pytest.mark.parametrize(
    ("device", "autocast", "gain", "chosen", "told"),
    [
        ("cpu", False, 3.1, "bf16", "runs 3.1 times as fast"),
        ("cpu", True, 3.1, "bf16-mixed", "runs 3.1 times as fast"),
        ("cpu", False, MARGIN, "bf16", "1.1 times"),
        ("cpu", False, MARGIN - 0.01, "32-true", "only 1.09 times"),
        ("cpu", False, 0.65, "32-true", "only 0.65 times"),
        ("cpu", False, None, "32-true", "no units for bf16"),
        ("cuda", False, 4.0, "bf16", "4.0 times"),
        ("mps", False, 9.0, "32-true", "not tried on mps"),
    ],
)
def test_precision_follows_what_was_measured(device, autocast, gain, chosen, told):
    precision, why = choose_precision("auto", device, autocast, lambda: gain)
    assert precision == chosen
    assert told in why


@pytest.mark.parametrize("asked", [32, "32-true", "bf16", "bf16-mixed"])
def test_a_precision_that_was_asked_for_is_taken_without_measuring(asked):
    def measured():
        raise AssertionError("measured")

    assert choose_precision(asked, "cpu", False, measured) == (str(asked), None)


@pytest.mark.parametrize(
    ("device", "recurrent", "seconds", "compiler", "chosen", "told"),
    [
        ("cpu", False, COMPILE_FROM["cpu"], True, True, "10 minutes of training repay"),
        ("cpu", False, COMPILE_FROM["cpu"] - 1, True, False, "pays from about 10 minutes"),
        ("cpu", False, 1e5, False, False, "no C++ compiler"),
        ("cpu", True, 1e5, True, False, "recurrent"),
        ("cuda", True, COMPILE_FROM["cuda"], True, True, "2 minutes"),
        ("cuda", False, 10.0, True, False, "pays from"),
        ("mps", False, 1e5, True, False, "not tried on mps"),
    ],
)
def test_compiling_follows_hardware_and_length(device, recurrent, seconds, compiler, chosen, told):
    compiled, why = choose_compile("auto", device, recurrent, seconds, compiler)
    assert compiled is chosen
    assert told in why


def test_compiling_that_was_asked_for_is_done():
    assert choose_compile(True, "cpu", True, 0.0, False) == (True, None)
    assert choose_compile(False, "cuda", False, 1e9, True) == (False, None)


def test_a_compiler_is_looked_for_where_torch_looks(monkeypatch):
    monkeypatch.setattr(decisions.shutil, "which", lambda name: "/bin/mine" if name == "mine" else None)
    monkeypatch.delenv("CXX", raising=False)
    assert not find_compiler("cpu")
    monkeypatch.setenv("CXX", "mine")
    assert find_compiler("cpu")
    monkeypatch.setattr(decisions.importlib.util, "find_spec", lambda name: None)
    assert not find_compiler("cuda"), "no Triton"


def test_time_is_estimated_from_operations_and_the_peak():
    # 6e12 operations at 30 % of 2e11 a second.
    assert estimated_seconds(6e12, 2e11) == pytest.approx(100.0)


def test_a_run_keeps_the_precision_that_it_began_with(small, tmp_path, monkeypatch, caplog):
    """Also on another machine, or when the cached measurement has changed."""
    from lmlab.experiment import train

    caplog.set_level(logging.INFO, "lmlab")
    gain = 2.0
    monkeypatch.setattr(hardware.Machine, "bf16_gain", lambda self, width, autocast: gain)
    overrides = [*small["lstm"], f"run_dir={tmp_path / 'run'}"]

    def decided(*more: str) -> str:
        train(compose([*overrides, *more]))
        return yaml.safe_load((tmp_path / "run/config.yaml").read_text())["decided"]["precision"]

    assert decided() == "bf16"
    assert "bf16: a layer of this width runs 2.0 times" in caplog.text
    gain = None
    assert decided("trainer.max_steps=5") == "bf16"
    assert "precision bf16, as this run began (here it would be 32-true)" in caplog.text
    log = (tmp_path / "run/train.log").read_text()
    assert "as this run began" in log


def test_a_class_of_ones_own_is_not_given_weights_twice(text_file, monkeypatch):
    """It may not cast what it looks up."""
    from lmlab.models.lstm import LSTMLM

    monkeypatch.setattr(hardware.Machine, "bf16_gain", lambda self, width, autocast: 2.0)
    overrides = [*TINY, "corpus=files", f"corpus.train={text_file}"]
    assert plan(compose(overrides)).decided["precision"] == "bf16"
    monkeypatch.setattr(LSTMLM, "__module__", "mine")
    assert plan(compose(overrides)).decided["precision"] == "bf16-mixed"
    monkeypatch.undo()
    monkeypatch.setattr(hardware.Machine, "bf16_gain", lambda self, width, autocast: 2.0)
    assert plan(compose([*overrides, "devices=2"])).decided["precision"] == "bf16-mixed"
