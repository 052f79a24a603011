"""Where curves go: event files for TensorBoard, or a table. Lightning's own loggers, without what they leave behind."""

import csv
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

# Tells the event file of the HPARAMS page from those of the curves beside it.
SUFFIX = ".hparams"
# The custom-scalars page: what runs are compared by comes first. Tags are regular expressions there.
LAYOUT = {
    "Which is best": {
        "val: bits per byte": ["Multiline", ["^val/bpb$"]],
        "val: perplexity": ["Multiline", ["^val/ppl$"]],
        "over-fitting: val loss minus train loss": ["Multiline", ["^val/gap$"]],
    },
    "How it trains": {
        "train: bits per byte": ["Multiline", ["^train/bpb$"]],
        "gradient norm": ["Multiline", ["^optim/grad_norm$"]],
        "largest change of a matrix by a step, as a share of its size": ["Multiline", ["^optim/update_ratio$"]],
        "learning rate": ["Multiline", ["^optim/lr$"]],
        "tokens a second": ["Multiline", ["^perf/tokens_per_s$"]],
    },
}


class TensorBoard(TensorBoardLogger):
    """Event files in the run's directory itself, so that the board shows one run a directory.

    resume_from: the step of the checkpoint that is continued; what was logged past it is hidden. None: a new run.
    """

    def __init__(self, save_dir: str, resume_from: int | None):
        purge = {} if resume_from is None else {"purge_step": resume_from + 1}
        super().__init__(save_dir, name="", version="", default_hp_metric=False, **purge)

    @property
    def log_dir(self) -> str:
        """The path as it is: Lightning's expands variables and users in it."""
        return str(self.save_dir)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """One event for all of them: a tenth of the time of one for each."""
        values = [Summary.Value(tag=name, simple_value=float(value)) for name, value in metrics.items()]
        self.experiment.file_writer.add_summary(Summary(value=values), step)

    @rank_zero_only
    def save(self) -> None:
        """To disk, without Lightning's hparams.yaml: config.yaml says it all."""
        self.experiment.flush()


class CSV(Logger):
    """metrics.csv in the run's directory: a row a step, a column a metric; it is continued where a run is.

    Lightning's own deletes the rows of the part before the resume.
    """

    name, version = "", ""

    def __init__(self, save_dir: str, resume_from: int | None):
        super().__init__()
        self.path = Path(save_dir) / "metrics.csv"
        self.rows: dict[int, dict[str, Any]] = {}
        if resume_from is not None and self.path.exists():
            with self.path.open(encoding="utf-8", newline="") as file:
                rows = {int(row.pop("step")): row for row in csv.DictReader(file)}
            self.rows = {step: row for step, row in rows.items() if step <= resume_from}

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.rows.setdefault(step or 0, {}).update(metrics)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """config.yaml has them."""

    @rank_zero_only
    def save(self) -> None:
        columns = list(dict.fromkeys(name for row in self.rows.values() for name in row))
        beside = self.path.with_name(self.path.name + ".tmp")
        # One that lies there may be a stranger's link: it is not written through.
        beside.unlink(missing_ok=True)
        with beside.open("x", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, ["step", *columns], restval="")
            table.writeheader()
            table.writerows({"step": step, **row} for step, row in sorted(self.rows.items()))
        os.replace(beside, self.path)

    def finalize(self, status: str) -> None:
        self.save()


def write_hparams(
    directory: Path, shown: Mapping[str, Any], metrics: Mapping[str, float], step: int, group: str
) -> None:
    """One row of TensorBoard's HPARAMS page and the layout of its custom scalars, in an event file beside the curves.

    group: the same for replicates, which the page then shows as one trial, with means. Written anew when a run is
    continued, because the page keeps the first row that it finds. Without a summary of the experiment: where one is
    found, the page takes its columns from that run alone, and no longer puts those first in which the runs differ.
    """
    for old in directory.glob(f"events.out.tfevents.*{SUFFIX}"):
        old.unlink()
    # A truth value would be shown as 0.0000 or 1.0000.
    numbers = {k: v for k, v in shown.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    words = {k: str(v).lower() if isinstance(v, bool) else str(v) for k, v in shown.items() if k not in numbers}
    finite = {k: v for k, v in metrics.items() if math.isfinite(v)}
    with SummaryWriter(str(directory), filename_suffix=SUFFIX) as writer:
        _, start, end = hparams(words | numbers, finite)
        writer.file_writer.add_summary(grouped(start, group))
        writer.file_writer.add_summary(end)
        writer.add_custom_scalars(LAYOUT)
        values = [Summary.Value(tag=name, simple_value=float(value)) for name, value in finite.items()]
        writer.file_writer.add_summary(Summary(value=values), step)


def grouped(start: Summary, group: str) -> Summary:
    """The start of a session of a group, which torch has no argument for."""
    plugin = start.value[0].metadata.plugin_data
    data = HParamsPluginData.FromString(plugin.content)
    data.session_start_info.group_name = group
    plugin.content = data.SerializeToString()
    return start
