"""lmlab sweep from its command line: continued, extended, refused; with its one worker in this process."""

import json
import shutil
import sys
from dataclasses import replace

import pytest
import yaml
from tests.sweeps.conftest import TINY
from tests.sweeps.test_pruning import ASKED

from lmlab.sweeps.asked import load
from lmlab.sweeps.ledger import Ledger
from lmlab.sweeps.objective import METRICS
from lmlab.sweeps.sweeper import split


def table(here, *columns: str) -> list[tuple]:
    with Ledger(here / "s/ledger.sqlite") as ledger:
        return [tuple(row[c] for c in columns) for row in ledger.trials()]


@pytest.mark.slow
def test_the_same_command_again_trains_nothing_and_more_trials_go_on(sweep, here, capsys):
    command = ["optimizer.lr=interval(1e-3,1e-1)", "strategy=random"]
    assert sweep(*command, "trials=2") == 0
    before = table(here, "name", "status", "values_", "started")
    files = {p: p.stat().st_mtime_ns for p in (here / "s/trials").rglob("results.json")}
    assert [row[1] for row in before] == ["done", "done"]
    assert sweep(*command, "trials=2") == 0
    assert table(here, "name", "status", "values_", "started") == before
    assert {p: p.stat().st_mtime_ns for p in (here / "s/trials").rglob("results.json")} == files
    assert sweep(*command, "trials=3") == 0
    assert table(here, "name", "status", "values_", "started")[:2] == before
    assert len(table(here, "name")) == 3
    assert sweep(*command, "trials=2") == 2
    assert "trials=2 is below the 3" in capsys.readouterr().err
    # A ledger that is lost is made again from the runs.
    for path in (here / "s").glob("ledger.sqlite*"):
        path.unlink()
    assert sweep(*command, "trials=3") == 0
    assert [row[:3] for row in table(here, "name", "status", "values_")][:2] == [row[:3] for row in before]


def test_workers_that_were_stopped_elsewhere_leave_an_interrupted_sweep(sweep, here, capsys, untrained, monkeypatch):
    """A launcher's job whose time is up ends well, as Hydra sees it."""
    from lmlab.sweeps.crew import LocalCrew
    from lmlab.sweeps.worker import Worker

    def stopped(self, ledger, look):
        worker = Worker(self.directory, "0")
        worker.trial(worker.draw())
        worker.ledger.close()
        return False

    work, command = LocalCrew.run, ["optimizer.lr=1e-1,1e-2,1e-3", "test=false"]
    monkeypatch.setattr(LocalCrew, "run", stopped)
    assert sweep(*command) == 130
    assert "the workers were stopped with 2 trials left" in capsys.readouterr().err
    monkeypatch.setattr(LocalCrew, "run", work)
    assert sweep(*command) == 0


def test_a_sweep_of_all_its_points_does_not_shrink_to_some(sweep, here, capsys, untrained):
    command = ["optimizer.lr=1e-1,1e-2,1e-3", "test=false"]
    assert sweep(*command) == 0
    assert sweep(*command, "trials=2") == 2
    assert "trials=2 is below the 3 of s" in capsys.readouterr().err
    assert sweep(*command, "trials=20") == 0, "as many as there are"


