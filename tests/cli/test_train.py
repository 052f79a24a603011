"""lmlab train: names and places, several runs at once, and what bad input gets."""

import json
import shutil

import pytest
import yaml

from lmlab.cli import main


def refused(capsys, directory, *arguments: str, status: int = 2) -> str:
    """The one line that a refused training gives; nothing may be left behind."""
    assert main(["train", f"run_dir={directory}", *arguments]) == status
    assert not directory.exists()
    error = capsys.readouterr().err
    told = [line for line in error.splitlines() if line.startswith("lmlab: ")]
    assert len(told) == 1
    assert "Traceback" not in error
    assert "\n" + told[0] + "\n" in "\n" + error
    return told[0]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("modle=lstm", "did you mean model?"),
        ("model.d_modle=3", "did you mean model.d_model?"),
        ("max_steps=3", "did you mean trainer.max_steps?"),
        ("model=lsmt", "did you mean lstm?"),
        ("model.cell=gru", "model=lstm has it, which is not chosen"),
        ("+foo=1", "no key 'foo'"),
        ("+model.foo=1", "model.foo is no argument"),
        ("model.d_model=17", "d_model=17 must be a multiple of n_heads=2"),
        ("model.d_model=abc", "model.d_model=abc must be a whole number"),
        ("model.dropout=2", "model.dropout=2"),
        ("model/head=adaptive", "model.tie_embeddings=false"),
        ("model._target_=lmlab.models.lstm.Nope", "_target_=lmlab.models.lstm.Nope cannot be imported"),
        ("trainer.max_steps=-5", "trainer.max_steps=-5"),
        ("trainer.max_time=abc", "DD:HH:MM:SS"),
        ("trainer.accelerator=foo", "must be one of auto, cpu"),
        ("+trainer.precision=64-true", "use precision"),
        ("+trainer.overfit_batches=4", "trainer.overfit_batches=4 must be one of 0, 1"),
        ("+trainer.accumulate_grad_batches=2", "use training.micro_batch_size"),
        ("devices=0", "devices=0 must be at least 1"),
        ("batching.batch_size=0", "batching.batch_size=0 must be at least 1"),
        ("batching.seq_len=100000", "give more text"),
        ("optimizer.lr=-1", "optimizer.lr=-1"),
        ("optimizer.lr=fast", "optimizer.lr=fast must be a number"),
        ("optimizer.betas=[2,3]", "beta"),
        ("training.decay=foo", "training.decay='foo'"),
        ("training.clip_norm=0", "training.clip_norm=0 must be above 0, or null for no clipping"),
        ("callbacks.checkpoints=null", "its best one is measured"),
        ("callbacks.samples=3", "callbacks.samples=3"),
        ("callbacks.checkpoints.monitor=val/foo", "val/foo"),
        ("precision=17", "precision=17 must be one of auto, 32"),
        ("kernels=fast", "kernels=fast must be one of auto, plain"),
        ("seed=-1", "seed=-1"),
        ("test=maybe", "test=maybe"),
        ("evaluation.stride=0", "evaluation.stride=0"),
        ("n_params=abc", "n_params=5M"),
        ("n_params=100", "vocabulary"),
        ("corpus.val_share=0.0", "no text for val"),
        ("corpus=hf", "corpus.path=... is needed"),
        ("tokenizer.vocab_size=10", "257"),
        ("init_from=/nonexistent", "/nonexistent is no run"),
    ],
)
def test_a_bad_setting_is_one_line_and_leaves_nothing(override: str, told: str, small, tmp_path, capsys):
    without = [o for o in small["transformer"] if not (override == "corpus=hf" and o.startswith("corpus"))]
    assert told in refused(capsys, tmp_path / "run", *without, override)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("missing", None, "does not exist"),
        ("empty", b"", "empty"),
        ("binary", bytes(range(256)) * 9, "not text"),
        ("latin", "café ".encode("latin-1") * 99, "not UTF-8"),
        ("short", b"ab", "too short"),
        ("one_row", b"a b c d e f g h i j k l m n o p q r s t u v w x y z\n" * 2, "the train split has"),
    ],
)
def test_text_that_cannot_be_used_is_named(name: str, content: bytes | None, told: str, small, tmp_path, capsys):
    path = tmp_path / f"{name}.txt"
    if content is not None:
        path.write_bytes(content)
    more = ["batching.seq_len=200"] if name == "one_row" else []
    line = refused(capsys, tmp_path / "run", *small["lstm"], f"corpus.train={path}", *more)
    assert told in line
    assert name == "one_row" or name in line


