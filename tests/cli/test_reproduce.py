"""lmlab reproduce: trained, compared, recorded; resumable, honest about a part, and 0 where a number is missed."""

import json
from pathlib import Path

import pytest
import yaml

from lmlab.cli import main


@pytest.fixture(scope="module")
def own(small, tmp_path_factory):
    """A folder of options with a tiny recipe that has a number, and the words for text and cache."""
    from lmlab.config import compose
    from lmlab.experiment import build_store

    words = small["lstm"]
    store = build_store(compose(words), progress=False)
    folder = tmp_path_factory.mktemp("own")
    (folder / "experiment").mkdir()
    node = {
        "source": "a paper",
        "metric": "bpb",
        "tolerance": 0.1,
        "splits": {
            "val": {"value": 9.0, "tokens": len(store.split("val"))},
            "test": {"value": 0.5, "tokens": len(store.split("test")), "evaluation": {"policy": "carried", "lanes": 1}},
        },
        "protocol": "one lane on test",
        "steps": 20,
        "cost": "seconds",
    }
    (folder / "experiment/tiny.yaml").write_text(
        "# @package _global_\n# Tiny.\n" + yaml.dump({"trainer": {"max_steps": 20}, "published": node})
    )
    bare = {k: v for k, v in node.items() if k != "published"} | {"metric": "luck"}
    (folder / "wrong").mkdir()
    (folder / "wrong/experiment").mkdir()
    (folder / "wrong/experiment/tiny.yaml").write_text("# @package _global_\n" + yaml.dump({"published": bare}))
    return folder, [w for w in words if not w.startswith("trainer.max_steps")]


def reproduce(own, root: Path, *more: str) -> int:
    folder, words = own
    return main(["reproduce", "tiny", "--config-dir", str(folder), *words, f"root={root}", *more])


