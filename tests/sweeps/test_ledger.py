"""The ledger under many hands: each trial drawn once, the dead noticed, damage told."""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from tests.sweeps.test_pruning import ASKED

from lmlab.sweeps.ledger import SILENCE, Ledger, alive, birth, journal, me
from lmlab.sweeps.worker import take_over

DRAW = """
import sys
from lmlab.sweeps.ledger import Ledger
with Ledger(sys.argv[1]) as ledger:
    while True:
        with ledger.transaction():
            row = ledger.next_waiting()
            if row is None:
                break
            ledger.start(row["id"], "w")
        ledger.set(row["id"], status="done")
        print(row["id"], flush=True)
"""


@pytest.fixture
def ledger(tmp_path: Path):
    with Ledger(tmp_path / "ledger.sqlite", create=True) as opened:
        yield opened


def test_processes_at_once_draw_every_trial_once(ledger):
    for _ in range(20):
        ledger.add_point({}, [], {}, [0, 1])
    others = [
        subprocess.Popen([sys.executable, "-c", DRAW, str(ledger.path)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    drawn = [line for process in others for line in process.communicate(timeout=60)[0].split()]
    assert sorted(map(int, drawn)) == list(range(1, 41))


def test_a_transaction_that_is_killed_leaves_nothing(ledger):
    code = (
        "import os, sys\nfrom lmlab.sweeps.ledger import Ledger\nledger = Ledger(sys.argv[1])\n"
        "ledger.connection.execute('BEGIN IMMEDIATE')\nledger.add_point({}, ['a=1'], {}, [0])\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(ledger.path)])
    assert done.returncode == -signal.SIGKILL
    assert ledger.n_points() == 0
    assert ledger.add_point({}, ["a=1"], {}, [0]) == 0


def test_the_trial_of_a_dead_process_is_an_orphan_and_that_of_a_living_one_is_not(ledger):
    ledger.add_point({}, [], {}, [0, 1])
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    born = birth(other.pid)
    ledger.start(1, "w")
    ledger.start(2, "w")
    ledger.set(1, pid=other.pid, born=born)
    assert ledger.orphans() == []
    other.communicate()
    assert [row["id"] for row in ledger.orphans()] == [1]
    # Another process may have got the number since.
    ledger.set(2, born="0")
    assert [row["id"] for row in ledger.orphans()] == [1, 2]


@pytest.mark.parametrize("behind", [-1000, 0, 1000])
def test_a_silent_worker_elsewhere_is_dead_after_a_while_whatever_its_clock_says(ledger, behind, monkeypatch):
    clock = 5.0
    monkeypatch.setattr("lmlab.sweeps.ledger.time.monotonic", lambda: clock)
    ledger.add_point({}, [], {}, [0])
    row = ledger.start(1, "w")
    ledger.set(1, host="elsewhere", heartbeat=row["heartbeat"] - behind)
    for _ in range(3):
        assert ledger.orphans() == []
        clock += SILENCE - 1
        assert ledger.orphans() == []
        # A sign of life: from now on it counts anew.
        ledger.set(1, heartbeat=ledger.trial(1)["heartbeat"] + 10)
    assert ledger.orphans() == []
    clock += SILENCE
    assert len(ledger.orphans()) == 1


def test_a_trial_that_gets_further_may_lose_a_worker_again_and_one_that_does_not_has_failed(ledger):
    """Workers elsewhere: two deaths at one place are the trial's fault, whatever it reports of where it has been."""
    ledger.add_point({}, [], {}, [0])

    def killed(*steps: int) -> str:
        ledger.start(1, "w")
        for step in steps:
            ledger.report(1, step, 1.0)
        ledger.set(1, born="0")
        take_over(ASKED, ledger)
        return ledger.trial(1)["status"]

    assert [killed(10), killed(20), killed(30), killed(40)] == ["waiting"] * 4
    assert killed(30, 40) == "failed"


def test_two_trials_of_one_directory_take_turns(ledger):
    ledger.add_point({}, [], {}, [0, 0])
    ledger.start(1, "w")
    assert ledger.place(1, "name", "trials/name")
    ledger.start(2, "w")
    assert not ledger.place(2, "name", "trials/name")
    assert ledger.next_waiting() is None
    ledger.set(1, status="done")
    assert ledger.next_waiting()["id"] == 2


def test_signs_of_life_are_of_this_process(ledger):
    ledger.add_point({}, [], {}, [0, 1])
    ledger.start(1, "w")
    ledger.start(2, "w")
    ledger.set(1, heartbeat=0)
    ledger.set(2, heartbeat=0, pid=me()[1] + 1)
    ledger.beat()
    assert ledger.trial(1)["heartbeat"] > 0
    assert ledger.trial(2)["heartbeat"] == 0


def test_a_damaged_ledger_is_told_and_left_alone(ledger):
    ledger.close()
    ledger.path.write_bytes(b"not a database at all" * 100)
    for suffix in ("-wal", "-shm"):
        ledger.path.with_name(ledger.path.name + suffix).unlink(missing_ok=True)
    before = ledger.path.read_bytes()
    with pytest.raises(ValueError, match=r"ledger.sqlite is damaged .* move it away"):
        Ledger(ledger.path, create=True)
    assert ledger.path.read_bytes() == before


def test_another_format_and_no_ledger_are_refused(ledger):
    ledger.connection.execute("UPDATE meta SET value = '99' WHERE key = 'format'")
    with pytest.raises(ValueError, match="ledger format 99"):
        Ledger(ledger.path)
    with pytest.raises(FileNotFoundError, match="is no sweep"):
        Ledger(ledger.path.parent / "none" / "ledger.sqlite")


def test_a_disk_of_this_machine_has_write_ahead_logging(ledger):
    assert journal(ledger.path) == "wal"
    (mode,) = sqlite3.connect(ledger.path).execute("PRAGMA journal_mode").fetchone()
    assert mode == "wal"
    assert birth(os.getpid()) == me()[2]


def test_a_worker_that_ended_is_its_parents_to_report_until_it_was_waited_for():
    child = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.DEVNULL)
    born = birth(child.pid)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert born is not None
    assert alive(socket.gethostname(), child.pid, born, 0.0)
    child.wait()
    assert not alive(socket.gethostname(), child.pid, born, 0.0)


@pytest.mark.parametrize(
    "told", ["database is locked", "attempt to write a readonly database", "unable to open database file"]
)
def test_a_ledger_that_is_in_use_or_not_ours_is_not_called_damaged(ledger, monkeypatch, told):
    """The advice for that would be to move a colleague's ledger away."""

    def refuse(*_):
        raise sqlite3.OperationalError(told)

    monkeypatch.setattr(Ledger, "ask", refuse)
    with pytest.raises(ValueError, match=rf"ledger\.sqlite cannot be opened: {told}$"):
        Ledger(ledger.path)


def test_who_only_reads_writes_nothing_and_needs_no_right_to(ledger, monkeypatch):
    ledger.add_point({}, [], {}, [0, 1])
    with Ledger(ledger.path, read=True) as other:
        assert other.counts()["waiting"] == 2
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            other.set(1, status="done")
    ledger.close()
    assert not ledger.path.with_name("ledger.sqlite-wal").exists()
    connect = sqlite3.connect

    class Shut:
        """As SQLite is in a folder in which it may make no file, which root always may."""

        close = staticmethod(lambda: None)

        def execute(self, *_):
            raise sqlite3.OperationalError("unable to open database file")

    def without_rights(place, **options):
        return connect(place, **options) if "immutable=1" in str(place) else Shut()

    monkeypatch.setattr("lmlab.runs.ledger.sqlite3.connect", without_rights)
    with Ledger(ledger.path, read=True) as other:
        assert other.counts()["waiting"] == 2
