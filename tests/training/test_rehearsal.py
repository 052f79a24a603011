"""dry_run: what a run would take, without one."""

from lmlab.config import compose
from lmlab.experiment import plan
from lmlab.training import rehearsal

TINY = ["model=lstm", "model.d_model=8", "model.n_layers=1", "batching.batch_size=4", "batching.seq_len=16"]
TINY += ["evaluation.lanes=2", "trainer.max_steps=20"]


def test_dry_run_tells_and_leaves_nothing(train, tmp_path):
    told = train("run", *TINY, "dry_run=true", f"runs_root={tmp_path / 'runs'}")
    assert told["n_params"] > 0
    assert told["total_steps"] == 20
    assert told["tokens_per_step"] == 64
    assert {"training_time", "evaluation_time", "time", "peak_memory"} <= told.keys()
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "runs").exists()


def test_dry_run_of_a_model_that_counts(train, tmp_path):
    assert train("run", "model=unigram", "dry_run=true")["vocab_size"] == 257
    assert not (tmp_path / "run").exists()


def test_every_token_that_validation_scores_is_counted(text):
    overrides = [*TINY, "corpus=files", f"corpus.path={text}", "tokenizer=byte", "trainer=cpu", "test=false"]
    planned = plan(compose([*overrides, "trainer.val_check_interval=6", "validation.train_tokens=50"]))
    val = len(planned.store.split("val"))
    # Checks after steps 6, 12 and 18, then val once more from the best checkpoint.
    assert rehearsal.scored_tokens(planned) == 3 * (val + 50) + val
