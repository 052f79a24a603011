"""The benchmarks compare like with like: at tiny shapes our step and the reference's give the same losses."""

from pathlib import Path

import pytest
from tests.benchmarks.reference import GPT, GPTLoop, LSTMLoop, TiedLSTM
from tests.benchmarks.side_by_side import Trace, compare, run

from lmlab.config import compose
from lmlab.experiment import plan

STEPS, SEGMENT = 20, 6


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "numbers.txt"
    path.write_text("".join(f"{n} plus {n % 7} is {n + n % 7}\n" for n in range(200)), encoding="utf-8")
    return path


def planned(text: Path, recipe: str, *overrides: str):
    """The recipe on the tiny text, in full size but for what is overridden."""
    small = [f"experiment={recipe}", "corpus=files", f"corpus.train={text}", "corpus.split_by=share", "trainer=cpu"]
    return plan(compose([*small, "compile=false", "logger=none", "seed=3", *overrides]))


def test_a_transformer_step_is_nanogpts_step(text):
    ours = planned(
        text, "nanogpt_char_cpu", "model.d_model=16", "model.n_layers=2", "model.n_heads=2", "model.max_context=12",
        "batching.batch_size=3", "schedule.warmup=5", "trainer.max_steps=20",
    )  # fmt: skip
    model = GPT(ours.model.vocab_size, d_model=16, n_layers=2, n_heads=2, context=12, dropout=0.0)
    model.load(ours.model.state_dict())
    loop = GPTLoop(model, lr=1e-3, min_lr=1e-4, warmup=5, steps=20, betas=(0.9, 0.99), weight_decay=0.1, clip=1.0)
    check(*run(ours, loop, STEPS, SEGMENT))


def test_an_lstm_step_is_the_examples_step(text):
    """Without dropout: that two implementations draw the same masks is no promise. At a tenth of the recipe's learning
    rate, which multiplies a difference of one rounding by ten in five steps.
    """
    ours = planned(
        text, "examples_650_tied", "model.d_model=12", "batching.batch_size=4", "batching.seq_len=16",
        "model.dropout_in=0.0", "model.dropout_between=0.0", "model.dropout_out=0.0", "optimizer.lr=2.0",
    )  # fmt: skip
    assert ours.batching.steps_per_epoch < STEPS, "the text starts anew, and with it the state"
    model = TiedLSTM(ours.model.vocab_size, d_model=12, n_layers=2, dropout=0.0)
    model.load(ours.model.state_dict())
    check(*run(ours, LSTMLoop(model, lr=2.0, clip=0.25), STEPS, SEGMENT))


def check(ours: Trace, theirs: Trace) -> None:
    assert len(ours.seconds) == len(theirs.seconds) == STEPS
    assert ours.losses == pytest.approx(theirs.losses, abs=1e-5)
    assert ours.losses[-1] < ours.losses[0] - 0.1
    result = compare(ours, theirs, SEGMENT)
    assert result["steps"] == STEPS
    assert result["largest_difference"]["20"] < 1e-5
    assert result["ratio"] > 0
