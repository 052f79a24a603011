"""Files that were cut off or changed, at random places: a clear error or a repair, never another number."""

import logging
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lmlab
from lmlab.cli import classify
from lmlab.data.store import Store
from lmlab.errors import USER_INPUT
from lmlab.evaluation import scores
from lmlab.evaluation.floors import floors
from lmlab.run_directory import RunDirectory
from lmlab.runs.tables import row
from lmlab.sweeps.asked import Asked
from lmlab.sweeps.asked import load as load_sweep
from lmlab.sweeps.ledger import Ledger, results_of

# Of each file.
N = 40


def cut(content: bytes, chosen: random.Random) -> bytes:
    return content[: chosen.randrange(len(content))]


def flip(content: bytes, chosen: random.Random) -> bytes:
    """One bit."""
    at = chosen.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << chosen.randrange(8)]) + content[at + 1 :]


def overwrite(content: bytes, chosen: random.Random) -> bytes:
    """One byte by any other."""
    at = chosen.randrange(len(content))
    return content[:at] + bytes([(content[at] + chosen.randrange(1, 256)) % 256]) + content[at + 1 :]


def blank(content: bytes, chosen: random.Random) -> bytes:
    """A block of a disk that was never written."""
    at, n = chosen.randrange(len(content)), chosen.choice([1, 16, 512, 4096])
    return content[:at] + bytes(min(n, len(content) - at)) + content[at + n :]


DAMAGES = (cut, flip, flip, overwrite, blank)


def outcome(look: Callable[[], Any]) -> tuple[Any, str | None]:
    """What was found, or the one line for the user. An error that is not the user's to see is raised."""
    try:
        return look(), None
    except Exception as error:
        status, said = classify(error, "evaluate")
        if status != USER_INPUT:
            raise
        return None, said


def fuzz(path: Path, look: Callable[[], Any], seed: int = 0, n: int = N, repaired: bool = False) -> dict[str, int]:
    """Damage the file in `n` ways, and look each time: at the same as ever, or at an error that is the user's to see.

    repaired: whether looking makes the file again, so that there must be no error at all. Returns how often what.
    """
    whole, expected, chosen = path.read_bytes(), look(), random.Random(seed)
    outcomes = {"refused": 0, "the same": 0}
    for case in range(n):
        damage = DAMAGES[case % len(DAMAGES)]
        content = damage(whole, chosen)
        if content == whole:
            continue
        path.write_bytes(content)
        found, said = outcome(look)
        path.write_bytes(whole)
        where = (damage.__name__, case, said)
        if said is None:
            assert found == expected, where
        else:
            assert not repaired, where
            assert path.name in said or str(path.parent) in said, where
        outcomes["the same" if said is None else "refused"] += 1
    print(path.name, outcomes)
    return outcomes


