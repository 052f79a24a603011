"""lmlab bench finds the fastest setting of a machine that is made up, in the time that it has."""

import dataclasses

import pytest
import torch
import yaml

from lmlab import tuning
from lmlab.config import compose
from lmlab.training.trial import Trial
from lmlab.tuning import Setting, Tuner

RECIPE = ["model=lstm", "model.d_model=8", "model.n_layers=1", "batching.batch_size=4", "batching.seq_len=16"]
RECIPE += ["evaluation.lanes=2", "tokenizer=byte", "trainer=cpu", "logger=none", "trainer.max_steps=1000"]


@pytest.fixture
def machine(monkeypatch):
    """Seconds a step by what is tried; compiling gains a fifth and takes 10 s. Counts who was tried."""
    tried = []
    speeds = {"32-true": 1.0, "bf16": 0.5, "starting": 10.0, "faulty": None}

    def attempt(plan, steps, seconds, warm_up, precision, compile):
        threads, micro, rows = torch.get_num_threads(), plan.config.training.micro_batch_size, plan.batching.batch_size
        tried.append((precision, threads, micro, compile, rows))
        # Half the threads are better; two rows a time are better; a doubled batch takes 1.5 times as long.
        took = speeds[precision] * (0.8 if threads == 2 else 1.0) * (0.9 if micro == 2 else 1.0)
        took *= (0.8 if compile else 1.0) * {2: 0.7, 4: 1.0, 8: 1.5, 16: 3.0}[rows]
        fault = "out of memory" if speeds["faulty"] == precision else None
        return Trial([took], starting=speeds["starting"] if compile else 0.1, loss=5.0, fault=fault)

    monkeypatch.setattr(tuning, "attempt", attempt)
    monkeypatch.setattr(tuning, "multiplies_bf16", lambda device: True)
    monkeypatch.setattr(tuning, "find_compiler", lambda device: True)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield tried, speeds
    torch.set_num_threads(before)


def tuner(text_file, *overrides: str, seconds: float = 90.0) -> Tuner:
    config = compose([*RECIPE, "corpus=files", f"corpus.train={text_file}", "precision=32", *overrides])
    return Tuner(config, seconds)


def test_the_fastest_is_found_and_the_batch_size_kept_apart(machine, text_file):
    tried, _ = machine
    mine = tuner(text_file)
    assert dataclasses.astuple(mine.start)[1:] == (4, None, False, 4)
    best, other = mine.run()
    assert dataclasses.astuple(best) == ("bf16", 2, 2, True, 4)
    # 8 rows in 1.5 times the time are 1.33 times the tokens.
    assert other.batch_size == 8
    assert mine.seconds_per_token(best) == pytest.approx(0.5 * 0.8 * 0.9 * 0.8 / 64)
    assert tried[:4] == 2 * [("32-true", 4, None, False, 4), ("bf16", 4, None, False, 4)], "in turns"
    rows = {tuple(row[k] for k in ("precision", "threads", "compile")): row for row in mine.rows()}
    assert rows["bf16", 2, True]["tokens_per_s"] == pytest.approx(64 / 0.288)
    assert torch.get_num_threads() == 4


def test_compiling_that_the_run_does_not_repay_is_left_out(machine, text_file):
    # A step gains 0.072 s: 100 steps gain 7.2 s, less than the 10 s of compiling.
    assert not tuner(text_file, "trainer.max_steps=100").run()[0].compile
    assert tuner(text_file, "trainer.max_steps=200").run()[0].compile


def test_less_than_three_percent_is_no_gain(machine, text_file):
    _, speeds = machine
    speeds["bf16"] = 0.98
    assert tuner(text_file).run()[0].precision == "32-true"


def test_what_fails_does_not_win(machine, text_file):
    _, speeds = machine
    speeds["faulty"] = "bf16"
    mine = tuner(text_file)
    assert mine.run()[0].precision == "32-true"
    assert [row["fault"] for row in mine.rows() if row["precision"] == "bf16"] == ["out of memory"]


def test_batches_that_the_text_is_too_short_for_are_not_tried(machine, tmp_path):
    """All that was measured before them would be lost."""
    tried, _ = machine
    text = tmp_path / "short.txt"
    # 80 tokens to train on: five rows of 16.
    text.write_text("abcdefg\n" * 12)
    words = ["batching=lanes", "batching.batch_size=4", "batching.seq_len=16", "corpus.split_by=share"]
    best, other = tuner(text, *words, "corpus.val_share=0.1", "corpus.test_share=0.05").run()
    assert {rows for *_, rows in tried} == {2, 4}
    assert dataclasses.astuple(best) == ("bf16", 2, 2, True, 4)
    assert other.batch_size in (2, 4)


def test_without_time_what_train_would_do_stays(machine, text_file):
    tried, _ = machine
    mine = tuner(text_file, seconds=-1.0)
    best, other = mine.run()
    assert best == other == mine.start
    assert len(tried) == 1


def test_a_model_that_counts_is_refused(text_file):
    with pytest.raises(ValueError, match="nothing to tune"):
        Tuner(compose(["model=unigram", "corpus=files", f"corpus.train={text_file}", "tokenizer=byte"]), 1.0)


def test_overrides_are_written_as_an_option(tmp_path):
    setting = Setting("bf16", 2, None, False, 64)
    tuning.write(tmp_path / "tuned/mine.yaml", setting, False, "about")
    lines = (tmp_path / "tuned/mine.yaml").read_text().splitlines()
    assert lines[:2] == ["# @package _global_", "# about"]
    tree = yaml.safe_load("\n".join(lines))
    assert tree == {"precision": "bf16", "threads": 2, "compile": False, "training": {"micro_batch_size": None}}
    config = compose(["+tuned=mine"], config_dir=tmp_path)
    assert (config.precision, config.threads, config.compile, config.batching.batch_size) == ("bf16", 2, False, 32)
    tuning.write(tmp_path / "tuned/mine.yaml", setting, True, "about")
    assert compose(["+tuned=mine"], config_dir=tmp_path).batching.batch_size == 64
    words = tuning.as_words(setting, True)
    assert words == "precision=bf16 threads=2 compile=false training.micro_batch_size=null batching.batch_size=64"
    assert compose(words.split()).batching.batch_size == 64
