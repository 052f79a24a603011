"""lmlab train -m: a run for every combination, none in another's way."""

import json

import pytest

from lmlab import runs
from lmlab.cli import main

TEXT = "the cat sees a red house and the dog hears it at night while we sleep under an old tree " * 6
TINY = [
    "corpus=files",
    "corpus.split_by=share",
    "corpus.val_share=0.2",
    "tokenizer=byte",
    "trainer=cpu",
    "floors=false",
]
TINY += ["logger=none", "callbacks.samples=null", "model.d_model=12", "model.n_layers=1", "batching.batch_size=2"]
TINY += ["batching.seq_len=8", "trainer.max_steps=2", "trainer.val_check_interval=2", "validation.train_tokens=20"]
TINY += ["precision=32", "compile=false"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


def test_every_combination_is_a_run_of_its_own(here, capsys):
    assert main(["train", "-m", *TINY, "corpus.train=text.txt", "model=lstm,transformer", "seed=1,2"]) == 0
    names = sorted(path.name.split("_", 2)[2] for path in (here / "outputs/runs").glob("[!.]*"))
    assert names == [f"files_byte_{model}_seed{seed}" for model in ("lstm", "transformer") for seed in (1, 2)]
    table = runs.table(here / "outputs")
    assert sorted(zip(table["model"], table["seed"], strict=True)) == [
        ("LSTMLM", 1), ("LSTMLM", 2), ("TransformerLM", 1), ("TransformerLM", 2)
    ]  # fmt: skip
    assert table["val/bpb"].nunique() == 4
    for path in (here / "outputs/runs").glob("[!.]*"):
        # Whoever chooses between runs must not have looked at test.
        assert list(json.loads((path / "results.json").read_text())["splits"]) == ["val"]
    left = {path.relative_to(here).parts[0] for path in here.rglob("*") if path.is_file()}
    assert left == {"text.txt", "outputs"}
    assert {path.name for path in (here / "outputs/runs/.multiruns").rglob("*") if path.is_file()} <= {"multirun.yaml"}
    capsys.readouterr()
    assert main(["runs", f"root={here / 'outputs'}", "format=json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 4


def test_a_job_that_fails_is_told_and_the_others_go_on(here, capsys):
    overrides = [*TINY, "corpus.train=text.txt", "model=lstm", "batching.seq_len=99999,8", "test=true"]
    assert main(["train", "-m", *overrides]) == 2
    (run,) = (here / "outputs/runs").glob("[!.]*")
    assert run.name.endswith("_files_byte_lstm_seed0_seq_len=8")
    assert list(json.loads((run / "results.json").read_text())["splits"]) == ["val", "test"]
    errors = capsys.readouterr().err
    assert "batching.seq_len=99999" in errors
    assert "1 of the jobs failed" in errors


def test_one_directory_for_many_runs_is_refused(here, capsys):
    assert main(["train", "-m", *TINY, "corpus.train=text.txt", "model=lstm", "seed=1,2", "run_dir=one"]) == 2
    assert "run_dir=... cannot hold" in capsys.readouterr().err
    assert not (here / "one").exists()
