"""What watches a run: samples, histograms, a stop at the right check, and averaged weights."""

import json

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import lmlab
from lmlab.training.callbacks import as_markdown
from lmlab.training.checkpoints import read, weights

TINY = ["model=lstm", "model.d_model=8", "model.n_layers=1", "batching.batch_size=4", "batching.seq_len=16"]
TINY += ["evaluation.lanes=2", "optimizer=adam", "trainer.max_steps=12", "trainer.val_check_interval=3"]
SAMPLES = """{_target_: lmlab.training.callbacks.Samples, _partial_: true, prompts: ["the ", "a\\n"],
max_new_tokens: 5, temperature: 0.8, top_k: 50, every_validation: true}""".replace("\n", " ")


def history(path):
    return read(path / "checkpoints/last.ckpt")["lmlab"]["history"]


def test_samples_are_written_at_every_validation_and_change_nothing(train, tmp_path):
    told = train("with", *TINY, "logger=tensorboard", "training.histograms=true", f"callbacks.samples={SAMPLES}")
    train("without", *TINY)
    ours, theirs = (weights(read(tmp_path / name / "checkpoints/last.ckpt")) for name in ("with", "without"))
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    # Three at least, as many for each prompt.
    assert len(told["samples"]) == 4
    assert [text.startswith("the ") for text in told["samples"]] == [True, True, False, False]
    found = EventAccumulator(str(tmp_path / "with"), size_guidance={"tensors": 0, "histograms": 0}).Reload()
    written = found.Tensors("samples/text_summary")
    assert [event.step for event in written] == [3, 6, 9, 12]
    assert written[0].tensor_proto.string_val[0].decode().startswith("    the ")
    assert len(found.Histograms("weights/embedding.weight")) == 4
    projected = tmp_path / "with/00012/embedding/metadata.tsv"
    assert len(projected.read_text().splitlines()) == 257


@pytest.mark.parametrize("averaging", ["ema", "nt_asgd"])
def test_samples_on_the_board_are_of_the_averages_that_validation_measures(averaging, train, tmp_path, monkeypatch):
    seen: list[dict[str, torch.Tensor]] = []

    def write(self, model, n):
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return [""]

    options = {
        "ema": ["callbacks/averaging=ema", "callbacks.averaging.decay=0.8"],
        "nt_asgd": ["optimizer=nt_asgd", "optimizer.lr=8.0", "optimizer.nonmono=1", "schedule=constant"],
    }[averaging]
    monkeypatch.setattr("lmlab.training.callbacks.Samples.write", write)
    told = train("run", *TINY, "trainer.max_steps=30", "logger=tensorboard", f"callbacks.samples={SAMPLES}", *options)
    best = weights(read(tmp_path / "run/checkpoints/best.ckpt"))
    ours = seen[told["training"]["best_step"] // 3 - 1]
    assert best.keys() == ours.keys()
    assert all(torch.equal(best[name], ours[name]) for name in best)
    # And none of it stays: training goes on as without them.
    train("without", *TINY, "trainer.max_steps=30", *options)
    last, theirs = (weights(read(tmp_path / name / "checkpoints/last.ckpt")) for name in ("run", "without"))
    assert all(torch.equal(last[name], theirs[name]) for name in theirs)


def test_samples_that_are_not_wanted_at_validations_are_in_the_results_all_the_same(train, tmp_path):
    once = SAMPLES.replace("every_validation: true", "every_validation: false")
    told = train("once", *TINY, "logger=tensorboard", f"callbacks.samples={once}")
    assert len(told["samples"]) == 4
    found = EventAccumulator(str(tmp_path / "once"), size_guidance={"tensors": 0}).Reload()
    assert not [tag for tag in found.Tags()["tensors"] if tag.startswith("samples")]


def test_markdown_keeps_lines_as_they_are():
    assert as_markdown("# a\n\n* b") == "    # a\n    \n    * b"


def test_training_stops_after_as_many_worse_checks_as_patience_says(train, tmp_path):
    stopping = ["callbacks/early_stopping=patience", "callbacks.early_stopping.patience=2"]
    # A learning rate that gains nothing after a while.
    overrides = [*TINY, "optimizer.lr=0.5", "schedule=constant", "trainer.max_steps=90"]
    told = train("run", *overrides, *stopping)
    values = [check["val/bpb"] for check in history(tmp_path / "run")]
    worse = [now >= min(values[:i]) for i, now in enumerate(values) if i]
    stops = next(i for i in range(1, len(worse)) if worse[i - 1] and worse[i])
    assert len(values) == stops + 2, "neither earlier nor later"
    assert told["training"]["stopped_because"] == "early stopping"
    assert told["training"]["steps"] == 3 * len(values)
    assert told["training"]["best_step"] == 3 * (1 + values.index(min(values)))
    longer = train("run", *overrides, *stopping, "trainer.max_steps=180")["training"]
    assert longer["steps"] >= told["training"]["steps"] + 2 * 3, "more steps are given as much patience again"


@pytest.mark.parametrize(
    "averaging",
    [
        ["callbacks/averaging=ema", "callbacks.averaging.decay=0.8"],
        ["optimizer=nt_asgd", "optimizer.lr=8.0", "optimizer.nonmono=1", "schedule=constant", "batching=lanes"],
    ],
    ids=["ema", "nt_asgd"],
)
def test_best_checkpoint_holds_the_averages_that_validation_measured(averaging, train, tmp_path):
    told = train("run", *TINY, "trainer.max_steps=60", *averaging)
    best = read(tmp_path / "run/checkpoints/best.ckpt")
    stored = json.loads((tmp_path / "run/results.json").read_text())
    measured = lmlab.load(tmp_path / "run").evaluate("val").bpb
    assert best["metrics"]["val/bpb"] == pytest.approx(measured, abs=1e-6)
    assert stored["splits"]["val"]["bpb"] == pytest.approx(measured, abs=1e-6)
    assert told["training"]["best_step"] == best["step"]
    assert best["step"] == told["training"]["steps"], "choose another seed: the best is the last one's average"
    last = read(tmp_path / "run/checkpoints/last.ckpt")
    raw = last.get("current_model_state", last["state_dict"])
    assert any(not torch.equal(raw[k], v) for k, v in best["state_dict"].items()), "these were not averaged"


def test_until_averaging_begins_the_weights_themselves_are_measured_and_kept(train, tmp_path):
    """And not those of the start, which Lightning has for an average by then."""
    late = ["callbacks/averaging=ema", "callbacks.averaging.decay=0.8", "callbacks.averaging.update_starting_at_step=9"]
    train("plain", *TINY)
    train("late", *TINY, *late)
    plain, averaged = history(tmp_path / "plain"), history(tmp_path / "late")
    assert averaged[:3] == plain[:3], "up to step 9"
    assert averaged[3] != plain[3]
    train("stopped", *TINY, "trainer.max_steps=6", "schedule=constant", *late)
    best, last = (read(tmp_path / f"stopped/checkpoints/{name}.ckpt") for name in ("best", "last"))
    for kept in (best, last):
        assert all(torch.equal(kept["state_dict"][k], v) for k, v in last["current_model_state"].items())