def test_replicates_differ_in_their_seed_alone_and_their_mean_decides(sweep, here, capsys):
    assert sweep("optimizer.lr=1e-3,1e-1", "replicates=2", "seed=3") == 0
    rows = table(here, "point", "replicate", "seed", "values_")
    assert [row[:3] for row in rows] == [(0, 0, 3), (0, 1, 4), (1, 0, 3), (1, 1, 4)]
    bpb = [json.loads(row[3])["val/bpb"] for row in rows]
    best = min((bpb[0] + bpb[1]) / 2, (bpb[2] + bpb[3]) / 2)
    assert f"best: val/bpb {best:.4f}  optimizer.lr=0.1" in capsys.readouterr().out
    # keep=best: the winner's, of both seeds; test is scored for these alone.
    kept = sorted(p.parts[-3].partition("-")[0] for p in (here / "s/trials").rglob("best.ckpt"))
    assert kept == ["lr=0.1_seed3", "lr=0.1_seed4"]
    assert len(list((here / "s/trials").rglob("*.ckpt"))) == 4
    scored = [p.parent.name for p in (here / "s/trials").rglob("results.json") if '"test"' in p.read_text()]
    assert sorted(name.partition("-")[0] for name in scored) == kept
    asked = yaml.safe_load((here / "s/sweep.yaml").read_text())
    assert asked["space"] == {"optimizer.lr": "1e-3,1e-1"}
    assert asked["replicates"] == 2
    (record,) = (here / "s/trials").glob("lr=0.1_seed4-*/trial.yaml")
    told = yaml.safe_load(record.read_text())
    assert (told["overrides"], told["point"], told["replicate"], told["seed"]) == (["optimizer.lr=0.1"], 1, 1, 4)


def test_a_sweeps_directory_that_is_a_file_is_told_so(sweep, here, capsys, untrained):
    (here / "file").touch()
    assert sweep("optimizer.lr=0.1,0.2", "sweep_dir=file") == 2
    assert "lmlab: sweep_dir=file is a file; name a directory\n" in capsys.readouterr().err


@pytest.mark.slow
def test_several_seeds_are_replicates(sweep, here):
    assert sweep("seed=5,7", "keep=all") == 0
    assert table(here, "point", "seed") == [(0, 5), (0, 7)]
    assert len(list((here / "s/trials").rglob("last.ckpt"))) == 2


def test_conditions_and_a_fixed_list_make_the_points_that_they_say(sweep, here, untrained):
    conf = here / "conf/sweep"
    conf.mkdir(parents=True)
    (conf / "mine.yaml").write_text(
        "# @package hydra.sweeper\nspace:\n  model.cell: choice(gru,lstm)\n  optimizer.weight_decay: choice(0.1,0.2)\n"
        "when:\n  optimizer.weight_decay: model.cell=lstm\noverrides: [floors=false]\n"
    )
    assert sweep("--config-dir", str(here / "conf"), "sweep=mine", "test=false") == 0
    told = [json.loads(row[0]) for row in table(here, "overrides")]
    assert told == [["model.cell=gru"], *(["model.cell=lstm", f"optimizer.weight_decay={p}"] for p in (0.1, 0.2))]
    shutil.rmtree(here / "s")
    points = """points=[["optimizer.lr=1e-2"],["optimizer.lr=1e-3","model.d_model=4"]]"""
    assert sweep("strategy=list", points, "test=false") == 0
    assert [json.loads(row[0])[-1] for row in table(here, "overrides")] == ["optimizer.lr=1e-2", "model.d_model=4"]


@pytest.mark.slow
def test_a_key_with_a_condition_has_its_value_of_overrides_elsewhere(sweep, here, untrained):
    (here / "conf/sweep").mkdir(parents=True)
    (here / "conf/sweep/own.yaml").write_text(
        "# @package hydra.sweeper\nspace:\n  model.cell: choice(lstm,gru)\n  optimizer.lr: choice(0.3)\n"
        "when:\n  optimizer.lr: model.cell=lstm\noverrides: [optimizer.lr=0.2]\n"
    )
    assert sweep("sweep=own", "--config-dir=conf") == 0
    assert [(c.model.cell, c.optimizer.lr) for c in untrained] == [("lstm", 0.3), ("gru", 0.2)]
    untrained.clear()
    # The command line's is everybody's.
    assert sweep("sweep=own", "--config-dir=conf", "optimizer.lr=0.1", "sweep_dir=t") == 0
    assert [(c.model.cell, c.optimizer.lr) for c in untrained] == [("lstm", 0.1), ("gru", 0.1)]


