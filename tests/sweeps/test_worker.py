"""A worker: what goes wrong with one trial stays with that trial; a warm one trains what a cold one trains."""

import errno
import json
import os
import signal
import sqlite3
import sys
import time
from pathlib import Path

import pytest
import torch
from tests.sweeps.conftest import ALONE, COMMAND, TINY

from lmlab.config import compose
from lmlab.errors import INTERRUPTED, ran_out_of_memory
from lmlab.sweeps import trial as trials
from lmlab.sweeps.ledger import Ledger
from lmlab.training.checkpoints import read


def rows(here: Path) -> list[dict]:
    with Ledger(here / "s/ledger.sqlite") as ledger:
        return [dict(row) for row in ledger.trials()]


def same(ours, theirs) -> bool:
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return ours == theirs


@pytest.mark.slow
def test_a_warm_trial_is_a_cold_one_to_the_last_bit(sweep, here, warm):
    other = '["model=transformer","model.n_heads=2","batching=windows"]'
    # The third has its text, its tokenizer and its width from what the worker remembers.
    points = f'points=[{other},["optimizer=sgd","n_params=6k"],["n_params=6k"]]'
    assert sweep("strategy=list", "keep=all", points) == 0
    third = here / "s" / rows(here)[2]["run_dir"]
    words = json.loads(rows(here)[2]["overrides"])
    # A process that has trained nothing before.
    command = [sys.executable, "-c", COMMAND, "train", *TINY, *words, "run_dir=cold", "test=false", "floors=false"]
    done = warm.run(command, here)
    assert done.returncode == 0, done.stderr
    for name in ("best.ckpt", "last.ckpt"):
        a, b = read(third / "checkpoints" / name), read(here / "cold/checkpoints" / name)
        for checkpoint in (a, b):
            for measured_by_the_clock in ("seconds", "since_logged"):
                checkpoint.get("lmlab", {}).pop(measured_by_the_clock, None)
            checkpoint.pop("loops", None)
        # The sweep's callback is one more; it has no state.
        assert same(a, b)
    a, b = (json.loads((path / "results.json").read_text()) for path in (third, here / "cold"))
    assert a["splits"]["val"] == b["splits"]["val"]
    assert a["training"]["history"] == b["training"]["history"]


@pytest.mark.slow
def test_two_commands_on_one_directory_share_its_trials_and_train_none_twice(here, warm):
    """As two machines do that see one directory: each command has a worker of its own."""
    words = ["optimizer.lr=1e-3,2e-3,3e-3,4e-3", "replicates=2", "trainer.max_steps=200", "workers=1", "sweep_dir=s"]
    command = [sys.executable, "-c", ALONE, "sweep", *TINY, *words, "trainer.val_check_interval=100"]
    outs = [here / name for name in ("one", "other")]
    both = [warm.start(command, out=out, err=out.with_suffix(".err")) for out in outs]
    assert [one.wait() for one in both] == [0, 0], [out.with_suffix(".err").read_text() for out in outs]
    found = rows(here)
    assert [row["status"] for row in found] == ["done"] * 8
    assert len({row["run_dir"] for row in found}) == 8
    assert len({row["pid"] for row in found}) == 2, "both have worked"
    for row in found:
        log = (here / "s" / row["run_dir"] / "train.log").read_text()
        assert log.count("parameters, 200 steps") == 1
        assert "continuing" not in log
    # Both tell the same end of it; the winner's replicates were scored on test once.
    one, other = (out.read_text().splitlines()[-1] for out in outs)
    assert one == other
    scored = [p for p in (here / "s/trials").rglob("results.json") if "test" in json.loads(p.read_text())["splits"]]
    assert len(scored) == 2


@pytest.mark.slow
def test_what_a_machine_that_died_was_training_goes_on_on_another_once_it_has_been_silent(here, warm):
    """Two host names stand for two machines: neither sees the other's processes, only the ledger's signs of life.

    Silence is shorter here than in life, by as much as the signs of life are more frequent.
    """
    silence = 9.0
    words = ["optimizer.lr=1e-3,2e-3,3e-3,4e-3", "trainer.max_steps=400", "workers=1"]
    words.append("trainer.val_check_interval=20")
    machines = {}
    for name in ("one", "other"):
        code = f"import socket; socket.gethostname = lambda: {name!r}; from lmlab.sweeps import ledger, worker; "
        code += f"ledger.SILENCE, worker.HEARTBEAT = {silence}, {silence / 9}; {ALONE}"
        command = [sys.executable, "-c", code, "sweep", *TINY, *words, "sweep_dir=s"]
        machines[name] = warm.start(command, out=here / name, err=here / f"{name}.err")

    def of_other() -> list[dict]:
        """What it has saved a checkpoint of."""
        try:
            found = [row for row in rows(here) if row["host"] == "other" and row["status"] == "running"]
        except (FileNotFoundError, sqlite3.Error):
            return []
        return [r for r in found if r["run_dir"] and (here / "s" / r["run_dir"] / "checkpoints/last.ckpt").exists()]

    while not of_other():
        assert machines["other"].poll() is None, (here / "other.err").read_text()
        time.sleep(0.02)
    os.killpg(machines["other"].pid, signal.SIGKILL)
    machines["other"].wait()
    (lost,) = of_other()
    assert machines["one"].wait() == 0, (here / "one.err").read_text()
    assert [row["status"] for row in rows(here)] == ["done"] * 4
    found = rows(here)[lost["id"] - 1]
    assert found["host"] == "one"
    # The other machine may be alive and slow: until it has been silent for long nobody takes its trial.
    assert found["started"] - lost["heartbeat"] >= silence
    assert "continuing after step" in (here / "s" / lost["run_dir"] / "train.log").read_text()


