"""study.sqlite says what the ledger says, as Optuna reads it."""

import logging
import sqlite3
from contextlib import closing

import optuna
import pytest
from tests.sweeps.test_pruning import ASKED

from lmlab.sweeps.ledger import Ledger
from lmlab.sweeps.study import Mirror


def trials(path) -> list[tuple]:
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    told = [
        (t.state.name, t.values, t.intermediate_values)
        for t in optuna.load_study(study_name="a", storage=storage).trials
    ]
    storage.engine.dispose()
    return told


def copy(path, ledger) -> None:
    """What a session of the sweep leaves."""
    with closing(Mirror(path, ASKED)) as mirror:
        mirror.update(ledger, last=True)


@pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")
def test_the_study_follows_the_ledger_and_a_damaged_one_is_made_again(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite", create=True) as ledger:
        for x in (0.25, 0.5):
            ledger.add_point({"x": x}, [f"x={x}"], {}, [0])
        ledger.report(1, 10, 3.0)
        ledger.set(2, status="pruned")
        ledger.report(2, 10, 4.0)
        copy(tmp_path, ledger)
        assert trials(tmp_path / "study.sqlite") == [("RUNNING", None, {10: 3.0}), ("PRUNED", None, {10: 4.0})]
        ledger.report(1, 20, 2.0)
        ledger.set(1, status="done", values_='{"val/bpb": 2.0}')
        copy(tmp_path, ledger)
        assert trials(tmp_path / "study.sqlite")[0] == ("COMPLETE", [2.0], {10: 3.0, 20: 2.0})
        # Promoted after all: one more trial, as Optuna's do not change once they have ended.
        ledger.set(2, status="done", values_='{"val/bpb": 1.0}')
        copy(tmp_path, ledger)
        assert trials(tmp_path / "study.sqlite")[2] == ("COMPLETE", [1.0], {10: 4.0})
        (tmp_path / "study.sqlite").write_bytes(b"damaged" * 1000)
        copy(tmp_path, ledger)
        assert [t[0] for t in trials(tmp_path / "study.sqlite")] == ["COMPLETE", "COMPLETE"]


@pytest.fixture
def mirrored(tmp_path, monkeypatch):
    """A ledger of two points, and the mirror that has copied it once and looks at each update."""
    monkeypatch.setattr("lmlab.sweeps.study.EVERY", 0.0)
    with Ledger(tmp_path / "ledger.sqlite", create=True) as ledger, closing(Mirror(tmp_path, ASKED)) as mirror:
        for x in (0.25, 0.5):
            ledger.add_point({"x": x}, [f"x={x}"], {}, [0])
        mirror.update(ledger)
        ledger.report(1, 10, 3.0)
        yield ledger, mirror


@pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")
def test_a_study_that_somebody_deletes_is_made_again(mirrored, tmp_path, caplog):
    ledger, mirror = mirrored
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'study.sqlite'}")
    optuna.delete_study(study_name="a", storage=storage)
    storage.engine.dispose()
    mirror.update(ledger)
    assert "study.sqlite could not be written" in caplog.text
    mirror.update(ledger)
    assert trials(tmp_path / "study.sqlite") == [("RUNNING", None, {10: 3.0}), ("RUNNING", None, {})]


@pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")
def test_a_study_that_somebody_locks_is_written_once_it_is_free_and_said_once(mirrored, tmp_path, caplog, monkeypatch):
    ledger, mirror = mirrored
    before = (tmp_path / "study.sqlite").stat().st_ino
    monkeypatch.setattr("lmlab.sweeps.study.PATIENCE", 0.1)
    with closing(sqlite3.connect(tmp_path / "study.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with caplog.at_level(logging.WARNING, logger="lmlab"):
            mirror.update(ledger)
            mirror.update(ledger)
        other.execute("ROLLBACK")
    assert caplog.text.count("study.sqlite could not be written") == 1
    assert "is made again" not in caplog.text
    mirror.update(ledger)
    assert (tmp_path / "study.sqlite").stat().st_ino == before, "it was no damaged one"
    assert trials(tmp_path / "study.sqlite")[0] == ("RUNNING", None, {10: 3.0})


def test_an_interrupted_session_leaves_the_copy_to_the_next_one_of_its_process(tmp_path):
    with closing(Mirror(tmp_path, ASKED)) as first, closing(Mirror(tmp_path, ASKED)) as second:
        assert (first.ours, second.ours) == (True, False)
    with closing(Mirror(tmp_path, ASKED)) as third:
        assert third.ours


@pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")
def test_a_directory_may_have_any_name(tmp_path):
    place = tmp_path / "which lr?a=1&b#100%20{x} 实验"
    place.mkdir()
    with Ledger(place / "ledger.sqlite", create=True) as ledger:
        ledger.add_point({"x": 0.5}, ["x=0.5"], {}, [0])
        ledger.set(1, status="pruned")
        copy(place, ledger)
    assert [path.name for path in tmp_path.iterdir()] == [place.name]
    with closing(sqlite3.connect(place / "study.sqlite")) as database:
        assert database.execute("SELECT state FROM trials").fetchall() == [("PRUNED",)]