def test_asha_stops_most_trials_and_what_is_promoted_ends_as_if_never_stopped(sweep, here):
    command = ["optimizer.lr=1e-3,1e-2,1e-1", "keep=all", "pruning.first=0.3333"]
    assert sweep(*command, "pruning.rule=asha") == 0
    statuses = dict(table(here, "name", "status"))
    assert sorted(statuses.values()) == ["done", "pruned", "pruned"]
    (best,) = (name for name, status in statuses.items() if status == "done")
    results = {name: json.loads((here / "s/trials" / name / "results.json").read_text()) for name in statuses}
    assert [results[n]["training"]["steps"] for n in statuses] == [9 if n == best else 3 for n in statuses]
    # A run that was stopped keeps its curve, and costs no evaluation.
    assert all(not r["splits"] and r["training"]["history"] for n, r in results.items() if n != best)
    # Promoted later, without starting over: only six more steps of each, and all three as if never pruned.
    assert sweep(*command, "pruning.rule=none") == 0
    promoted = {n: json.loads((here / "s/trials" / n / "results.json").read_text()) for n in statuses}
    shutil.move(here / "s", here / "before")
    assert sweep(*command, "pruning.rule=none") == 0
    for name in statuses:
        whole = json.loads((here / "s/trials" / name / "results.json").read_text())
        assert whole["splits"]["val"] == promoted[name]["splits"]["val"]
        assert whole["training"]["history"] == promoted[name]["training"]["history"]
        log = (here / "before/trials" / name / "train.log").read_text()
        assert log.count("continuing after step 3") == 1


@pytest.mark.parametrize(("first", "rung"), [(0.4, 4), (0.3333, 3)])
def test_a_trial_that_begins_at_its_rung_is_ranked_by_what_was_measured_there(sweep, here, first, rung):
    """The first point drawn twice, and all of them by a ledger that was lost.

    The rung lies between validations, which a run that goes on forgets; or at one, and nothing has the run's end.
    """
    points = 'points=[["optimizer.lr=1e-3"],["optimizer.lr=1e-3"],["optimizer.lr=1e-2"],["optimizer.lr=1e-1"]]'
    command = ["strategy=list", points, "keep=all", "pruning.rule=asha", f"pruning.first={first}", "test=false"]
    assert sweep(*command) == 0
    with Ledger(here / "s/ledger.sqlite") as ledger:
        reports, rows = ledger.reports(), {row["id"]: row for row in ledger.trials()}
    assert rows[1]["run_dir"] == rows[2]["run_dir"]
    assert reports[1] == reports[2]
    assert {max(step for step in told if step < 6) for told in reports.values()} == {rung}
    assert sorted(row["status"] for row in rows.values()) == ["done", "pruned", "pruned", "pruned"]
    assert "continuing after" not in (here / "s/trials" / rows[1]["name"] / "train.log").read_text()
    for path in (here / "s").glob("ledger.sqlite*"):
        path.unlink()
    if rung == 3:
        for row in rows.values():
            if row["status"] == "pruned":
                (here / "s/trials" / row["name"] / "results.json").unlink(missing_ok=True)
    assert sweep(*command) == 0
    with Ledger(here / "s/ledger.sqlite") as ledger:
        again = ledger.reports()
        assert [row["status"] for row in ledger.trials()] == [row["status"] for row in rows.values()]
    pruned = [n for n, row in rows.items() if row["status"] == "pruned"]
    assert [again[n] for n in pruned] == [reports[n] for n in pruned]
    # None has taken a step.
    ends = {n: json.loads((here / "s/trials" / rows[n]["name"] / "results.json").read_text()) for n in pruned}
    assert {told["training"]["steps"] for told in ends.values()} == {rung}


