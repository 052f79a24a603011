"""study.sqlite says what the ledger says, as Optuna reads it."""

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


@pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")
def test_the_study_follows_the_ledger_and_a_damaged_one_is_made_again(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite", create=True) as ledger:
        for x in (0.25, 0.5):
            ledger.add_point({"x": x}, [f"x={x}"], {}, [0])
        ledger.report(1, 10, 3.0)
        ledger.set(2, status="pruned")
        ledger.report(2, 10, 4.0)
        Mirror(tmp_path, ASKED).update(ledger, last=True)
        assert trials(tmp_path / "study.sqlite") == [("RUNNING", None, {10: 3.0}), ("PRUNED", None, {10: 4.0})]
        ledger.report(1, 20, 2.0)
        ledger.set(1, status="done", values_='{"val/bpb": 2.0}')
        Mirror(tmp_path, ASKED).update(ledger, last=True)
        assert trials(tmp_path / "study.sqlite")[0] == ("COMPLETE", [2.0], {10: 3.0, 20: 2.0})
        # Promoted after all: one more trial, as Optuna's do not change once they have ended.
        ledger.set(2, status="done", values_='{"val/bpb": 1.0}')
        Mirror(tmp_path, ASKED).update(ledger, last=True)
        assert trials(tmp_path / "study.sqlite")[2] == ("COMPLETE", [1.0], {10: 4.0})
        (tmp_path / "study.sqlite").write_bytes(b"damaged" * 1000)
        Mirror(tmp_path, ASKED).update(ledger, last=True)
        assert [t[0] for t in trials(tmp_path / "study.sqlite")] == ["COMPLETE", "COMPLETE"]
