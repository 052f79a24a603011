"""Every row runs, at tiny sizes, and both of its sides do the same work: each row itself refuses tokens or losses
that differ (`same` of its cases, for which test_harness shows that it is asked)."""

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.benchmarks import (
    cross_entropy,
    evaluating,
    generating,
    gpu,
    overhead,
    preparing,
    process,
    throughput,
    training,
)
from tests.benchmarks.__main__ import ROWS
from tests.benchmarks.harness import Settings, measure
from tests.benchmarks.process import ROOT, environment

# Rows whose processes begin as users' do; `prepare_100mb` watches their memory, too.
COLD = ("start_up", "prepare_100mb")


@pytest.fixture
def begun(warm, tmp_path, monkeypatch):
    """Processes that have imported everything: seconds of each, which prove nothing more in the other rows."""

    def run(command, env=None, memory=False):
        began, clock = time.time(), time.perf_counter()
        done = warm.run(command, tmp_path, cwd=ROOT, env=environment() | dict(env or {}))
        assert done.returncode == 0, done.stdout + done.stderr
        return process.Finished(time.perf_counter() - clock, began, 1.0, done.stdout + done.stderr)

    def start(words):
        return warm.start((*process.LMLAB, "train", *words), cwd=ROOT, env=environment(), err=tmp_path / "err")

    monkeypatch.setattr(process, "run", run)
    monkeypatch.setattr(gpu, "_start", start)


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # Lightning's, of its own code
def test_the_row_runs(name, request, tmp_path):
    if name not in COLD:
        request.getfixturevalue("begun")
    settings = Settings(scratch=tmp_path, quick=True, shakespeare=tmp_path, wikitext2=tmp_path)
    result = measure(ROWS[name], settings, repetitions=1)
    assert result["scale"] == "quick"
    assert result["cases"]
    for case in result["cases"]:
        for m in case["measures"]:
            assert len(m["ours"]) == 1, (case["case"], m)
            assert all(math.isfinite(v) for v in (*m["ours"], *m["peer"]))
        # Nobody else reads our runs.
        assert name == "many_runs" or any(m["peer"] for m in case["measures"])


@pytest.mark.parametrize("module", ["time_to_loss", "preparing", "training", "gpu", "cross_entropy"])
def test_a_peers_process_does_not_pay_for_lightning(module):
    """`isolated` imports the module that the peer's function is in, and counts that."""
    code = f"import sys, tests.benchmarks.{module}; print('lightning' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True,
                          check=True)  # fmt: skip
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("same", "ours", "peer"),
    [
        (evaluating.same, {"tokens": 9, "nats a token": 1.0}, {"tokens": 9, "nats a token": 1.001}),
        (
            generating.same,
            {"tokens": 9, "first": [1, 2, 3, 4], "short": 0},
            {"tokens": 9, "first": [1, 2, 3, 5], "short": 0},
        ),
        (generating.same, {"tokens": 9, "first": None, "short": 0.01}, {"tokens": 9, "first": None, "short": 0.1}),
        (preparing.same, {"tokens": 9, "documents": 2}, {"tokens": 8, "documents": 2}),
        (overhead.same, {"steps": 2, "loss": [1.0, 1.0]}, {"steps": 2, "loss": [1.0, 1.001]}),
        (gpu.same_steps, {"steps": 2, "loss": 1.0}, {"steps": 2, "loss": 1.1}),
        (cross_entropy.same, {"loss": 9.0, "gradient": 1.0}, {"loss": 9.0, "gradient": 1.1}),
    ],
    ids=lambda part: part.__module__.rpartition(".")[2] if callable(part) else "",
)
def test_other_work_is_refused(same, ours, peer):
    same(ours, ours)
    with pytest.raises(AssertionError):
        same(ours, peer)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="this system does not tell what a process has mapped")
@pytest.mark.parametrize("peer", ["lstm", "awd"])
def test_while_a_peer_trains_the_file_of_first_weights_is_no_memory_of_its(peer, text_file, tmp_path, monkeypatch):
    settings, work, seen = Settings(scratch=tmp_path, quick=True), str(tmp_path / "work.pt"), []
    words, shape = throughput.awd_words(settings, batch_size=2)
    if peer == "lstm":
        words = ["experiment=examples_650_tied", "model.d_model=8", "batching.batch_size=2"]
    words += ["corpus=files", f"corpus.train={text_file}", "corpus.split_by=share", *throughput.ALONE, "trainer=cpu"]
    training.write_work(words, steps=2, path=work)

    def steps(loop, batches, device):
        seen.append(Path("/proc/self/maps").read_text())
        return batches

    monkeypatch.setattr(training, "_steps", steps)
    if peer == "lstm":
        batches = training.examples_lstm(work, d_model=8, dropout=0.0, device="cpu")
    else:
        batches = training.awd_lstm(work, **shape, device="cpu")
    assert len(batches) == 2
    assert len(seen) == 1
    assert work not in seen[0]


def test_a_terminal_that_nobody_looks_at_never_fills(capfd):
    """And leaves stderr as it was, also for what went wrong."""

    def goes_wrong() -> None:
        assert os.isatty(2)
        os.write(2, b"more than a terminal keeps\n" * 10_000)
        raise KeyError

    with pytest.raises(KeyError), overhead.terminal():
        goes_wrong()
    assert not os.isatty(2)
    os.write(2, b"seen\n")
    assert capfd.readouterr().err == "seen\n"


def test_a_gpus_loss_is_held_against_the_same_steps_of_the_peer(tmp_path, monkeypatch):
    """Ours is logged twice: 11.0 of the first step, and the mean of the rest, (9 x 11 + 10 + 8 + 6) / 12 = 10.25."""
    steps = list(range(13))
    told = {
        "write_work": {"tokens_a_step": 64, "parameters": 10_000},
        "ours": {"steps": steps, "losses": [11.0] * 12 + [10.25]},
        "nanogpt_step": {"steps": steps, "losses": [11.0] * 10 + [10.0, 8.0, 6.0]},
    }
    monkeypatch.setattr(gpu, "isolated", lambda function, **arguments: told[function.__name__])
    result = measure(ROWS["gpt2_124m_gpu"], Settings(scratch=tmp_path, quick=True), repetitions=1)
    facts = result["cases"][0]["facts"]
    assert facts["ours"] == facts["peer"] == {"steps": 13, "loss": 10.25}


def test_without_liger_kernel_its_row_is_not_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(cross_entropy.importlib.util, "find_spec", lambda name: None)
    told = cross_entropy.cases(Settings(scratch=tmp_path, quick=True, device="cuda"))
    assert next(told).name == "quick, whole"
    with pytest.raises(ValueError, match="beside liger-kernel not measured: pip install liger-kernel"):
        next(told)


@pytest.mark.parametrize("exact", [True, False])
def test_other_losses_are_refused(exact):
    ours, peer = {"losses": [4.0, 3.0]}, {"losses": [4.0, 3.0 + (0.001 if exact else 0.8)]}
    throughput.close(ours, ours, 2, exact)
    with pytest.raises(AssertionError):
        throughput.close(ours, peer, 2, exact)
