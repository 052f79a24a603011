"""The end of a sweep: its winner, what that is worth beside another's, and what several protocols leave of it."""

import json
import re
import shutil
import sys
from contextlib import nullcontext
from dataclasses import replace

import pytest
from tests.sweeps.conftest import TINY
from tests.sweeps.test_pruning import ASKED

from lmlab.cli import main
from lmlab.metrics import Likelihood
from lmlab.run_directory import RunDirectory
from lmlab.runs.run import Run
from lmlab.sweeps.asked import Asked
from lmlab.sweeps.ending import Tidy, best, finished, winners
from lmlab.sweeps.ledger import Ledger
from lmlab.sweeps.live import leaders


def front(asked: Asked, ledger: Ledger) -> list[int]:
    """Of a sweep under one protocol."""
    (values,) = finished(asked, ledger).values()
    return best(asked, values)


def test_a_sweep_is_compared_by_its_winner_and_what_has_no_checkpoint_is_passed_over(sweep, here, capsys):
    assert sweep("optimizer.lr=1e-3,1e-1", "replicates=2") == 0
    assert sweep("model.d_model=4", "optimizer.lr=1e-3,1e-1", "sweep_dir=t") == 0
    # A trial that failed before its config was settled.
    (failed,) = here.glob("s/trials/lr=0.001_seed0-*")
    (failed / "config.yaml").unlink()
    (failed / "results.json").unlink()
    capsys.readouterr()
    for ours in ("s", "s/trials"):
        assert main(["compare", ours, "t", "block_bytes=20", "format=json"]) == 0
        shown = capsys.readouterr()
        assert [(side["name"], side["runs"]) for side in json.loads(shown.out)["sides"]] == [(ours, 2), ("t", 1)]
        assert "t: its winner, the best of 2 points: optimizer.lr=0.1" in shown.err
        if ours == "s/trials":
            assert "s/trials: passed over, not finished, damaged or without best.ckpt: lr=0.001_seed0-" in shown.err
    loser = next(here.glob("s/trials/lr=0.001_seed1-*"))
    assert main(["compare", str(loser), "t"]) == 2
    assert f"no checkpoint at {loser}/checkpoints/best.ckpt" in capsys.readouterr().err
    for path in here.glob("s/trials/lr=0.1_*"):
        shutil.rmtree(path)
    assert main(["compare", "s/trials", "t"]) == 2
    assert "s/trials has no finished run with its best.ckpt" in capsys.readouterr().err


def test_the_winner_alone_has_floors_and_the_report_shows_them_and_again_costs_nothing(sweep, here, monkeypatch):
    command = ["optimizer.lr=1e-3,1e-1", "logger=none"]
    assert sweep(*command) == 0
    lost, won = (RunDirectory(next(here.glob(f"s/trials/lr={lr}_*"))) for lr in ("0.001", "0.1"))
    assert "floors" not in lost.results()
    assert set(lost.results()["splits"]) == {"val"}
    results = won.results()
    assert set(results["splits"]) == {"val", "test"}
    assert results["splits"]["val"].keys() == results["splits"]["test"].keys()
    assert {name: set(splits) for name, splits in results["floors"].items()} == {
        name: {"val", "test"} for name in ("unigram", "kneser_ney_5")
    }
    page = (here / "s/report.html").read_text()
    told = json.loads(re.search(r'"floors":(\{[^}]*\})', page)[1])
    assert told == pytest.approx({name: splits["val"]["bpb"] for name, splits in results["floors"].items()}, rel=1e-5)
    # Counted once a text: neither the same command nor another sweep counts again.
    monkeypatch.setattr("lmlab.models.ngram.NGramLM.fit", lambda *_: pytest.fail("counted again"))
    before = (won.path / "results.json").stat().st_mtime_ns
    assert sweep(*command) == 0
    assert (won.path / "results.json").stat().st_mtime_ns == before
    assert sweep("seed=1,2", "sweep_dir=t") == 0