def test_a_recipe_is_trained_compared_and_recorded(own, tmp_path, capsys):
    # What the text and the sizes change in the recipe is part of the directory's name, here a hash.
    assert reproduce(own, tmp_path, f"run_dir={tmp_path / 'tiny'}") == 0, "a missed number is a result, not a failure"
    shown = capsys.readouterr().out
    record = json.loads((tmp_path / "tiny/reproduction.json").read_text())
    results = json.loads((tmp_path / "tiny/results.json").read_text())
    assert record["splits"]["val"]["verdict"] == "better"
    assert record["splits"]["test"]["verdict"] == "missed"
    assert record["splits"]["val"]["measured"] == results["splits"]["val"]["bpb"]
    assert record["splits"]["val"]["protocol"]["name"] == "carried-16"
    assert record["splits"]["test"]["protocol"]["name"] == "carried-1", "the number's protocol, not the run's"
    assert record["splits"]["test"]["measured"] != results["splits"]["test"]["bpb"]
    assert record["not_whole"] is None
    assert record["forecast"] is None
    assert record["training"]["steps"] == record["training"]["of"] == 20
    for piece in ("measured", "published", "difference", "missed", "better", "a paper", "carried through 1 lanes"):
        assert piece in shown
    assert "20 steps in" in shown
    assert "not as the recipe has it: model.d_model=16" in " ".join(shown.split())
    log = (tmp_path / "tiny/train.log").read_text()
    assert "published val bpb 9.0000 (a paper)" in log
    assert main(["diagnose", f"run_dir={tmp_path / 'tiny'}"]) == 0
    assert "published val bpb 9.0000 (a paper)" in capsys.readouterr().out

    before = (tmp_path / "tiny/checkpoints/best.ckpt").stat().st_mtime_ns
    assert reproduce(own, tmp_path, f"run_dir={tmp_path / 'tiny'}", "format=json") == 0
    assert json.loads(capsys.readouterr().out)["splits"] == record["splits"], "the finished run is taken"
    assert (tmp_path / "tiny/checkpoints/best.ckpt").stat().st_mtime_ns == before

    assert main(["reproduce", "--config-dir", str(own[0]), f"root={tmp_path}"]) == 0
    assert "missed" in capsys.readouterr().out
    assert main(["reproduce", "--config-dir", str(own[0]), f"root={tmp_path}", "format=markdown"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| `tiny`")]
    assert len(rows) == 2
    assert "| val bpb 9.0000 | " in rows[0]


def test_a_number_is_measured_as_the_recipe_says_whatever_the_run_does(own, tmp_path, capsys):
    for name, more in {"own": [], "other": ["evaluation.lanes=4", "evaluation.limit_tokens=100"]}.items():
        assert reproduce(own, tmp_path, f"run_dir={tmp_path / name}", *more) == 0
    one, other = (json.loads((tmp_path / f"{name}/reproduction.json").read_text()) for name in ("own", "other"))
    assert json.loads((tmp_path / "other/results.json").read_text())["protocol"]["name"] == "carried-4-first100"
    assert other["splits"] == one["splits"]
    assert other["splits"]["val"]["protocol"]["name"] == "carried-16"
    assert other["changed"]["evaluation.lanes"] == [16, 4]


def test_a_recipe_of_a_class_of_ones_own_is_measured_as_it_was_trained(own, tmp_path, monkeypatch):
    from lmlab.runs import Run

    code = "from lmlab.models.lstm import LSTMLM\n\n\nclass OwnLM(LSTMLM):\n    pass\n"
    (tmp_path / "reproduced_models.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    kernels, was = [], Run.__init__

    def noted(self, *args, **kwargs):
        was(self, *args, **kwargs)
        kernels.append(self.kernels)

    monkeypatch.setattr(Run, "__init__", noted)
    words = ["model._target_=reproduced_models.OwnLM", "kernels=plain", "trainer.max_steps=1"]
    assert reproduce(own, tmp_path / "runs", *words) == 0
    assert kernels[-1] == "plain"


def test_a_part_is_no_whole_and_says_where_it_leads(own, tmp_path, capsys):
    part = ["trainer.max_steps=10", "trainer.val_check_interval=1"]
    assert reproduce(own, tmp_path, *part) == 0
    shown = " ".join(capsys.readouterr().out.split())
    (path,) = tmp_path.rglob("reproduction.json")
    record = json.loads(path.read_text())
    assert record["not_whole"] == "trainer.max_steps=10 (the recipe: 20)"
    assert {told["verdict"] for told in record["splits"].values()} == {"not whole"}
    assert record["forecast"]["times"] == 2.0
    assert record["forecast"]["low"] <= record["forecast"]["gain"] <= record["forecast"]["high"]
    assert "not whole: trainer.max_steps=10 (the recipe: 20); 10 of 20 steps" in shown
    assert "at the recipe's end: val bpb" in shown
    # The whole is another run: its schedule is another.
    assert reproduce(own, tmp_path) == 0
    assert len(list(tmp_path.rglob("reproduction.json"))) == 2


def test_time_that_ran_out_is_continued_by_the_whole(own, tmp_path, monkeypatch, capsys):
    from lightning.pytorch.callbacks import Timer

    steps = iter(range(100))

    def runs_out(timer, trainer):
        if next(steps) >= 5:
            timer._offset, trainer.should_stop = timer._duration, True

    run_dir = f"run_dir={tmp_path / 'tiny'}"
    with monkeypatch.context() as patched:
        patched.setattr(Timer, "_check_time_remaining", runs_out)
        assert reproduce(own, tmp_path, run_dir, "trainer.max_time=00:01:00:00") == 0
    record = json.loads((tmp_path / "tiny/reproduction.json").read_text())
    assert record["not_whole"] == "stopped by max_time"
    done = record["training"]["steps"]
    assert done < record["training"]["of"] == 20
    assert reproduce(own, tmp_path, run_dir) == 0
    captured = capsys.readouterr()
    assert f"continuing after step {done}" in captured.err
    assert json.loads((tmp_path / "tiny/reproduction.json").read_text())["not_whole"] is None


def test_other_text_has_no_distance_and_a_loop_beside_is_shown(own, tmp_path, text_file, capsys):
    row = {
        "row": "tiny",
        "cases": [
            {
                "peer_is": "reference loop",
                "facts": {"ours": {"steps": 20, "segment": 10, "last_losses": {"ours": 4.0, "reference": 4.1}}},
                "measures": [{"median": {"ours": 5.0, "peer": 7.0}}],
            }
        ],
    }
    (tmp_path / "row.json").write_text(json.dumps(row))
    (tmp_path / "other.txt").write_text(text_file.read_text() * 2)
    other = [f"corpus.train={tmp_path / 'other.txt'}", f"beside={tmp_path / 'row.json'}"]
    assert reproduce(own, tmp_path, *other) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "other text" in shown
    assert "after 20 steps, ours beside the reference loop" in shown
    assert "mean loss of the last 10: 4.0000, 4.1000" in shown
    (tmp_path / "row.json").write_text("{}")
    assert reproduce(own, tmp_path, *other) == 2
    assert "no record of a benchmark" in capsys.readouterr().err


def test_the_directory_is_told_by_what_was_changed(tmp_path):
    from lmlab.config import compose
    from lmlab.reproduction.reproduce import directory

    def place(*words: str) -> str:
        recipe = compose(["experiment=nanogpt_char_cpu"])
        return directory(tmp_path, "nanogpt_char_cpu", recipe, compose(["experiment=nanogpt_char_cpu", *words])).name

    assert place() == place("trainer.max_time=00:00:10:00", "corpus.path=x", "threads=1") == "nanogpt_char_cpu"
    assert place("trainer.max_steps=100") == "nanogpt_char_cpu_trainer.max_steps=100"
    assert place("seed=1", "model.d_model=64") == "nanogpt_char_cpu_model.d_model=64_seed=1"
    assert place("evaluation.stride=32") != place("validation.limit_tokens=32")
    assert place("precision=bf16") != place("evaluation.precision=bf16"), "the last part of both is one"
    many = place("seed=1", "model=lstm", "batching=lanes", "optimizer=sgd", "schedule=constant", "corpus=wikitext2")
    assert many.startswith("nanogpt_char_cpu_")
    assert len(many) < 80


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["tutoral_lstm"], "did you mean tutorial_lstm?"),
        (
            ["song_ci_char", "corpus.train=x"],
            "song_ci_char has no number to reach; lmlab train experiment=song_ci_char",
        ),
        (["demo", "kneser_ney_5"], "one NAME, not demo and kneser_ney_5"),
        (["trainer.max_steps=3"], "lmlab reproduce NAME trainer.max_steps=3"),
        (["demo", "-m", "seed=1,2"], "one run at a time"),
        (["demo", "format=markdown"], "format=markdown must be one of table, json"),
        (["demo", "beside=nowhere.json"], "nowhere.json"),
    ],
)
def test_mistakes_are_one_line(arguments, told, capsys):
    assert main(["reproduce", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert told in error


def test_a_number_that_is_wrongly_stated_is_refused_before_training(own, tmp_path, capsys):
    assert main(["reproduce", "tiny", "--config-dir", str(own[0] / "wrong"), *own[1], f"root={tmp_path}"]) == 2
    assert "published.metric=luck" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_list_has_every_recipe_with_its_source_and_cost(tmp_path, capsys):
    from lmlab.reproduction import recipes

    assert main(["reproduce", f"root={tmp_path}"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n{name} " in shown for name in recipes())
    assert "issue 281" in shown
    assert main(["reproduce", "--help"]) == 0
    assert "86.70" in capsys.readouterr().out
    assert main(["reproduce", "format=json", f"root={tmp_path}"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["examples_650_tied"]["splits"]["test"]["value"] == 86.7
    assert told["song_ci_char"] is None
