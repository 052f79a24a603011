"""The page: everything in one file, nothing of a run's text is markup, and what it says is what the runs say."""

import json
import re
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace

import pytest
from tests.benchmarks.many_runs import make
from tests.sweeps.test_pruning import ASKED

from lmlab import report, runs
from lmlab.report.gather import gather, objectives
from lmlab.run_directory import RunDirectory
from lmlab.runs import table
from lmlab.runs.replicates import OPEN
from lmlab.sweeps.asked import Asked
from lmlab.sweeps.ending import winners
from lmlab.sweeps.ledger import Ledger

HOSTILE = "</script><script>alert(1)</script><!-- & 明月几时有 \u2028 \ud800 [[data]] [[style.css]]"


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    root = tmp_path_factory.mktemp("many")
    make(root / "runs", 60, sample=HOSTILE.replace("\ud800", ""))
    return root / "runs"


@pytest.fixture(scope="module")
def told(many):
    return alone(many)


def alone(root) -> dict:
    """What a report says of runs under one protocol."""
    found = gather(root)
    (part,) = found.pop("parts")
    return found | part


def data(page: str) -> dict:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


def test_the_page_needs_nothing_from_outside(many):
    page = report.write(many).read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)\s*=\s*["']?(?!#)|@import|url\(|fetch\(|XMLHttpRequest|import\(""", page)
    assert "default-src 'none'" in page
    (address,) = set(re.findall(r"https?://[^\s\"']+", page)) or {None}
    assert address in (None, "http://www.w3.org/2000/svg")
    assert not re.search(r"\[\[\w+\.(css|js)\]\]", page.split('id="data"')[0] + page.split("</script>")[-2])
    assert not list(many.glob("*.tmp"))


def test_no_text_of_a_run_is_markup(tmp_path):
    told = {"title": HOSTILE, "runs": [{"run": HOSTILE, "reason": HOSTILE}], "samples": [HOSTILE]}
    page = report.render(told)
    assert page.count("</script>") == report.render({}).count("</script>") == 2
    assert "alert(1)</script>" not in page
    assert "<!--" not in page
    readable = HOSTILE.replace("\ud800", "?")
    assert data(page) == {"title": readable, "runs": [{"run": readable, "reason": readable}], "samples": [readable]}


def test_nothing_is_set_as_markup_by_the_scripts():
    scripts = "".join(path.read_text(encoding="utf-8") for path in report.PAGE.glob("*.js"))
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", scripts)


def test_the_leaderboard_is_the_table_s(many, told):
    found = runs.replicates(table(many))
    assert [g["mean"] for g in told["groups"]] == pytest.approx(found["mean"].tolist())
    assert [g["n"] for g in told["groups"]] == found["n"].tolist()
    assert [g["low"] for g in told["groups"]] == pytest.approx(found["low"].tolist())
    names = [p["name"] for p in told["params"]]
    assert sorted(names) == ["model.d_model", "model.dropout", "optimizer.lr"]
    best = told["groups"][0]
    assert best["values"][names.index("optimizer.lr")] == found["optimizer.lr"][0]
    scores = [told["runs"][i]["score"] for i in best["runs"]]
    assert told["runs"][told["best"]]["score"] == min(scores)
    assert told["samples"][0].startswith("</script>")


def test_a_run_trained_twice_is_one_replicate(tmp_path):
    make(tmp_path, 2, replicates=2)
    for path in sorted(tmp_path.iterdir()):
        shutil.copytree(path, tmp_path / f"again_{path.name}")
    (group,) = alone(tmp_path)["groups"]
    assert (group["n"], len(group["runs"])) == (2, 4)
    first, second = (run["score"] for run in alone(tmp_path)["runs"][2:])
    assert group["mean"] == pytest.approx((first + second) / 2)
    # t(0.95, 1) = 12.706; the standard error of two is half of what they differ by.
    assert group["high"] - group["mean"] == pytest.approx(12.7062 * abs(first - second) / 2, rel=1e-5)


def test_what_made_the_numbers_is_what_matters(told):
    """lr moves them by up to 0.7, the width by 0.12, dropout not at all."""
    shares = dict(told["importance"]["values"])
    assert sum(shares.values()) + told["importance"]["together"] == pytest.approx(1)
    assert shares["optimizer.lr"] > 0.6
    assert next(p for p in told["params"] if p["name"] == "optimizer.lr")["log"]


