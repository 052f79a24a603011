"""How many workers there are, and workers that a launcher starts."""

import subprocess
import sys

import pytest
from tests.sweeps.conftest import TINY

from lmlab.sweeps import crew
from lmlab.sweeps.ledger import Ledger


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


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["submitit_local", "joblib"])
def test_a_launcher_starts_the_workers(here, launcher):
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher", reason="an extra of its own")
    code = "import sys; from lmlab.cli import main; sys.exit(main(sys.argv[1:]))"
    words = [f"hydra/launcher={launcher}", "workers=2", "sweep_dir=s", "optimizer.lr=1e-2,1e-3,1e-1"]
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
