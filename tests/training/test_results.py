"""What a finished run leaves: results.json, samples, and the columns of the HPARAMS page."""

import json
import math

import pytest

from lmlab.config import compose
from lmlab.experiment import plan
from lmlab.training.results import hyper_parameters

TINY = ["model=lstm", "model.d_model=8", "model.n_layers=1", "batching.batch_size=4", "batching.seq_len=16"]
TINY += ["evaluation.lanes=2", "trainer.max_steps=4", "trainer.val_check_interval=2"]


def test_results_hold_protocol_sizes_sums_and_samples(train, tmp_path):
    told = train("run", *TINY, "floors=true")
    stored = json.loads((tmp_path / "run/results.json").read_text())
    assert len(stored.pop("checksum")) == 16
    assert told == stored | {"run_dir": str(tmp_path / "run")}
    assert list(stored["splits"]) == ["val", "test"]
    for sums in stored["splits"].values():
        assert sums["nll"] == sums["nats"] / sums["tokens"]
        assert sums["bpb"] == sums["nats"] / math.log(2) / sums["bytes"]
    # The floors are measured on the same tokens.
    for floor in stored["floors"].values():
        assert {k: v["tokens"] for k, v in floor.items()} == {k: v["tokens"] for k, v in stored["splits"].items()}
    assert stored["samples"] == []
    assert stored["training"]["steps"] == 4
    assert stored["training"]["tokens"] == 4 * 4 * 16


def test_results_of_chinese_prose_are_json_and_read_back_as_they_were_measured(train, tmp_path):
    """A line without white space is a word, whose perplexity at 900 bytes is past the largest float."""
    line = "".join(map(chr, range(0x4E00, 0x4E00 + 300)))
    (tmp_path / "prose.txt").write_text("\n".join([line] * 30), encoding="utf-8")
    words = [*TINY, "floors=true", f"corpus.path={tmp_path / 'prose.txt'}"]
    told = train("run", *words)
    assert told["splits"]["val"]["word_ppl"] == math.inf
    stored = json.loads((tmp_path / "run/results.json").read_text(), parse_constant=pytest.fail)
    assert stored["splits"]["val"]["word_ppl"] is None
    assert train("run", *words) == told, "a finished run tells the same"


def test_the_test_split_is_scored_only_when_it_is_asked_for(train):
    assert list(train("run", *TINY, "test=false")["splits"]) == ["val"]


def test_hparams_name_options_and_leave_out_what_is_null(text):
    overrides = [*TINY, "corpus=files", f"corpus.path={text}", "tokenizer=byte", "optimizer=adam", "trainer=cpu"]
    shown = hyper_parameters(plan(compose(overrides)))
    named = {k: shown[k] for k in ("model", "optimizer", "corpus", "tokenizer", "batching", "model.head")}
    assert named == {
        "model": "lstm", "optimizer": "adam", "corpus": "files", "tokenizer": "byte", "batching": "windows",
        "model.head": "linear",
    }  # fmt: skip
    assert shown["steps"] == 4
    assert None not in shown.values()
    assert not [k for k in shown if k.startswith(("evaluation", "callbacks", "trainer", "validation", "run_dir"))]


def test_a_model_that_counts_has_no_steps_among_its_hparams(text):
    overrides = ["model=unigram", "corpus=files", f"corpus.path={text}", "tokenizer=byte"]
    assert not [k for k in hyper_parameters(plan(compose(overrides))) if k.startswith(("optimizer", "steps"))]
