"""What the loggers leave: one run a directory in the board, curves that go on after a resume, a row of HPARAMS."""

import csv
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import metadata

from lmlab.training.loggers import CSV, TensorBoard
from lmlab.training.module import LMModule

TINY = ["model=lstm", "model.d_model=8", "model.n_layers=1", "batching.batch_size=4", "batching.seq_len=16"]
TINY += ["evaluation.lanes=2", "optimizer=adam", "trainer.max_steps=20", "trainer.val_check_interval=5"]


class Killed(BaseException):
    """Ends training at once."""


def kill_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = LMModule.training_step

    def dies(self: LMModule, *args: Any) -> Any:
        if self.step == step:
            raise Killed
        return original(self, *args)

    monkeypatch.setattr(LMModule, "training_step", dies)


def killed_and_resumed(train: Any, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> None:
    with monkeypatch.context() as patch:
        kill_at(13, patch)
        with pytest.raises(Killed):
            train("run", *TINY, *overrides)
    train("run", *TINY, *overrides)


def events(path: Path) -> EventAccumulator:
    with warnings.catch_warnings():
        # TensorBoard's own reader is not ready for the current protobuf everywhere.
        warnings.simplefilter("ignore")
        return EventAccumulator(str(path), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def test_a_killed_run_has_one_curve_and_one_row_of_hparams(train, tmp_path, monkeypatch):
    killed_and_resumed(train, monkeypatch, "logger=tensorboard", "training.log_every=2", "training.clip_norm=null")
    found = events(tmp_path / "run")
    steps = [event.step for event in found.Scalars("train/loss")]
    assert steps == [1, *range(2, 21, 2)]
    assert [event.step for event in found.Scalars("val/bpb")] == [5, 10, 15, 20]
    # Energy where it may be read.
    assert set(found.Tags()["scalars"]) - {"perf/energy_j"} == {
        *("train/loss", "train/ppl", "train/bpb", "train/eval_loss", "val/loss", "val/ppl", "val/bpb", "val/gap"),
        *(
            "optim/lr",
            "optim/grad_norm",
            "optim/update_ratio",
            "perf/tokens_per_s",
            "progress/epoch",
            "progress/tokens",
        ),
        *("perf/mfu", "perf/memory_gb"),
        *("perf/data_share", "perf/forward_share", "perf/backward_share", "perf/optimizer_share"),
        *("best/val_bpb", "best/val_ppl", "final/val_bpb", "final/val_ppl", "final/test_bpb", "final/test_ppl"),
        *("cost/parameters", "cost/seconds", "cost/tokens_per_s"),
    }
    content = found.PluginTagToContent("hparams")[metadata.SESSION_START_INFO_TAG]
    shown = metadata.parse_session_start_info_plugin_data(content).hparams
    assert shown["model"].string_value == "lstm"
    assert shown["optimizer"].string_value == "adam"
    assert shown["model.d_model"].number_value == 8
    assert not [key for key in shown if key.endswith(("_target_", "_partial_")) or key.startswith("evaluation")]
    layout = Layout.FromString(found.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    tags = [tag for category in layout.category for chart in category.chart for tag in chart.multiline.tag]
    assert tags[0] == "^val/bpb$"
    assert all([t for t in found.Tags()["scalars"] if re.search(tag, t)] for tag in tags)
    folders = {path.parent for path in (tmp_path / "run").rglob("events.out*")}
    assert folders == {tmp_path / "run"}, "the board would show a second run"
    assert not (tmp_path / "run/hparams.yaml").exists()


def test_a_run_killed_while_its_row_of_hparams_is_written_has_it_after_the_same_command(train, tmp_path, monkeypatch):
    def dies(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("lmlab.training.loggers.grouped", dies)
        with pytest.raises(Killed):
            train("run", *TINY, "logger=tensorboard")
    train("run", *TINY, "logger=tensorboard")
    assert metadata.SESSION_START_INFO_TAG in events(tmp_path / "run").PluginTagToContent("hparams")


def test_replicates_are_one_trial_of_hparams(train, tmp_path):
    def trial(name: str, *overrides: str) -> str:
        train(name, *TINY, "logger=tensorboard", *overrides)
        content = events(tmp_path / name).PluginTagToContent("hparams")[metadata.SESSION_START_INFO_TAG]
        return metadata.parse_session_start_info_plugin_data(content).group_name

    first = trial("a", "seed=1")
    assert first.startswith("files_byte_lstm_")
    assert trial("b", "seed=2") == first
    assert trial("c", "seed=2", "optimizer.lr=0.02") != first
    (tmp_path / "other.txt").write_text("the old dog sees the cat\n" * 60)
    assert trial("d", "seed=2", "corpus.path=null", f"corpus.train={tmp_path}/other.txt") != first, "of another text"


def test_a_killed_run_has_one_table(train, tmp_path, monkeypatch):
    killed_and_resumed(train, monkeypatch, "logger=csv", "training.log_every=2")
    with (tmp_path / "run/metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == sorted({1, *range(2, 21, 2), *range(5, 21, 5)})
    assert all(row["train/loss"] for row in rows if int(row["step"]) % 2 == 0)
    assert [float(row["val/bpb"]) > 0 for row in rows if row["val/bpb"]] == [True] * 4


def test_rows_past_the_checkpoint_are_dropped(tmp_path):
    first = CSV(str(tmp_path), resume_from=None)
    for step in (1, 2, 3):
        first.log_metrics({"loss": step / 2}, step)
    first.save()
    second = CSV(str(tmp_path), resume_from=2)
    second.log_metrics({"loss": 7.0, "late": 1.0}, 3)
    second.finalize("success")
    assert (tmp_path / "metrics.csv").read_text().split() == ["step,loss,late", "1,0.5,", "2,1.0,", "3,7.0,1.0"]


def test_without_a_logger_there_are_no_curves(train, tmp_path):
    train("run", *TINY, "logger=none")
    assert not list((tmp_path / "run").glob("events*"))
    assert not (tmp_path / "run/metrics.csv").exists()


def test_a_board_lies_in_the_runs_directory_whatever_its_name(tmp_path):
    for name in ("a${HOME}b$USER", "~"):
        assert TensorBoard(save_dir=str(tmp_path / name), resume_from=None).log_dir == str(tmp_path / name)
