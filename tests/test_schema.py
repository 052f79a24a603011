"""Configs against signatures."""

from collections.abc import Sequence

import pytest
import torch

from lmlab.config import conf_dir
from lmlab.schema import CHOICES, LEAST, TYPES, check_keys, check_known, check_node, check_value

LSTM = {"_target_": "lmlab.models.lstm.LSTMLM", "_partial_": True}


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (1, int),
        (1, float),
        (None, int | None),
        ("x", str | int),
        ([1.0], Sequence[float]),
        ([1], tuple[float, float]),
        ("anything", torch.device),
        (0.1, float | torch.Tensor),
        (True, bool),
    ],
)
def test_what_fits_is_taken(value, annotation):
    check_value("key", value, annotation)


@pytest.mark.parametrize(
    ("value", "annotation", "told"),
    [
        ("abc", int, "key=abc must be a whole number"),
        (1.5, int, "key=1.5 must be a whole number"),
        (True, int, "key=true must be a whole number"),
        (None, float, "key=null must be a number"),
        ("x", float | torch.Tensor, "key=x must be a number"),
        ([1], int | None, "must be a whole number or null"),
        ("x", Sequence[float], None),
        (1, str, "key=1 must be text"),
        (0, bool, "key=0 must be true or false"),
    ],
)
def test_what_does_not_fit_is_named_with_its_remedy(value, annotation, told: str | None):
    with pytest.raises(ValueError, match=told):
        check_value("key", value, annotation)


def test_nodes_are_checked_all_the_way_down():
    check_node(LSTM | {"d_model": 3}, "model")
    for node, told in [
        (LSTM | {"d_modle": 3}, r"model.d_modle is no argument .*did you mean d_model"),
        (LSTM | {"head": LSTM | {"n_layers": "two"}}, "model.head.n_layers=two"),
        (LSTM | {"n_layers": "???"}, "model.n_layers=... is needed"),
        (LSTM | {"n_heads": 0}, "model.n_heads=0 must be at least 1"),
        (LSTM | {"head": {"n_experts": -1}}, "model.head.n_experts=-1 must be at least 1"),
        ({"_target_": "lmlab.nope.X"}, "lmlab.nope.X"),
    ]:
        with pytest.raises(ValueError, match=told):
            check_node(node, "model")


def test_keys_that_nobody_reads_are_refused():
    check_known({"a": 1}, ["a"])
    with pytest.raises(ValueError, match=r"no key 'colums'.*columns"):
        check_known({"colums": 1}, ["columns"])


def test_the_tables_know_only_keys_that_exist():
    stated = "\n".join(path.read_text() for path in conf_dir().rglob("*.yaml"))
    for key in [*TYPES, *CHOICES, *LEAST]:
        leaf = key.rpartition(".")[2]
        assert f"{leaf}: " in stated or f'"{leaf}": ' in stated, key


def test_a_time_between_validations_is_refused_by_its_key():
    with pytest.raises(ValueError, match=r"trainer.val_check_interval=00:00:10:00 must be a number or null"):
        check_keys({"trainer": {"val_check_interval": "00:00:10:00"}})
    check_keys({"trainer": {"val_check_interval": 0.5}})


@pytest.mark.parametrize("key", ["min_epochs", "min_steps", "num_nodes"])
def test_what_would_keep_a_run_from_stopping_or_split_it_over_machines_is_refused(key: str):
    with pytest.raises(ValueError, match=rf"trainer.{key}=1 is not for Lightning to decide here; use (callb|devices)"):
        check_keys({"trainer": {key: 1}})


def test_a_strategy_that_cuts_weights_into_pieces_is_refused():
    with pytest.raises(ValueError, match=r"trainer.strategy=fsdp must be one of auto, ddp"):
        check_keys({"trainer": {"strategy": "fsdp"}})


def test_budgets_must_train_something_and_seeds_be_ones_that_torch_takes():
    for config, told in [
        ({"trainer": {"max_steps": 0}}, "max_steps=0"),
        ({"trainer": {"max_time": "soon"}}, "DD:HH:MM:SS"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"n_params": "-5"}, "n_params=-5"),
        ({"seed": 2**64}, r"seed=18446744073709551616 must be below 2\*\*64"),
    ]:
        with pytest.raises(ValueError, match=told):
            check_keys(config)