def test_the_winner_is_measured_where_and_as_it_was_trained(sweep, here, monkeypatch):
    """A GPU's winner was scored on the processor, with settings of nobody's asking."""
    seen, was = [], Run.__init__

    def noted(self, *args, **kwargs):
        was(self, *args, **kwargs)
        seen.append((self.device, self.kernels))

    monkeypatch.setattr(Run, "__init__", noted)
    monkeypatch.setattr("lmlab.decisions.choose_device", lambda accelerator: f"meta, for {accelerator}")
    monkeypatch.setattr(Run, "evaluate", lambda *_: Likelihood(1.0, 1, 1, 1, 1))
    command = ["optimizer.lr=1e-3,1e-1", "kernels=plain", "floors=false"]
    assert sweep(*command, "trainer=auto") == 0
    assert sweep(*command, "trainer=cpu", "sweep_dir=t") == 0
    assert seen == [("meta, for auto", "plain"), ("meta, for cpu", "plain")]


def test_whoever_wants_no_floors_gets_none(sweep, here):
    assert sweep("optimizer.lr=1e-3,1e-1", "floors=false", "test=false") == 0
    for path in here.glob("s/trials/*/results.json"):
        assert "floors" not in RunDirectory(path.parent).results()


def test_a_winner_of_a_class_of_the_users_own_is_measured_like_any(sweep, here, monkeypatch):
    (here / "own_models.py").write_text("from lmlab.models.lstm import LSTMLM\n\n\nclass OwnLM(LSTMLM):\n    pass\n")
    monkeypatch.syspath_prepend(str(here))
    assert sweep("model._target_=own_models.OwnLM", "seed=1,2") == 0
    for path in here.glob("s/trials/*/results.json"):
        assert {"val", "test"} == RunDirectory(path.parent).results()["floors"]["unigram"].keys()
    sys.modules.pop("own_models")


def test_the_winner_can_be_trained_longer(sweep, here):
    assert sweep("optimizer.lr=1e-3,1e-1", "test=false") == 0
    (won,) = here.glob("s/trials/lr=0.1_*")
    longer = ["optimizer.lr=0.1", "test=false", "floors=false", f"run_dir={won}"]
    assert main(["train", *TINY, *longer, "trainer.max_steps=12"]) == 0
    assert RunDirectory(won).results()["training"]["steps"] == 12
    assert (won / "train.log").read_text().count("continuing after step 9") == 1


@pytest.mark.parametrize(
    ("keep", "stay"),
    [("best", {"won", "pruned", "failed", "its other"}), ("none", {"won", "failed"}), ("all", None)],
)
def test_checkpoints_stay_of_the_winner_and_of_what_may_yet_win(tmp_path, keep, stay):
    """Four points; of the last one, a second replicate has failed."""
    told = [("won", "done", 1.0), ("lost", "done", 2.0), ("pruned", "pruned", None), ("its other", "done", 0.5)]
    with Ledger(tmp_path / "ledger.sqlite", create=True) as ledger:
        for point, (name, status, value) in enumerate([*told, ("failed", "failed", None)]):
            if name != "failed":
                ledger.add_point({}, [], {}, [0] if name != "its other" else [0, 1])
            values = None if value is None else json.dumps({"val/bpb": value})
            ledger.set(point + 1, status=status, values_=values, run_dir=f"trials/{name}", name=name)
            for kind in ("best", "last"):
                path = tmp_path / f"trials/{name}/checkpoints/{kind}.ckpt"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
        Tidy(replace(ASKED, keep=keep), ledger, tmp_path).update(last=True)
    left = [path.parts[-3] for path in tmp_path.rglob("*.ckpt")]
    assert sorted(left) == sorted(2 * list(stay or {*(name for name, *_ in told), "failed"}))