def test_runs_without_a_result_say_why(told):
    failed = [run for run in told["runs"] if run["state"] == "failed"]
    assert [run["reason"] for run in failed] == ["TrainingFailed: the loss is no longer finite"] * 2
    assert all("score" not in run for run in failed)


def test_curves_are_thinned_and_keep_their_ends(many, monkeypatch):
    monkeypatch.setattr("lmlab.report.gather.POINTS", 0)
    monkeypatch.setattr("lmlab.report.gather.max", lambda a, b: 4 if a == 12 else max(a, b), raising=False)
    told = gather(many)["curves"]
    assert {len(values) for values in told["values"]} == {3, 4}
    assert told["tokens"][0][0] == 40 * 2048
    assert told["tokens"][0][-1] == 400 * 2048


def test_more_is_better_where_a_sweep_says_so(tmp_path):
    make(tmp_path / "trials", 9)
    (tmp_path / "sweep.yaml").write_text("objective:\n- {metric: seconds, direction: maximize}\n- {metric: val/bpb}\n")
    assert objectives(tmp_path) == {}, "damaged: one objective has no direction"
    (tmp_path / "sweep.yaml").write_text("objective:\n- {metric: seconds, direction: maximize}\n")
    told = alone(tmp_path)
    means = [g["mean"] for g in told["groups"]]
    assert told["metric"] == {"name": "seconds", "higher": True}
    assert means == sorted(means, reverse=True)