def test_a_trial_that_raises_and_one_that_gives_nan_are_told_and_the_others_finish(sweep, here, capsys):
    points = """points=[["batching.seq_len=99999"],["optimizer.lr=1e38"],["model.d_model=6"]]"""
    assert sweep("strategy=list", points) == 3
    raised, nan, good = rows(here)
    assert (raised["status"], raised["code"]) == ("failed", 2)
    assert "batching.seq_len=99999" in raised["reason"]
    assert (nan["status"], nan["code"]) == ("failed", 3)
    assert "no longer finite" in nan["reason"]
    assert good["status"] == "done"
    told = capsys.readouterr().err
    assert "2 of the 3 trials failed" in told
    assert "the same command with retries=1 tries them again" in told
    # The same again leaves them, unless it is told to try once more.
    assert sweep("strategy=list", points) == 3
    assert [row["attempts"] for row in rows(here)] == [1, 1, 0]
    assert sweep("strategy=list", points, "retries=1") == 3
    assert [row["attempts"] for row in rows(here)] == [2, 2, 0]


@pytest.mark.parametrize(
    ("number", "status", "more"),
    [(errno.ENOENT, 2, ["retries=1"]), (errno.ENOSPC, 3, [])],
    ids=["a file that was missing", "a full disk, which was no attempt"],
)
def test_what_was_lacking_can_be_tried_again_and_that_is_said(
    number, status, more, sweep, here, capsys, untrained, monkeypatch
):
    def refused(config, *rest):
        raise OSError(number, os.strerror(number), "last.ckpt")

    with monkeypatch.context() as patch:
        patch.setattr(trials, "run", refused)
        assert sweep("optimizer.lr=1e-2,1e-3", "test=false") == status
    told = " ".join(["; the same command", *(f"with {word}" for word in more), "tries them again"])
    assert told in capsys.readouterr().err
    assert sweep("optimizer.lr=1e-2,1e-3", "test=false", *more) == 0


@pytest.mark.parametrize("heard", ["before training", "and caught", "and broke an import", "after training"])
@pytest.mark.parametrize("objective", ["val/bpb", "seconds"])
def test_a_worker_told_to_stop_trains_nothing_that_has_not_begun(sweep, here, monkeypatch, untrained, heard, objective):
    """While it trains its own handler hears; what is being measured is let come to its end."""
    from lmlab.sweeps.crew import LocalCrew
    from lmlab.sweeps.worker import Worker

    monkeypatch.setattr(LocalCrew, "run", lambda *_: True)
    assert sweep("model.d_model=6,8", f"objective={objective}") == 130
    worker, original = Worker(here / "s", "0"), trials.run

    def stopped(config, path, record, watchers):
        if heard == "after training":
            watchers[0]().told()
        try:
            worker.stop(signal.SIGTERM, None)
        except KeyboardInterrupt:
            if heard == "before training":
                raise
            if heard == "and broke an import":
                raise AttributeError("module 'numpy' has no attribute 'void'") from None
            watchers[0]().told()
        return original(config, path, record, watchers)

    monkeypatch.setattr(trials, "run", stopped)
    assert worker.run() == INTERRUPTED
    (row,) = rows(here)
    ended = heard == "after training"
    assert (row["status"], row["reason"]) == (("done", None) if ended else ("waiting", "interrupted"))
    assert len(untrained) == ended


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"overrides": ["~corpus", "+corpus={_target_:subprocess.getoutput,cmd:'touch pwned'}"]}, "~corpus"),
        ({"overrides": ["optimizer.lr={_target_:subprocess.getoutput,cmd:'touch pwned'}"]}, "optimizer.lr={"),
        ({"overrides": ["optimizer.lr=7"]}, "optimizer.lr=7"),
        ({"seed": "{_target_:subprocess.getoutput,cmd:'touch pwned'}"}, "seed {"),
        ({"micro_batch_size": "{_target_:subprocess.getoutput,cmd:'touch pwned'}"}, "seed 0"),
    ],
)
def test_a_strangers_ledger_has_nothing_run_that_was_not_asked_for(change, told, sweep, here, untrained):
    from lmlab.sweeps.worker import Worker

    words = ["optimizer.lr=tag(log,interval(1e-3,1e-1))", "model.d_model=6,8", "strategy=random", "test=false"]
    assert sweep(*words, "trials=1") == 0
    with Ledger(here / "s/ledger.sqlite") as ledger:
        ledger.set(1, status="waiting", **{k: json.dumps(v) if k == "overrides" else v for k, v in change.items()})
    untrained.clear()
    Worker(here / "s", "0").run()
    (row,) = rows(here)
    assert (row["status"], row["code"]) == ("failed", 2)
    assert "never asked for" in row["reason"]
    assert told in row["reason"]
    assert not (here / "pwned").exists()
    assert untrained == []


