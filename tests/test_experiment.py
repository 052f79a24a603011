"""From configuration to objects: what cannot be a model or a config is told before anything is read."""

import logging

import pytest
from torch import nn

from lmlab.config import compose
from lmlab.experiment import _keep_environment, build_model, check_config, plan
from lmlab.models import kernels
from lmlab.run_directory import RunDirectory


class Incomplete(nn.Module):
    def __init__(self, vocab_size, token_counts=None):
        super().__init__()
        self.vocab_size = vocab_size


class Narrow(nn.Module):
    def __init__(self, vocab_size):
        super().__init__()


@pytest.mark.parametrize(
    ("node", "told"),
    [
        ({"_target_": "tests.test_experiment.Incomplete", "_partial_": True}, "has no d_model, recurrent, max_context"),
        ({"_target_": "tests.test_experiment.Narrow", "_partial_": True}, "unexpected keyword argument 'token_counts'"),
        ({"_target_": "torch.nn.Identity"}, "needs _partial_: true"),
    ],
    ids=["without attributes", "without token_counts", "at once"],
)
def test_what_a_model_lacks_is_told(node, told):
    with pytest.raises(ValueError, match=told):
        build_model(node, 7, None)


@pytest.mark.parametrize(("group", "package"), [("sweep", "hydra.sweeper"), ("experiment", "_global_")])
def test_an_option_file_without_its_package_is_told(group, package, tmp_path):
    (tmp_path / group).mkdir()
    (tmp_path / group / "mine.yaml").write_text("trainer: {max_steps: 3}\n")
    with pytest.raises(ValueError, match=f"must begin with the line: # @package {package}"):
        check_config(compose([f"{group}=mine"], config_dir=tmp_path))


def test_half_an_epoch_is_half_its_steps(tmp_path):
    (tmp_path / "t.txt").write_text("a rose is a rose is a rose; " * 200)
    words = ["corpus=files", f"corpus.train={tmp_path}/t.txt", "corpus.split_by=share", "tokenizer=byte"]
    words += ["model.d_model=16", "model.n_heads=2", "batching.seq_len=16", "batching.batch_size=4", "precision=32"]
    epochs = [plan(compose([*words, f"trainer.max_epochs={n}"])) for n in (0.5, 1, 1.5)]
    for one in epochs:
        check_config(one.config)
    half, one, more = (planned.total_steps for planned in epochs)
    assert abs(2 * half - one) <= 1
    assert more == one + half


def test_a_run_that_goes_on_by_another_arithmetic_is_told_of(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.WARNING, "lmlab")
    directory, now = RunDirectory(tmp_path), "compiled"
    monkeypatch.setattr(kernels, "described", lambda device: now)
    for _ in range(2):
        _keep_environment(directory, "cpu")
        assert not caplog.messages
    now = "torch"
    _keep_environment(directory, "cpu")
    (line,) = caplog.messages
    assert "began with kernels compiled and goes on with torch" in line
    assert directory.read_json("environment.json")["kernels"] == "compiled"
    # An older version did not say.
    directory.write_json("environment.json", {"command": []})
    _keep_environment(directory, "cpu")
    assert caplog.messages == [line]