@pytest.fixture
def run(trained, tmp_path) -> Path:
    shutil.copytree(trained["transformer"], tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def store(trained, tmp_path) -> Path:
    path = lmlab.load(trained["transformer"]).store().path
    shutil.copytree(path, tmp_path / path.name)
    return tmp_path / path.name


@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_checkpoints(checkpoint, run):
    path = run / f"checkpoints/{checkpoint}.ckpt"

    def weights():
        from lmlab.training.checkpoints import read

        found = read(path)
        return {k: v.tolist() for k, v in found["state_dict"].items()} | {"step": found.get("step")}

    assert fuzz(path, weights, n=3 * N)["refused"] > N


def test_tokenizers(run):
    """One that cannot be read is made again from the token store; one that can, and is another, is refused."""
    outcomes = fuzz(run / "tokenizer.json", lambda: lmlab.load(run).score("the dog's food, 一").log_prob, n=2 * N)
    assert min(outcomes.values()) > 0


def test_configurations(run):
    def measured():
        loaded = lmlab.load(run)
        return loaded.evaluate("val"), loaded.protocol, loaded.config

    assert fuzz(run / "config.yaml", measured)["refused"] > N // 2


def test_what_was_asked(run):
    def asked():
        told = row(RunDirectory(run), run.parent, {})
        damaged = told["state"].startswith("damaged: ")
        assert damaged == (not told["asked"])
        return RunDirectory(run).asked(), told["asked"]

    assert fuzz(run / "asked.yaml", asked)["refused"] > N // 2


def test_results(run):
    assert fuzz(run / "results.json", lambda: RunDirectory(run).results(), n=2 * N)["refused"] > N


def test_curves(run):
    """Cut off, a curve is as that of a run that was killed then: its first points."""
    logged = RunDirectory(run).points()

    def points():
        found = RunDirectory(run).points()
        assert found == logged[: len(found)]

    fuzz(run / "curves.csv", points, n=2 * N)


def test_scores(run):
    pytest.importorskip("pyarrow")
    from lmlab import measurement

    loaded = lmlab.load(run)
    place = measurement.Place("val", None, None)
    found = measurement.scored(loaded, place, loaded.protocol)
    path = measurement.keep(loaded, place, found.scores)

    def kept():
        back = scores.read(path)
        return [getattr(back, name).tolist() for name in scores.COLUMNS], dict(back.about)

    assert fuzz(path, kept, n=3 * N)["refused"] > N


def test_each_file_of_a_store(store):
    def content():
        opened = Store(store)
        splits = {}
        for name in opened.splits:
            split = opened.split(name)
            arrays = [getattr(split, k).tolist() for k in ("ids", "n_bytes", "n_chars", "n_words", "doc_starts")]
            splits[name] = arrays, split.totals, split.docs
        return splits, opened.report, opened.tokenizer.to_json()

    for path in sorted(store.iterdir()):
        if path.stat().st_size and not path.name.startswith("floors"):
            outcomes = fuzz(path, content, n=15)
            assert outcomes["refused"] >= 12, path.name


def test_a_changed_byte_of_a_large_file_of_a_store_is_seen(store, monkeypatch):
    """Large files are not read on opening, unless they were written since."""
    monkeypatch.setattr("lmlab.data.store.CHECK_UP_TO", 0)
    reads = []
    monkeypatch.setattr("lmlab.data.store.checksum", lambda path: reads.append(path.name) or checksum(path))
    from lmlab.data.columns import checksum

    Store(store)
    assert reads == [], "a copy with its times"
    fuzz(store / "train.ids", lambda: np.array(Store(store).split("train").ids).tolist(), n=10)
    reads.clear()
    Store(store)
    assert reads == ["train.ids"], "written, and yet what it was"
    Store(store)
    assert reads == ["train.ids"], "so that it need not be read again"


def test_floors_are_counted_again(store):
    opened = Store(store)
    expected = floors(opened, ["val"])
    path = next(store.glob("floors-*.json"))
    fuzz(path, lambda: floors(opened, ["val"]) == expected, n=10, repaired=True)


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    """A sweep's directory, with a ledger of 40 trials that are done."""
    directory = tmp_path_factory.mktemp("swept")
    with Ledger(directory / "ledger.sqlite", create=True) as ledger:
        for point in range(40):
            ledger.add_point({"optimizer.lr": point / 1000}, [f"optimizer.lr={point / 1000}"], {}, [0])
        for trial in ledger.trials():
            told = {"val/bpb": 1.5 + trial["id"] / 100, "val/ppl": 7.0}
            ledger.finish(trial["id"], told, steps=9)
        ledger.connection.execute("PRAGMA journal_mode=delete")
    return directory


def test_ledgers(swept):
    """Damaged pages are seen when it is opened, changed numbers when they are read."""

    def numbers():
        with Ledger(swept / "ledger.sqlite") as ledger:
            return [results_of(trial) for trial in ledger.trials("done")]

    outcomes = fuzz(swept / "ledger.sqlite", numbers, n=3 * N)
    assert outcomes["refused"] > N // 2


def test_what_a_sweep_was_asked(tmp_path):
    words = dict.fromkeys(("name", "strategy", "out_of_memory", "keep", "config_dir", "fingerprint"), "grid")
    numbers = {"strategy_seed": 0, "trials": 2, "replicates": 1, "retries": 0, "test": False, "seeds": [0]}
    trees = {"space": {"optimizer.lr": "1e-3,1e-2"}, "when": {}, "pruning": {}, "base": {"seed": 0}}
    lists = {"points": [], "overrides": ["test=false"], "objective": [{"metric": "val/bpb"}]}
    Asked(**words, **numbers, **trees, **lists).save(tmp_path)
    assert fuzz(tmp_path / "sweep.yaml", lambda: load_sweep(tmp_path))["refused"] > N // 2


def test_training_on_a_damaged_directory_is_refused_or_ends_the_same(small, tmp_path, caplog):
    """The same command on an unfinished run, each of whose files in turn is damaged."""
    from lmlab.config import compose
    from lmlab.experiment import train

    words = [*small["lstm"], "trainer.val_check_interval=1"]
    caplog.set_level(logging.CRITICAL, "lmlab")
    done = train(compose([f"run_dir={tmp_path / 'done'}", *words]))
    files = [p.relative_to(tmp_path / "done") for p in (tmp_path / "done").rglob("*") if p.is_file()]
    chosen = random.Random(0)
    for file in sorted(files):
        for damage in (cut, flip, overwrite):
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
            shutil.copytree(tmp_path / "done", tmp_path / "run")
            (tmp_path / "run/results.json").unlink()
            path = tmp_path / "run" / file
            if not path.exists() or not path.stat().st_size:
                continue
            path.write_bytes(damage(path.read_bytes(), chosen))
            told, said = outcome(lambda: train(compose([f"run_dir={tmp_path / 'run'}", *words])))
            if said is not None:
                assert str(path) in said, (file, damage.__name__, said)
                continue
            assert told["splits"] == done["splits"], (file, damage.__name__)
            ours, theirs = (
                torch.load(tmp_path / name / "checkpoints/best.ckpt")["state_dict"] for name in ("run", "done")
            )
            assert all(torch.equal(ours[k], v) for k, v in theirs.items())
