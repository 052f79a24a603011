"""How many workers there are, and workers that a launcher starts."""

import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.sweeps.conftest import TINY
from tests.sweeps.test_pruning import ASKED as UNCOMPOSED

from lmlab.errors import TrainingFailed
from lmlab.sweeps import crew
from lmlab.sweeps.asked import Asked
from lmlab.sweeps.composer import Composer
from lmlab.sweeps.ledger import Ledger

ASKED = replace(UNCOMPOSED, space={"optimizer.lr": "interval(1e-3,1e-1)"})


@pytest.mark.parametrize(
    ("workers", "threads", "gpus", "trials", "expected"),
    [
        ("auto", None, 0, 100, (8, 1)),
        ("auto", 3, 0, 100, (2, 3)),
        ("auto", None, 4, 100, (4, 2)),
        ("auto", 16, 0, 100, (1, 16)),
        ("auto", None, 0, 2, (2, 4)),
        (3, None, 0, 100, (3, 2)),
        (16, None, 0, 100, (16, 1)),
    ],
)
def test_eight_cores_are_shared_out(monkeypatch, workers, threads, gpus, trials, expected):
    monkeypatch.setattr(crew, "cores", lambda: 8)
    assert crew.divide(workers, threads, gpus, trials)[:2] == expected


def test_no_more_workers_than_fit_into_memory_and_it_is_said(monkeypatch):
    monkeypatch.setattr(crew, "cores", lambda: 8)
    assert crew.divide("auto", None, 0, 100, 3) == (3, 2, "no more fit into memory")
    # One is tried all the same, and whoever names a number gets it.
    assert crew.divide("auto", None, 0, 100, 0)[0] == 1
    assert crew.divide(5, None, 0, 100, 3) == (5, 1, None)
    assert crew.divide("auto", None, 0, 100, 20) == (8, 1, "8 cores, 1 for each")


@pytest.mark.parametrize(("workers", "pinned"), [("auto", ["GPU-a", "GPU-b"]), (3, ["GPU-a", "GPU-b", "GPU-a"])])
def test_each_worker_sees_one_gpu_of_its_own(tmp_path, monkeypatch, workers, pinned):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    assert devices(tmp_path, monkeypatch, workers, ASKED) == pinned


@pytest.mark.parametrize(
    ("said", "pinned"),
    [
        (["trainer=ddp", "devices=2"], ["0,1", "2,3"]),
        (["trainer=ddp", "trainer.devices=3"], ["0,1,2"]),
        (["trainer=ddp", "devices=auto"], ["0,1,2,3,4"]),
        (["trainer=ddp", "devices=8"], ["0,1,2,3,4"]),
    ],
)
def test_each_worker_sees_as_many_gpus_as_a_trial_has_processes(tmp_path, monkeypatch, said, pinned):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4")
    assert devices(tmp_path, monkeypatch, "auto", replace(ASKED, overrides=said)) == pinned


def test_the_instances_that_a_gpu_is_cut_into_are_one_each():
    listed = """GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5c89)
  MIG 3g.20gb     Device  0: (UUID: MIG-c7a3)
  MIG 3g.20gb     Device  1: (UUID: MIG-6f1b)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-4a12)
"""
    assert crew.named_gpus(listed) == ["MIG-c7a3", "MIG-6f1b", "1"]
    assert crew.named_gpus("") == []


def test_what_an_options_file_says_of_threads_and_devices_is_heeded(tmp_path, monkeypatch):
    (tmp_path / "conf/tuned").mkdir(parents=True)
    (tmp_path / "conf/tuned/fast.yaml").write_text("# @package _global_\nthreads: 4\n")
    (tmp_path / "conf/trainer").mkdir()
    (tmp_path / "conf/trainer/mine.yaml").write_text("defaults: [ddp, _self_]\ndevices: 2\n")
    monkeypatch.setattr(crew, "cores", lambda: 8)
    monkeypatch.setattr(crew, "visible_gpus", lambda: ["0", "1", "2", "3"])
    own = replace(ASKED, config_dir=str(tmp_path / "conf"))
    assert devices(tmp_path, monkeypatch, "auto", replace(own, overrides=["trainer=mine"])) == ["0,1", "2,3"]
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        tuned = replace(own, overrides=["trainer=cpu", "+tuned=fast"])
        its = crew.LocalCrew(tmp_path, "auto", tuned, ledger, Composer(own.config_dir))
    assert (its.n, its.threads, its.gpus) == (2, 4, [])


def test_a_config_is_found_where_only_the_last_values_of_a_space_can_run(monkeypatch):
    ends = {False: [["no.such.key=1"]] * 9, True: [["seed=1"]]}
    monkeypatch.setattr(crew, "samples", lambda parameters, last: ends[last])
    monkeypatch.setattr(Asked, "overrides_of", lambda self, values: values)
    monkeypatch.setattr(Asked, "parameters", ["a space"])
    some = replace(ASKED, points=[], overrides=["trainer.max_steps=9"])
    assert [config.trainer.max_steps for config in crew.sampled(some, Composer(None))] == [9]


