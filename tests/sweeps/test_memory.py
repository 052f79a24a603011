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


def test_a_limit_of_any_group_that_this_process_is_within_counts(tmp_path):
    meminfo, own = tmp_path / "meminfo", tmp_path / "own"
    meminfo.write_text("MemAvailable: 4000 kB\n")
    names = {"v2": ("memory.max", "memory.current"), "v1": ("memory.limit_in_bytes", "memory.usage_in_bytes")}

    def limit(place: str, version: str, most: object) -> None:
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        for name, value in zip((*names[version], "memory.stat"), (most, 500_000, "anon 0"), strict=True):
            (tmp_path / place / name).write_text(f"{value}\n")

    def free() -> float | None:
        return memory.available(meminfo, tmp_path, own)

    # As systemd-run -p MemoryMax=, or Slurm's --mem, above the step that this is.
    own.write_text("0::/job_7/step_0\n")
    limit("job_7", "v2", 2_500_000)
    limit("job_7/step_0", "v2", "max")
    limit("job_8", "v2", 600_000)
    assert free() == 2_000_000
    limit("job_7/step_0", "v2", 1_500_000)
    assert free() == 1_000_000
    # Of the host, and not mounted here; and out of the mount: the root alone.
    for path in ("/docker/1a2b", "/../job_8"):
        own.write_text(f"0::{path}\n")
        assert free() == 4000 * 1024
    own.write_text("9:cpuset:/job_8\n4:hugetlb,memory:/job_9\n0::/\n")
    limit("memory/job_9", "v1", 1_200_000)
    assert free() == 700_000