def sweep(root, *objective: dict, without: tuple[int, ...] = ()) -> Asked:
    """Six points of two seeds, finished but for some trials; each has become faster and larger than the one before."""
    make(root / "trials", 12, replicates=2)
    asked = replace(ASKED, objective=list(objective), replicates=2, seeds=[0, 1])
    asked.save(root)
    with Ledger(root / "ledger.sqlite", create=True) as ledger:
        for n, path in enumerate(sorted((root / "trials").iterdir())):
            if n % 2 == 0:
                ledger.add_point({}, [f"x={n}"], {}, [0, 1])
            ledger.set(n + 1, run_dir=f"trials/{path.name}")
            told = {"val/bpb": RunDirectory(path).results()["splits"]["val"]["bpb"], "perf/memory_gb": 5 + n // 2}
            ledger.finish(n + 1, told | {"perf/tokens_per_s": 100.0 + n // 2, "own/score": 1.0 * n}, 9)
            if n in without:
                ledger.set(n + 1, status="failed", reason="the loss is no longer finite", values_=None)
                (path / "results.json").unlink()
    return asked


def won(root, asked: Asked) -> set[str]:
    """The runs of the sweep's own winners."""
    with Ledger(root / "ledger.sqlite") as ledger:
        chosen = winners(asked, ledger)
        return {row["run_dir"] for row in ledger.trials() if row["point"] in chosen}


BPB = {"metric": "val/bpb", "direction": "minimize"}


def test_the_best_of_a_sweep_is_its_winner_though_a_better_one_lacks_a_seed(tmp_path):
    sweep(tmp_path / "whole", BPB)
    told = alone(tmp_path / "whole")
    good, bad = sorted(told["groups"][0]["runs"], key=lambda i: told["runs"][i]["score"])
    asked = sweep(tmp_path / "s", BPB, without=(bad,))
    told = alone(tmp_path / "s")
    *others, last = told["groups"]
    assert {told["runs"][i]["run"] for i in others[0]["runs"]} == won(tmp_path / "s", asked)
    assert told["best"] in others[0]["runs"]
    assert (last["lacking"], last["seeds"], last["n"], last["runs"]) == (["failed"], 2, 1, [good])
    assert last["mean"] < others[0]["mean"]
    assert not any(group["lacking"] for group in others)
    # With the first sweep beside it, that seed is there.
    groups = alone(tmp_path)["groups"]
    assert [(g["lacking"], g["n"], g["seeds"]) for g in groups] == [([], 2, 2)] * 6


def test_of_several_objectives_there_is_the_sweep_s_front_and_nobody_is_the_best(tmp_path):
    memory = {"metric": "perf/memory_gb", "direction": "minimize"}
    asked = sweep(tmp_path, BPB, memory, without=(1,))
    told = alone(tmp_path)
    assert not {"best", "command", "samples"} & set(told)
    assert told["objectives"] == [{"name": "val/bpb", "higher": False}, {"name": "perf/memory_gb", "higher": False}]
    on = {told["runs"][i]["run"] for g in told["groups"] if g["front"] for i in g["runs"]}
    assert on == won(tmp_path, asked)
    assert 2 < len(on) < 12
    for group in told["groups"]:
        assert group["objectives"] == [pytest.approx(group["mean"]), 5 + group["runs"][0] // 2]
    names = [p["name"] for p in told["params"]]
    assert sorted(names) == ["model.d_model", "model.dropout", "optimizer.lr"], "what is chosen by is no parameter"
    (one,) = gather(tmp_path, "perf/memory_gb")["parts"]
    assert one["best"] == 2, "the best by what was asked for, of those that lack no seed"


@pytest.mark.parametrize("metric", ["own/score", "perf/tokens_per_s"])
def test_which_way_is_better_is_known_above_the_sweep_and_of_what_every_run_logs(tmp_path, metric):
    sweep(tmp_path / "s", {"metric": metric, "direction": "maximize"})
    for root in (tmp_path / "s", tmp_path):
        told = gather(root, metric)
        means = [g["mean"] for g in told["parts"][0]["groups"]]
        assert told["metric"] == {"name": metric, "higher": True}
        assert means == sorted(means, reverse=True)
        # Curves are of another metric, of which less is better.
        assert (told["curves"]["name"], told["curves"]["higher"]) == ("val/bpb", False)


def test_any_runs_make_a_report(trained, tmp_path):
    """Of three families, one of them counted; and of runs that nobody finished."""
    told = gather(trained["lstm"].parent)
    assert sum(len(part["groups"]) for part in told["parts"]) == 3
    assert told["curves"]["values"][1] == [], "an n-gram has no curve"
    shutil.copytree(trained["lstm"], tmp_path / "open")
    (tmp_path / "open/results.json").unlink()
    told = alone(tmp_path)
    assert told["metric"]["name"] == "val/bpb_best"
    assert len(told["groups"]) == 1


def test_protocols_stand_apart_each_with_its_own_leaderboard_and_best(tmp_path):
    make(tmp_path, 12, replicates=2)
    for i, path in enumerate(sorted(tmp_path.glob("*/results.json"))):
        name = "carried-16" if i < 4 else "sliding-32/16"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"protocol": {"name": name}}))
    told = gather(tmp_path)
    assert told["apart"].startswith("2 protocols, whose numbers are not comparable: carried-16, sliding-32/16; ")
    assert "evaluation=sliding" in told["apart"]
    assert "best" not in told
    carried, sliding = told["parts"]
    assert [part["protocol"] for part in told["parts"]] == ["carried-16", "sliding-32/16"]
    assert (carried["members"], sliding["members"]) == ([0, 1, 2, 3], list(range(4, 12)))
    for part in (carried, sliding):
        found = runs.replicates(table(tmp_path).iloc[part["members"]])
        assert [g["mean"] for g in part["groups"]] == pytest.approx(found["mean"].tolist())
        assert part["best"] in part["groups"][0]["runs"]
        assert "protocol" not in [p["name"] for p in part["params"]]
        lr = [p["name"] for p in part["params"]].index("optimizer.lr")
        assert [g["values"][lr] for g in part["groups"]] == found["optimizer.lr"].tolist()
    assert gather(tmp_path / sorted(tmp_path.iterdir())[0].name)["apart"] == ""


def test_of_runs_that_all_failed_the_reasons_are_left(tmp_path):
    make(tmp_path, 25)
    for path in sorted(tmp_path.iterdir())[:24]:
        shutil.rmtree(path)
    (curve,) = tmp_path.glob("*/curves.csv")
    curve.unlink()
    told = alone(tmp_path)
    assert told["groups"] == []
    assert told["runs"][0]["reason"] == "TrainingFailed: the loss is no longer finite"
    assert len(report.render(told)) > 1000


def test_of_a_sweep_that_left_no_directory_the_reasons_are_left(tmp_path):
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as database:
        database.execute(
            "CREATE TABLE trials (id INTEGER, point INTEGER, status TEXT, reason TEXT, seed INTEGER, run_dir, values_)"
        )
        database.execute("INSERT INTO trials VALUES (1, 0, 'failed', 'no such corpus', 0, NULL, NULL)")
        database.commit()
    assert report.leave(tmp_path)[0].exists()
    told = alone(tmp_path)
    assert told["groups"] == []
    assert told["runs"][0]["reason"] == "no such corpus"


def test_of_runs_none_of_which_can_be_read_the_reasons_are_left(tmp_path):
    make(tmp_path, 2)
    for path in tmp_path.glob("*/asked.yaml"):
        path.write_text("[1, 2")
    assert report.leave(tmp_path)[0].exists()
    told = alone(tmp_path)
    assert told["groups"] == []
    assert all("asked.yaml is damaged" in run["state"] for run in told["runs"])


def test_tables_come_beside_the_page_wherever_that_is(many, tmp_path):
    """A colleague's directory may not be ours to write into."""
    before = sorted(many.iterdir())
    written = report.leave(many, out=tmp_path / "page.html")
    assert {path.parent for path in written} == {tmp_path}
    assert len(runs.table(many)) == len((tmp_path / "trials.csv").read_text().splitlines()) - 1
    assert sorted(many.iterdir()) == before


def test_an_interrupted_seed_is_no_replicate(tmp_path):
    make(tmp_path, 6)
    best, other = alone(tmp_path)["groups"]
    path = sorted(tmp_path.glob("*/results.json"))[best["runs"][2]]
    told = json.loads(path.read_text())
    # Ctrl-C after a tenth: what it had learnt by then is measured on all of val.
    told["training"]["stopped_because"], told["splits"]["val"]["bpb"] = "interrupted", 3.2
    RunDirectory(path.parent).write_json("results.json", told)
    first, second = alone(tmp_path)["groups"]
    assert (first["runs"], first["lacking"]) == (other["runs"], [])
    assert (second["n"], second["seeds"], second["lacking"]) == (2, 3, ["interrupted"])
    assert second["mean"] < best["mean"] + 0.1
    # It is the better one still, but nothing is known of its third seed.
    assert runs.replicates(table(tmp_path))["n"].tolist() == [2, 3]


def test_a_run_that_has_not_come_to_its_end_is_never_the_best(tmp_path):
    """One that died after a third of its steps took the fewest seconds of all."""
    make(tmp_path, 25, replicates=1)
    first, *_, last = sorted(tmp_path.iterdir())

    def ranked(state: str) -> None:
        told = gather(tmp_path, "seconds")
        groups = told["parts"][0]["groups"]
        assert told["runs"][groups[-1]["runs"][0]]["run"] == last.name
        assert [group["lacking"] for group in groups] == [[]] * 24 + [[state]]
        assert groups[-1]["mean"] < groups[0]["mean"]

    ranked("failed")
    (last / "train.log").unlink()
    ranked("unfinished")
    results = json.loads((first / "results.json").read_text())
    results["training"] |= {"stopped_because": "pruned", "seconds": 1.0}
    RunDirectory(last).write_json("results.json", results | {"splits": {}})
    ranked("pruned")


def test_the_page_has_words_for_every_state_that_is_no_end():
    (ways,) = re.findall(r"const WAYS = {(.*?)}", (report.PAGE / "sections.js").read_text(encoding="utf-8"))
    assert set(re.findall(r"(\w+):", ways)) == set(OPEN)


def test_nothing_to_report_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="no runs under"):
        report.write(tmp_path)
    make(tmp_path, 1)
    with pytest.raises(ValueError, match="metric=val/bbp"):
        report.write(tmp_path, "val/bbp")
    with pytest.raises(FileNotFoundError, match=r"root=.*nope is no directory"):
        report.write(tmp_path / "nope")
    with pytest.raises(FileNotFoundError, match="is in no directory"):
        report.write(tmp_path, out=tmp_path / "a/b.html")
    with pytest.raises(IsADirectoryError, match="name a file: out="):
        report.write(tmp_path, out=tmp_path)