def test_whatever_a_run_logs_can_be_the_objective(sweep, here, capsys):
    """What ours log, and what a callback of the user's own does, which is known from the first trial on."""
    (here / "own.py").write_text(
        "from lightning.pytorch.callbacks import Callback\n\n\nclass Own(Callback):\n"
        "    def on_validation_end(self, trainer, pl_module):\n"
        "        pl_module.write({'own/distance': abs(pl_module.step - 4)})\n"
    )
    own = ["+callbacks.own={_target_: own.Own}", "trainer.max_steps=3,6,9", "test=false"]
    asked = ["objective=[{metric: own/distance, direction: minimize}]"]
    sys.path.insert(0, str(here))
    try:
        assert sweep(*own, *asked) == 0
        assert "best: own/distance 2.0000  trainer.max_steps=6" not in (told := capsys.readouterr().out)
        assert "best: own/distance 1.0000  trainer.max_steps=3" in told
        assert sweep(*own[:1], "optimizer.lr=1e-3", "objective=own/distance", "seed=1,2", "sweep_dir=t") == 2
        assert "own/distance is none of ours" in capsys.readouterr().err
    finally:
        sys.path.remove(str(here))
    for metric in ("perf/tokens_per_s", "train/loss", "seconds", "val/gap"):
        with Ledger(here / "s/ledger.sqlite") as ledger:
            assert metric in json.loads(ledger.trials("done")[0]["values_"])
    # All that is said to be logged is, where the machine's peak was measured and its energy may be read.
    with Ledger(here / "s/ledger.sqlite") as ledger:
        assert set(METRICS) - set(json.loads(ledger.trials("done")[0]["values_"])) <= {"perf/mfu", "perf/energy_j"}


def test_a_search_over_protocols_is_refused_before_there_is_a_directory(sweep, here, capsys):
    assert sweep("evaluation.lanes=2,4", "strategy=tpe", "trials=3") == 2
    assert "keep protocols apart with strategy=grid, list or random" in capsys.readouterr().err
    assert not (here / "s").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["strategy=tpe", "trials=1"], "strategy=tpe will compare all trials, but there are 2 protocols"),
        (["pruning.rule=asha"], "pruning.rule=asha will compare all trials, but there are 2 protocols"),
        (["strategy=random", "trials=1"], None),
        (["pruning.rule=asha", "evaluation=sliding", "evaluation.max_context=16"], None),
    ],
)
def test_families_that_are_measured_differently_are_named_before_anything_compares_them(
    sweep, here, capsys, untrained, words, said
):
    assert sweep("model=lstm,transformer", "model.d_model=6", *words) == 0
    told = capsys.readouterr().err
    assert ("compare all trials" in told) == (said is not None)
    if said:
        assert f"{said}, whose numbers are not comparable: carried-16, sliding-16/8; evaluation=sliding" in told


def test_a_sweep_over_protocols_ends_well_and_has_no_winner(sweep, here, capsys):
    assert sweep("evaluation.lanes=2,4", "trainer.max_steps=3") == 0
    told = capsys.readouterr().out
    assert "no winner: 2 protocols, whose numbers are not comparable: carried-2, carried-4; " in told
    assert "\nbest: " not in told
    assert [line.partition(":")[0] for line in told.splitlines() if line.startswith("best")] == [
        "best under carried-2",
        "best under carried-4",
    ]
    scored = [path for path in (here / "s/trials").rglob("results.json") if '"test"' in path.read_text()]
    assert len(scored) == 2, "each protocol's best"
    assert "2 protocols, whose numbers are not comparable" in (here / "s/report.html").read_text()


@pytest.mark.parametrize(
    ("words", "written"),
    [([], False), (["callbacks.samples.every_validation=true"], True), (["callbacks.samples=null"], None)],
)
def test_a_trial_writes_its_samples_once_unless_somebody_says_otherwise(here, sweep, untrained, words, written):
    from lmlab.cli import main

    own = [word for word in TINY if not word.startswith("callbacks.samples")]
    assert main(["sweep", *own, "seed=1,2", "test=false", "sweep_dir=s", *words]) == 0
    nodes = [config.callbacks.samples for config in untrained]
    assert [node and node.every_validation for node in nodes] == [written] * 2


