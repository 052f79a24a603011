"""What `auto` becomes: decision tables by hand, on measurements that are given."""

import logging

import pytest
import torch
import yaml

from lmlab import decisions, hardware, speed
from lmlab.config import compose
from lmlab.decisions import (
    COMPILE_FROM,
    MARGIN,
    check_graphs,
    check_interval,
    choose_compile,
    choose_device,
    choose_precision,
    choose_text_on_device,
    estimated_seconds,
    find_compiler,
)
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
    assert choose_compile("graphs", "cuda", False, 0.0, True) == ("graphs", None)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"device": "cpu"}, "compile=graphs is for NVIDIA GPUs and this run trains on cpu; use compile=true"),
        ({"device": "mps"}, "trains on mps"),
        ({"devices": 2}, "devices=2"),
        ({"micro_batch_size": 8}, "training.micro_batch_size=8"),
        ({"varies": "batching=documents"}, "steps of one shape, which batching=documents does not make"),
    ],
)
def test_graphs_are_refused_where_they_cannot_be(changed, told):
    fits = {"device": "cuda", "devices": 1, "micro_batch_size": None, "varies": None}
    check_graphs(**fits)
    with pytest.raises(ValueError, match=told) as refused:
        check_graphs(**fits | changed)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("words", "varies"),
    [
        (["batching=windows"], None),
        (["batching=documents"], "batching=documents"),
        (["batching=documents", "trainer=debug", "trainer.accelerator=cpu"], None),
        (["batching=lanes"], None),
        (["batching=lanes", "batching.random_lengths=true"], "batching.random_lengths=true"),
        (["model/head=adaptive", "model.head.cutoffs=[40]", "model.tie_embeddings=false"], "model/head=adaptive"),
    ],
)
def test_what_gives_steps_different_shapes_is_named(words, varies, text_file):
    planned = plan(compose([*TINY, "corpus=files", f"corpus.train={text_file}", "precision=32", *words]))
    assert speed._varies(planned.model, planned.batching) == varies


def test_graphs_on_a_processor_are_refused_before_there_is_a_directory(small, tmp_path):
    from lmlab.experiment import train

    with pytest.raises(ValueError, match="compile=graphs is for NVIDIA GPUs"):
        train(compose([*small["transformer"], f"run_dir={tmp_path / 'run'}", "compile=graphs"]))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("asked", "device", "needed", "free", "chosen", "told"),
    [
        ("auto", "cuda", 10_000_000, 100_000_000, True, "kept on the GPU (10.0 MB)"),
        ("auto", "cuda", 10_000_001, 100_000_000, False, "over a tenth of the GPU's free memory"),
        ("auto", "cuda", None, 100_000_000, False, None),
        ("auto", "cpu", 10, None, False, None),
        ("auto", "mps", 10, None, False, None),
        (True, "cpu", 10, None, True, None),
        (True, "cuda", 90_000_000, 100_000_000, True, None),
        (False, "cuda", 10, 100_000_000, False, None),
    ],
)
def test_the_text_is_kept_where_it_fits(asked, device, needed, free, chosen, told):
    placed, why = choose_text_on_device(asked, device, needed, free)
    assert placed is chosen
    assert (why is None) == (told is None)
    assert told is None or told in why


@pytest.mark.parametrize(
    ("needed", "free", "told"),
    [
        (100_000_001, 100_000_000, "the text takes 100.0 MB, and 100.0 MB of the device's memory are free"),
        (None, None, "needs a batching with a method `to`"),
    ],
)
def test_a_text_that_cannot_be_there_is_refused(needed, free, told):
    with pytest.raises(ValueError, match=told):
        choose_text_on_device(True, "cuda", needed, free)


def test_a_gpu_is_given_the_text_by_itself_and_the_log_says_so(text_file, monkeypatch):
    """With a GPU that is given, as far as the plan goes."""
    monkeypatch.setattr(speed, "free_memory", lambda device: 10**9)
    choose = speed.choose_text_on_device
    monkeypatch.setattr(speed, "choose_text_on_device", lambda asked, device, *more: choose(asked, "cuda", *more))
    overrides = [*TINY, "corpus=files", f"corpus.train={text_file}", "precision=32"]
    planned = plan(compose(overrides))
    assert planned.decided["text_on_device"] is True
    assert "kept on the GPU" in planned.reasons["text_on_device"]
    assert plan(compose([*overrides, "text_on_device=false"])).decided["text_on_device"] is False


@pytest.mark.parametrize("asked", ["gpu", "cuda", "mps"])
def test_a_device_that_is_not_there_is_refused(asked, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"trainer.accelerator={asked}, but torch .* sees no .*GPU; use "):
        choose_device(asked)
    assert choose_device("auto") == "cpu"


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


def test_a_run_that_began_in_bf16_on_one_device_is_continued_on_one(small, tmp_path, monkeypatch):
    from lmlab.experiment import train
    from lmlab.run_directory import RunDirectory

    monkeypatch.setattr(hardware.Machine, "bf16_gain", lambda self, width, autocast: 2.0)
    overrides = [*small["lstm"], f"run_dir={tmp_path / 'run'}"]
    assert train(compose([*overrides, "trainer.max_steps=2"]))["training"]["steps"] == 2
    before = RunDirectory(tmp_path / "run").config()["decided"]
    assert before["precision"] == "bf16"
    with pytest.raises(ValueError, match=r"began with precision=bf16.*continue it with devices=1 \(now 2\)"):
        train(compose([*overrides, "trainer.max_steps=4", "devices=2"]))
    assert RunDirectory(tmp_path / "run").config()["decided"] == before
    assert train(compose([*overrides, "trainer.max_steps=4"]))["training"]["steps"] == 4


def test_steps_between_validations_are_as_asked_or_a_share_of_an_epoch():
    for asked, interval in ((None, 10), (7, 7), (1.0, 40), (0.5, 20), (2.0, 80), (0.001, 1), (1000, 100), (1.0e0, 40)):
        assert check_interval(asked, steps=100, steps_per_epoch=40) == interval
    # An epoch may be longer than the training.
    assert check_interval(1.0, steps=10, steps_per_epoch=40) == 10
    # So may the interval be longer than the training.
    assert check_interval(1.5, steps=10, steps_per_epoch=40) == 10
    for asked, told in ((0, "at least one step"), (0.0, "more than no part"), (-0.5, "more than no part")):
        with pytest.raises(ValueError, match=told):
            check_interval(asked, steps=100, steps_per_epoch=40)
    # As Hydra reads 1e3.
    with pytest.raises(ValueError, match="1000, without a point, are steps"):
        check_interval(1000.0, steps=2000, steps_per_epoch=40)


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
