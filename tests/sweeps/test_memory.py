"""Memory of a trial, estimated, and of the machine, read."""

import pytest

from lmlab.config import compose
from lmlab.sweeps import memory


def test_an_estimate_adds_up_what_a_step_holds():
    config = compose(
        ["model=lstm", "model.d_model=100", "model.n_layers=1", "tokenizer=bpe", "tokenizer.vocab_size=500"]
    )
    config.batching.batch_size, config.batching.seq_len = 10, 20
    # Embedding and head are one matrix, with a bias of the head; four gates read input and state, with two biases.
    n_params = 500 * 100 + 500 + 4 * 100 * (100 + 100 + 2)
    assert memory.estimate(config) == pytest.approx(0.35e9 + 16 * n_params + 4 * 200 * (17 * 100 + 2 * 500), rel=0.01)
    config.n_params = "1M"
    assert memory.estimate(config) - 0.35e9 > 16e6 * 0.99
    # Half the micro-batch takes half as much of what depends on it.
    whole = memory.estimate(config)
    config.training.micro_batch_size = 5
    assert 0 < whole - memory.estimate(config) < 4 * 200 * (17 * 400 + 2 * 500)


def test_what_is_free_is_the_least_of_the_machines_and_the_groups(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9000 kB\nMemAvailable:    4000 kB\n")
    assert memory.available(meminfo, tmp_path) == 4000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    assert memory.available(meminfo, tmp_path) == 4000 * 1024
    (tmp_path / "memory.max").write_text("3000000\n")
    # Files that were read give their room back.
    (tmp_path / "memory.stat").write_text("anon 600000\ninactive_file 300000\n")
    assert memory.available(meminfo, tmp_path) == 2_300_000
    assert memory.available(tmp_path / "none", tmp_path) is None