@pytest.mark.parametrize(
    ("loser", "why"),
    [("../mine", "no trial's directory"), ("trials/../../mine", "no trial's"), ("trials/..", "no trial's"), (None, "")],
)
def test_tidying_up_removes_nothing_outside_the_sweep(tmp_path, loser, why):
    """A stranger's ledger names a run of ours as the loser's directory, or has a link to it there."""
    mine = tmp_path / "mine/checkpoints/best.ckpt"
    mine.parent.mkdir(parents=True)
    mine.touch()
    (tmp_path / "s/trials").mkdir(parents=True)
    (tmp_path / "s/trials/lost").symlink_to(tmp_path / "mine")
    with Ledger(tmp_path / "s/ledger.sqlite", create=True) as ledger:
        for n, run_dir in enumerate(("trials/won", loser or "trials/lost"), 1):
            ledger.add_point({}, [], {}, [0])
            ledger.set(n, run_dir=run_dir)
            ledger.finish(n, {"val/bpb": float(n)}, 9)
        tidy = Tidy(replace(ASKED, keep="best"), ledger, tmp_path / "s")
        with pytest.raises(ValueError, match=why) if loser else nullcontext():
            tidy.update(last=True)
    assert mine.exists()


@pytest.mark.parametrize(
    ("directions", "expected"),
    [
        # By hand: (2, 3) and (1, 4) are each better in one; (2, 4) is worse than both, (3, 3) than the first.
        (("minimize", "minimize"), [0, 1]),
        (("minimize", "maximize"), [1]),
        (("maximize", "minimize"), [3]),
        (("maximize", "maximize"), [2, 3]),
        # One objective.
        (("minimize",), [1]),
        (("maximize",), [3]),
    ],
)
def test_the_best_are_those_that_nobody_beats_in_everything(tmp_path, directions, expected):
    values = [(2.0, 3.0), (1.0, 4.0), (2.0, 4.0), (3.0, 3.0)]
    objective = [{"metric": name, "direction": one} for name, one in zip("ab", directions, strict=False)]
    with Ledger(tmp_path / "ledger.sqlite", create=True) as ledger:
        for point, pair in enumerate([*values, (0.0, 9.0)]):
            ledger.add_point({}, [], {}, [0])
            # The last one, which would be on most of these fronts, has not finished.
            status = "done" if point < len(values) else "running"
            ledger.set(point + 1, status=status, values_=json.dumps(dict(zip("ab", pair, strict=True))))
        assert front(replace(ASKED, objective=objective), ledger) == expected


def test_of_equal_points_all_are_on_the_front(tmp_path):
    objective = [{"metric": name, "direction": "minimize"} for name in "ab"]
    with Ledger(tmp_path / "ledger.sqlite", create=True) as ledger:
        for point in range(2):
            ledger.add_point({}, [], {}, [0])
            ledger.set(point + 1, status="done", values_=json.dumps({"a": 1.0, "b": 1.0}))
        assert front(replace(ASKED, objective=objective), ledger) == [0, 1]
        assert front(replace(ASKED, objective=objective[:1]), ledger) == [0]


def test_a_sweep_of_two_objectives_keeps_its_front_and_scores_nobody_on_test(sweep, here, capsys):
    """Of few steps, width costs parameters and gains bits; a rate of nearly 0 costs bits and gains nothing."""
    points = 'points=[["model.d_model=4"],["model.d_model=12"],["model.d_model=12","optimizer.lr=1e-6"]]'
    command = ["optimizer.lr=1e-1", "strategy=list", points, "objective=[val/bpb,parameters]"]
    assert sweep(*command) == 0
    told = capsys.readouterr().out
    assert [line.split("  ")[1] for line in told.splitlines() if line.startswith("best: ")] == [
        "model.d_model=4",
        "model.d_model=12",
    ]
    trials = {path.name.partition("_seed")[0]: path for path in here.glob("s/trials/*")}
    small, wide, lost = trials["d_model=4"], trials["d_model=12"], trials["d_model=12_lr=1e-6"]
    assert {path.parents[1] for path in here.rglob("best.ckpt")} == {small, wide}
    for path in (small, wide, lost):
        results = RunDirectory(path).results()
        assert set(results["splits"]) == {"val"}
        assert ("floors" in results) == (path != lost)
    assert sweep("seed=1,2", "sweep_dir=t") == 0
    capsys.readouterr()
    assert main(["compare", "s", "t"]) == 2
    names = f"s/trials/{small.name}, s/trials/{wide.name}"
    assert capsys.readouterr().err == (
        f"lmlab: s has several objectives and no one winner; name a run of its front: {names}\n"
    )


