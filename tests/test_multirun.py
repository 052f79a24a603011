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
TINY += ["precision=32", "compile=false", "hydra.sweeper.workers=1"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


def test_every_combination_is_a_run_of_its_own(here, capsys):
    command = ["train", "-m", *TINY, "corpus.train=text.txt", "corpus.test_share=0.1", "model=lstm,transformer"]
    command += ["evaluation=sliding", "evaluation.max_context=8"]
    assert main([*command, "seed=1,2"]) == 0
    (sweep,) = (here / "outputs/sweeps").iterdir()
    names = sorted(path.name.rpartition("-")[0] for path in (sweep / "trials").iterdir())
    assert names == [f"model={model}_seed{seed}" for model in ("lstm", "transformer") for seed in (1, 2)]
    table = runs.table(here / "outputs")
    assert sorted(zip(table["model"], table["seed"], strict=True)) == [
        ("LSTMLM", 1), ("LSTMLM", 2), ("TransformerLM", 1), ("TransformerLM", 2)
    ]  # fmt: skip
    assert table["val/bpb"].nunique() == 4
    # Whoever chooses between runs must not have looked at test: only the chosen one's is scored, of both its seeds.
    best = table.groupby("model")["val/bpb"].mean().idxmin()
    assert list(table["model"][table["test/bpb"].notna()]) == [best, best]
    left = {path.relative_to(here).parts[0] for path in here.rglob("*") if path.is_file()}
    assert left == {"text.txt", "outputs"}
    capsys.readouterr()
    assert main(["runs", f"root={here / 'outputs'}", "format=json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 4


def test_a_job_that_fails_is_told_and_the_others_go_on(here, capsys):
    overrides = [*TINY, "corpus.train=text.txt", "model=lstm", "batching.seq_len=99999,8", "test=true"]
    assert main(["train", "-m", *overrides, "corpus.test_share=0.1"]) == 2
    (run,) = (here / "outputs/sweeps").glob("*/trials/*")
    assert run.name.startswith("seq_len=8_seed0-")
    assert list(json.loads((run / "results.json").read_text())["splits"]) == ["val", "test"]
    errors = capsys.readouterr().err
    assert "batching.seq_len=99999" in errors
    assert "1 of the 2 trials failed" in errors


def test_one_directory_for_many_runs_is_refused(here, capsys):
    assert main(["train", "-m", *TINY, "corpus.train=text.txt", "model=lstm", "seed=1,2", "run_dir=one"]) == 2
    assert "run_dir=... cannot hold" in capsys.readouterr().err
    assert not (here / "one").exists()