@pytest.mark.parametrize("said", ["trainer=cpu", "trainer.accelerator=cpu"])
def test_a_sweep_on_the_cpu_pins_nothing(tmp_path, monkeypatch, said):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    asked = replace(ASKED, overrides=[said])
    assert devices(tmp_path, monkeypatch, 2, asked) == ["GPU-a,GPU-b"] * 2


def test_a_worker_that_died_is_replaced_on_the_same_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(crew, "visible_gpus", lambda: ["5", "7"])
    with pytest.raises(TrainingFailed, match="die before they have trained anything"):
        devices(tmp_path, monkeypatch, 2, ASKED, status=1)
    assert [{*log.read_text().split()} for log in sorted(tmp_path.glob("workers/*.log"))] == [{"5"}, {"7"}]
    assert sum(len(log.read_text().split()) for log in tmp_path.glob("workers/*.log")) > 2


def test_a_worker_that_died_is_no_other_machines_of_the_same_number_and_id(tmp_path):
    """Containers that share a sweep's directory give their workers the same few ids."""
    with Ledger(tmp_path / "ledger.sqlite", create=True) as ledger:
        for host in (socket.gethostname(), "elsewhere"):
            number = ledger.add_point({}, [], {}, [0]) + 1
            ledger.start(number, "0")
            ledger.set(number, host=host, pid=7)
        its = crew.LocalCrew(tmp_path, 1, ASKED, ledger, Composer(None))
        its._bury(ledger, 0, 7, 1)
        assert [row["status"] for row in ledger.trials()] == ["failed", "running"]


def devices(path: Path, monkeypatch, workers: int | str, asked: Asked, status: int = 0) -> list[str]:
    """What CUDA_VISIBLE_DEVICES is in each worker; a script in Python's place says it and ends."""
    script = path / "python"
    script.write_text(f"#!/bin/sh\necho $CUDA_VISIBLE_DEVICES\nexit {status}\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with Ledger(path / "ledger.sqlite", create=True) as ledger:
        assert (
            crew.LocalCrew(path, workers, asked, ledger, Composer(asked.config_dir)).run(ledger, lambda: None) is False
        )
    return [log.read_text().strip() for log in sorted(path.glob("workers/*.log"))]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["submitit_local", "joblib", "joblib hydra.launcher.n_jobs=1", "ray"])
def test_a_launcher_starts_the_workers(here, launcher):
    # joblib's one job runs in the thread that launches it, as on a machine of one core.
    launcher, *words = launcher.split()
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher", reason="an extra of its own")
    code = "import sys; from lmlab.cli import main; sys.exit(main(sys.argv[1:]))"
    words += [f"hydra/launcher={launcher}", "workers=2", "sweep_dir=s", "optimizer.lr=1e-2,1e-3,1e-1"]
    done = subprocess.run([sys.executable, "-c", code, "sweep", *TINY, *words], capture_output=True, timeout=500)
    assert done.returncode == 0, done.stderr.decode()
    with Ledger(here / "s/ledger.sqlite") as ledger:
        assert [row["status"] for row in ledger.trials()] == ["done"] * 3


def test_slurms_launcher_composes_and_needs_a_number_of_jobs(here, capsys):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="in lmlab[slurm]")
    from lmlab.cli import main

    words = ["sweep", *TINY, "optimizer.lr=1e-2,1e-3", "hydra/launcher=submitit_slurm", "hydra.launcher.partition=cpu"]
    assert main(words) == 2
    assert "with a launcher, say how many jobs" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["实验", "a (1)", "it's", "a,b", 'a"b', "a${b}", "a\\"])
def test_a_launchers_job_is_told_the_sweeps_place_whatever_its_name(tmp_path, name):
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    told = []
    its = crew.HydraCrew.__new__(crew.HydraCrew)
    its.directory, its.n, its.error = tmp_path / name, 1, None
    its.launcher = SimpleNamespace(launch=lambda jobs, initial_job_idx: told.extend(jobs) or [])
    its._launch()
    join, worker = OverridesParser.create().parse_overrides(told[0])
    assert not join.is_sweep_override()
    assert OmegaConf.create({"join": join.value()}).join == str(tmp_path / name)
    assert worker.value() == 0


def test_what_lies_where_a_worker_starts_replaces_no_module(tmp_path, monkeypatch):
    """The command as it is, but for a module that says where `random` comes from."""
    (tmp_path / "random.py").write_text("raise SystemExit('a file of the folder was imported')\n")
    monkeypatch.chdir(tmp_path)
    started = []
    monkeypatch.setattr(
        crew, "subprocess", SimpleNamespace(PIPE=-1, Popen=lambda command, **_: started.append(command))
    )
    its = crew.LocalCrew.__new__(crew.LocalCrew)
    its.directory, its.threads, its.gpus, its.processes = tmp_path, 1, [], {}
    its.start(0)
    (command,) = started
    command = [*command[: command.index("-m")], "-c", "import random; print(random.__file__)"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stdout.startswith(str(tmp_path))