def test_learned_positions_refuse_lanes(small, tmp_path, capsys):
    lanes = ["model.positions=learned", "batching=lanes"]
    kept = [o for o in small["transformer"] if o != "batching=windows"]
    assert "use batching=windows" in refused(capsys, tmp_path / "run", *kept, *lanes)


@pytest.mark.parametrize("name", ["a b 第一", 'it"s', "c'q", "x${y}", "br[1],k=v"])
def test_a_run_may_be_called_anything(name: str, small, tmp_path, capsys):
    directory = tmp_path / name
    assert main(["train", f"run_dir={directory}", *small["lstm"], "trainer.max_steps=1"]) == 0
    stored = json.loads((directory / "results.json").read_text())
    capsys.readouterr()
    assert main(["evaluate", f"run_dir={directory}", "format=json"]) == 0
    assert json.loads(capsys.readouterr().out)["test"] == stored["splits"]["test"]


def test_automatic_names_do_not_collide(small, tmp_path):
    for _ in range(2):
        assert main(["train", f"runs_root={tmp_path}", *small["ngram"]]) == 0
    runs = list(tmp_path.iterdir())
    assert len(runs) == 2
    assert all((run / "results.json").exists() for run in runs)


def test_a_failing_job_does_not_end_a_multirun(small, tmp_path, capsys):
    order = [o for o in small["ngram"] if not o.startswith("model.order")]
    assert main(["train", "-m", f"runs_root={tmp_path / 'runs'}", *order, "model.order=0,1,2"]) == 2
    done = [yaml.safe_load(p.read_text())["model"]["order"] for p in tmp_path.glob("sweeps/*/trials/*/asked.yaml")]
    assert sorted(done) == [1, 2]
    assert "1 of the 3 trials failed" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [["train"], ["bench"], ["reproduce", "demo"]])
def test_a_sweep_is_not_taken_for_one_run(verb, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*verb, "sweep=lr"]) == 2
    told = "lmlab: sweep=lr is of many runs: lmlab sweep sweep=lr, or lmlab train -m sweep=lr\n"
    assert capsys.readouterr().err == told
    assert not list(tmp_path.iterdir())


def test_the_solved_width_is_written_down(small, tmp_path):
    kept = [o for o in small["transformer"] if not o.startswith("model.d_model")]
    assert main(["train", f"run_dir={tmp_path / 'run'}", *kept, "n_params=60k", "trainer.max_steps=1"]) == 0
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert abs(results["model"]["parameters"] - 60_000) <= 600
    assert config["decided"]["n_params"] == results["model"]["parameters"]
    assert config["model"]["d_model"] % 4 == 0
    assert config["model"]["d_model"] != 256


OWN = """
from lmlab.models.lstm import LSTMLM

class MyLM(LSTMLM):
    pass
"""


def test_a_class_of_ones_own_trains_and_loads_when_allowed(small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    (tmp_path / "own_model_of_mine.py").write_text(OWN)
    (tmp_path / "my_conf" / "model").mkdir(parents=True)
    (tmp_path / "my_conf" / "model" / "mine.yaml").write_text(
        "defaults: [lstm, _self_]\n_target_: own_model_of_mine.MyLM\n"
    )
    assert main(["train", "--config-dir", "my_conf", "model=mien"]) == 2
    assert "did you mean mine?" in capsys.readouterr().err
    overrides = ["model=mine" if o == "model=lstm" else o for o in small["lstm"]]
    assert main(["train", "--config-dir", "my_conf", "run_dir=run", *overrides]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    told = [words[2:4] for words in shown if words[:2] in (["lmlab", "generate"], ["lmlab", "evaluate"])]
    assert told == [["run_dir=run", "'allow_targets=[own_model_of_mine.MyLM]'"]] * 2
    assert main(["generate", "run_dir=run", "max_new_tokens=2"]) == 2
    assert "pass allow_targets=[own_model_of_mine.MyLM]" in capsys.readouterr().err
    assert main(["generate", "run_dir=run", "max_new_tokens=2", "allow_targets=[own_model_of_mine.MyLM]"]) == 0


def test_the_same_run_again_is_left_alone_and_another_is_refused(trained, small, tmp_path, capsys):
    directory = tmp_path / "run"
    shutil.copytree(trained["lstm"], directory)
    before = {p: p.stat().st_mtime_ns for p in directory.rglob("*") if p.is_file()}
    assert main(["train", f"run_dir={directory}", *small["lstm"]]) == 0
    assert "finished" in capsys.readouterr().err
    assert main(["train", f"run_dir={directory}", *small["lstm"], "seed=7"]) == 2
    assert "seed: 0 there, 7 now" in capsys.readouterr().err
    assert before == {p: p.stat().st_mtime_ns for p in directory.rglob("*") if p.is_file()}