@pytest.mark.parametrize(("word", "scored"), [("FALSE", False), ("false", False), ("True", True), ("auto", True)])
def test_whether_the_winner_and_all_are_scored_is_said_in_hydras_words(sweep, here, untrained, word, scored):
    assert sweep("seed=1,2", f"test={word}", "floors=FALSE") == 0
    told = load(here / "s")
    assert (told.test, told.floors) == (scored, False)
    assert {config.test for config in untrained} == {word == "True"}


def test_a_trial_without_the_objective_fails_and_says_what_there_is(sweep, here, capsys, untrained):
    words = ["optimizer.lr=1e-2,1e-3", "objective=val/gap", "test=false"]
    assert sweep(*words) == 2
    assert "objective: metric=val/gap: this run has none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the space is empty"),
        (["optimizer.lr=choice()"], "choice"),
        (["optimizer.lrr=1,2"], "no key 'optimizer.lrr' (did you mean optimizer.lr?)"),
        (["optimizer.lr=1e-2,1e-3", "objective=[{metric: val/accuracy, direction: minimize}]"], "no run logs it"),
        (["optimizer.lr=1e-2,1e-3", "objective=perf/token_per_s"], "it (did you mean perf/tokens_per_s?)"),
        (["optimizer.lr=1e-2,1e-3", "objective=optim/lr"], "which way optim/lr is better has to be said"),
        (["optimizer.lr=1e-2,1e-3", "objective=[{metric: test/bpb, direction: minimize}]"], "for the winner alone"),
        (["optimizer.lr=1e-2,1e-3", "objective=[]"], "nothing to choose by"),
        (["optimizer.lr=1e-2,1e-3", "workers=0"], "workers=0 must be a whole number, at least 1, or auto"),
        (["optimizer.lr=1e-2,1e-3", "replicates=0"], "replicates=0"),
        (["optimizer.lr=1e-2,1e-3", "strategy=tpa"], "strategy=tpa must be one of"),
        (["optimizer.lr=1e-2,1e-3", "strategy=tpe"], "trials=... is needed"),
        (["optimizer.lr=1e-2,1e-3", "strategyy=tpe"], "no key 'strategyy'"),
        (["model.n_layers=tag(log,range(1,9,2))"], "tag(log,...) is of intervals"),
        (["optimizer.lr=interval(0,1)"], "strategy=grid needs values"),
        (["strategy=list"], "points=[] has nothing to run"),
        (
            ["strategy=list", 'points=[["model.d_model=4"]]', "optimizer.lr=1e-2,1e-3"],
            "optimizer.lr has several values",
        ),
        (["strategy=list", 'points=[["seed=5"],["seed=6"]]'], "points: seed=5: seeds are replicates, of every point"),
        (["sweep=none_such"], "no option sweep=none_such"),
        (["strategy=list", "points=3"], "points=3 must be lists of overrides"),
        (["strategy=list", "points=[[1]]"], "points=[[1]] must be lists of overrides"),
        (["optimizer.lr=1e-2,1e-3", "points=null"], "points=None must be lists"),
        (["optimizer.lr=1e-2,1e-3", "overrides=[3]"], "overrides=[3] must be a list, as in"),
        (["optimizer.lr=1e-2,1e-3", "replicates=null"], "replicates=None must be a whole number"),
        (["optimizer.lr=1e-2,1e-3", "objective=[val/bpb,val/bpb]"], "val/bpb is named twice"),
        (["optimizer.lr=1e-2,1e-3", "pruning.rul=asha"], "no key 'pruning.rul' (did you mean pruning.rule?)"),
        (["space={optimizer.lr: 3}"], "space={...} is of files, conf/sweep/NAME.yaml"),
        (["optimizer.lr=1e-2,1e-3", "hydra/launcher=none_such"], "no option hydra/launcher=none_such"),
        (["optimizer.lr=1e-2,1e-3", "test=maybe"], "test=maybe must be one of auto, true, false"),
        (["optimizer.lr=1e-2,1e-3", "dry_run=true"], "dry_run=true trains nothing, a sweep trains"),
        (["-m", "optimizer.lr=1e-2,1e-3"], "lmlab sweep is lmlab train -m already"),
    ],
)
def test_what_cannot_be_meant_is_one_line_and_leaves_nothing(sweep, here, capsys, words, message):
    assert sweep(*words) == 2
    told = capsys.readouterr().err.strip()
    assert message in told
    assert len(told.splitlines()) == 1
    assert [path.name for path in here.iterdir()] == ["t.txt"]