BPB, SECONDS = ({"metric": name, "direction": "minimize"} for name in ("val/bpb", "seconds"))
# (val/bpb, protocol) of points of two replicates each.
TOLD = [((2.0, 2.2), "carried-16"), ((1.9, 2.1), "carried-16"), ((1.5, 1.7), "sliding-32/16"), ((1.6, 1.8), None)]


def asked(*objective: dict, strategy: str = "grid", rule: str = "none") -> Asked:
    return replace(ASKED, objective=list(objective), strategy=strategy, pruning={"rule": rule}, keep="best")


@pytest.fixture
def ledger(tmp_path):
    """Three points under two protocols, and one of a ledger that was begun before it had them."""
    with Ledger(tmp_path / "ledger.sqlite", create=True) as ledger:
        for number, (values, protocol) in enumerate(TOLD):
            ledger.add_point({}, [f"x={number}"], {}, [0, 1])
            for trial, value in zip(ledger.by_point()[number], values, strict=True):
                results = {"val/bpb": value, "seconds": 10.0 - number}
                ledger.finish(trial["id"], results | ({"protocol": protocol} if protocol else {}), steps=9)
                ledger.set(trial["id"], run_dir=f"trials/{number}-{trial['seed']}")
        yield ledger


def test_points_compete_with_those_of_their_protocol_alone(ledger):
    found = finished(asked(BPB), ledger)
    assert {name: list(values) for name, values in found.items()} == {
        "carried-16": [0, 1],
        "sliding-32/16": [2],
        "recorded before protocols had names": [3],
    }
    assert best(asked(BPB), found["carried-16"]) == [1]
    assert winners(asked(BPB), ledger) == {1, 2, 3}
    assert winners(asked(SECONDS), ledger) == {3}, "seconds are the same under each"
    assert winners(asked(BPB, SECONDS), ledger) == {1, 2, 3}


def test_a_sweep_under_several_protocols_names_no_winner_and_says_what_makes_them_one(ledger):
    (what, why), *lines = leaders(asked(BPB), ledger)
    assert what == "no winner"
    assert why.startswith("3 protocols, whose numbers are not comparable: carried-16, sliding-32/16, recorded")
    assert "evaluation=sliding evaluation.max_context=N puts all under one" in why
    assert lines[:2] == [
        ("best under carried-16", "val/bpb 2.0000  x=1"),
        ("best under sliding-32/16", "val/bpb 1.6000  x=2"),
    ]
    assert leaders(asked(SECONDS), ledger) == [("best", "seconds 7.0000  x=3")]


def test_what_compared_protocols_while_the_sweep_ran_is_said(ledger):
    (_, why), *_ = leaders(asked(BPB, strategy="tpe", rule="asha"), ledger)
    assert why.endswith("(strategy=tpe and pruning.rule=asha compared them all the same)")
    (_, why), *_ = leaders(asked(BPB, strategy="random"), ledger)
    assert "all the same" not in why


def test_the_best_of_each_protocol_keeps_its_checkpoints(ledger, tmp_path):
    for row in ledger.trials():
        folder = tmp_path / row["run_dir"] / "checkpoints"
        folder.mkdir(parents=True)
        for name in ("best.ckpt", "last.ckpt"):
            (folder / name).touch()
    Tidy(asked(BPB), ledger, tmp_path).update(last=True)
    kept = sorted(path.relative_to(tmp_path / "trials").parts for path in tmp_path.rglob("*.ckpt"))
    assert {name for name, *_ in kept} == {f"{point}-{seed}" for point in (1, 2, 3) for seed in (0, 1)}