def test_out_of_memory_is_tried_again_with_half_the_micro_batch_where_told(sweep, here, monkeypatch, untrained):
    sizes = []

    def hungry(config, path, record, watchers=()):
        sizes.append(config.training.micro_batch_size)
        if (config.training.micro_batch_size or config.batching.batch_size) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(config, path, record, watchers)

    original = trials.run
    monkeypatch.setattr(trials, "run", hungry)
    assert sweep("model.d_model=6,8", "out_of_memory=halve", "test=false") == 0
    assert sizes == [None, 2, 1, None, 2, 1]
    first = rows(here)[0]
    assert (first["status"], first["micro_batch_size"], first["attempts"]) == ("done", 1, 0)
    # The global batch is what it was.
    assert [config.batching.batch_size for config in untrained] == [4, 4]
    sizes.clear()
    assert sweep("model.d_model=6,7", "sweep_dir=t") == 3
    assert sizes == [None, None]


def test_memory_that_runs_out_is_recognised_however_it_is_said():
    assert ran_out_of_memory(torch.OutOfMemoryError("CUDA"))
    assert ran_out_of_memory(MemoryError())
    assert ran_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"))
    nested = ValueError("training failed")
    nested.__cause__ = torch.OutOfMemoryError("CUDA")
    assert ran_out_of_memory(nested)
    assert not ran_out_of_memory(ValueError("optimizer.lr"))


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced_and_its_trial_recorded(here, warm):
    """The process of the second trial is killed twice: told once to try again, it has failed then."""
    words = ["optimizer.lr=1e-2,1e-3,1e-1", "trainer.max_steps=600", "trainer.val_check_interval=100", "retries=1"]
    command = [sys.executable, "-c", COMMAND, "sweep", *TINY, "sweep_dir=s", "workers=1", *words]
    running = warm.start(command, out=here / "told")
    killed: set[int] = set()
    began = time.monotonic()
    while len(killed) < 2 and time.monotonic() - began < 100 and running.poll() is None:
        time.sleep(0.05)
        if not (here / "s/ledger.sqlite").exists():
            continue
        for row in rows(here):
            if row["status"] == "running" and row["point"] == 1 and row["run_dir"] and row["pid"] not in killed:
                killed.add(row["pid"])
                os.kill(row["pid"], signal.SIGKILL)
    status, told = running.wait(), (here / "told").read_text()
    assert status == 3, told
    assert [row["status"] for row in rows(here)] == ["done", "failed", "done"]
    assert "killed by SIGKILL, as the system does when memory runs out" in rows(here)[1]["reason"]
    assert "1 of the 3 trials failed" in told


def test_a_trial_keeps_its_name_under_other_settings_of_speed(here: Path):
    faster = ["validation.batch_size=4", "callbacks.checkpoints.every_minutes=1"]
    one, same, other = (
        trials.name_of(compose([*TINY, *more]), ["seed=0"]) for more in ([], faster, ["optimizer.lr=0.5"])
    )
    assert one == same != other


def test_tokenizers_of_two_files_are_trials_of_two_names(here: Path):
    from tokenizers.models import WordLevel

    from tokenizers import Tokenizer

    names = set()
    for word in ("cat", "dog"):
        tokenizer = Tokenizer(WordLevel({"<unk>": 0, word: 1}, unk_token="<unk>"))
        tokenizer.add_special_tokens(["</s>"])
        tokenizer.save("own.json")
        config = compose([*TINY, "tokenizer=pretrained", "tokenizer.source=own.json"])
        names.add(trials.name_of(config, ["tokenizer.source=own.json"]))
    assert len(names) == 2
