"""What a ledger keeps of CMA-ES is read as numbers, and a stranger's ledger executes nothing."""

import json
import pickle
import sqlite3

import pytest
from tests.sweeps.test_strategy import run

pytest.importorskip("cmaes", reason="cmaes is in lmlab[sweeps]")


def test_a_sweep_that_it_cannot_draw_is_refused_before_anything_runs(sweep, here, capsys):
    assert sweep("optimizer.lr=1e-2,1e-3", "strategy=cmaes", "trials=2") == 2
    assert "optimizer.lr has choices (of numbers, too)" in capsys.readouterr().err
    assert not (here / "s").exists()


class Planted:
    def __reduce__(self):
        return (open, ("executed", "w"))


def test_a_planted_pickle_is_refused_and_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "ledger.sqlite"
    run(path, "cmaes", 14)
    ledger = sqlite3.connect(path)
    kept = [(n, attrs) for n, attrs in ledger.execute("SELECT number, attrs FROM points") if "optimizer:0" in attrs]
    assert kept, "the sampler keeps its state in the ledger"

    number, attrs = kept[-1]
    attrs = json.loads(attrs)
    (key,) = (k for k in attrs if k.endswith("optimizer:0"))
    attrs = {k: v for k, v in attrs.items() if ":optimizer:" not in k} | {key: pickle.dumps(Planted()).hex()}
    ledger.execute("UPDATE points SET attrs = ? WHERE number = ?", (json.dumps(attrs), number))
    ledger.commit()
    ledger.close()
    with pytest.raises(ValueError, match=r"names (io|_io)\.open: it was not read"):
        run(path, "cmaes", 15)
    assert not (tmp_path / "executed").exists()