def test_a_sweep_is_not_begun_within_a_run(sweep, here, capsys):
    assert sweep("seed=1,2", "test=false", "floors=false") == 0
    trial = next(here.glob("s/trials/*"))
    before = sorted(trial.iterdir())
    assert sweep("optimizer.lr=1e-2,1e-3", f"sweep_dir={trial}") == 2
    assert f"sweep_dir={trial} is a run; name another directory" in capsys.readouterr().err
    assert sorted(trial.iterdir()) == before


def test_a_directory_of_another_sweep_and_a_damaged_ledger_are_left_as_they_are(sweep, here, capsys, untrained):
    assert sweep("optimizer.lr=1e-2,1e-3", "test=false") == 0
    before = {p: p.read_bytes() for p in (here / "s").rglob("*") if p.is_file()}
    assert sweep("optimizer.lr=1e-2,1e-4") == 2
    assert "s is another sweep (space.optimizer.lr: '1e-2,1e-3' there, '1e-2,1e-4' now)" in capsys.readouterr().err
    assert sweep("optimizer.lr=1e-2,1e-3", "model.d_model=6") == 2
    assert "model.d_model: 8 there, 6 now" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in (here / "s").rglob("*") if p.is_file()} == before
    (here / "s/ledger.sqlite").write_bytes(b"damaged" * 1000)
    before = {p: p.read_bytes() for p in (here / "s").rglob("*") if p.is_file()}
    assert sweep("optimizer.lr=1e-2,1e-3") == 2
    assert "ledger.sqlite is damaged" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in (here / "s").rglob("*") if p.is_file()} == before


def test_what_only_some_points_of_a_list_override_makes_another_sweep(sweep, here, capsys, untrained):
    command = ["strategy=list", 'points=[["optimizer.lr=1e-2"],["model.d_model=6"]]', "test=false"]
    assert sweep(*command, "optimizer.lr=3e-3") == 0
    assert sweep(*command, "optimizer.lr=1e-3") == 2
    assert "s is another sweep (elsewhere.optimizer.lr: '3e-3' there, '1e-3' now)" in capsys.readouterr().err
    # What no point overrides is told of the first; such sweeps are what they were.
    asked = load(here / "s")
    assert asked.identity()["elsewhere"] == {"model.d_model": "8", "optimizer.lr": "3e-3"}
    assert "elsewhere" not in replace(asked, points=[["seed=1"]]).identity()


def test_what_is_speed_alone_makes_no_other_sweep(tmp_path):
    then = replace(ASKED, base={"seed": 0, "validation": {"batch_size": None}})
    then.save(tmp_path)
    replace(then, base={"seed": 0, "validation": {"batch_size": 4}}).check(tmp_path)
    assert replace(then, base={"seed": 0, "validation": {"batch_size": 4}}).digest() == then.digest()
    assert replace(then, base={"seed": 1, "validation": {"batch_size": None}}).digest() != then.digest()
    with pytest.raises(ValueError, match=r"another sweep \(seed: 0 there, 1 now\)"):
        replace(then, base={"seed": 1, "validation": {"batch_size": 4}}).check(tmp_path)


def test_the_last_word_on_a_key_is_the_command_lines():
    fixed, varied = split(["a=1,2", "b=1", "hydra.verbose=true", "sweep=lr", "a=3", "b=1,2", "+c=4"])
    assert fixed == {"a": "a=3", "c": "+c=4"}
    assert varied == {"b": "1,2"}
