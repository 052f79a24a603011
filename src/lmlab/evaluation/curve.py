"""What a diagnosis reads: a run's curve, and what else is known of the run."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmlab.config import BUDGETS, flatten

# Of a run's config what a remedy may change, and what tells whether it would change anything; rates beside.
SETTINGS = (
    *BUDGETS, "corpus._target_", "corpus.path", "train_share", "init_from", "model.d_model", "model.n_heads",
    "model.n_layers", "schedule.warmup", "training.clip_norm", "callbacks.spikes._target_",
)  # fmt: skip
RATES = re.compile(r"optimizer\.(\w+_)?lr|model\.dropout\w*")


@dataclass(frozen=True)
class Curve:
    """A run's points: training (n,) and validation (m,), each with its steps.

    lr: the rate at each point of training. update: the largest share of its size by which a parameter moved in that
    step, nan where none was logged. gap: held-out loss less that of a slice of train without dropout, nan
    where none was measured.
    """

    steps: np.ndarray
    loss: np.ndarray
    lr: np.ndarray
    norm: np.ndarray
    update: np.ndarray
    val_steps: np.ndarray
    val: np.ndarray
    gap: np.ndarray

    @classmethod
    def of(cls, points: Sequence[Mapping[str, Any]]) -> "Curve":
        """From the rows of curves.csv, or of a table with its columns; empty cells are none.

        A table's empty cells are its own NaN; a loss that is no number is the word "nan" in curves.csv.
        """

        def column(rows: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
            return np.array([_number(row.get(name)) for row in rows])

        train = [p for p in points if _given(p.get("train/loss"))]
        val = [p for p in points if _given(p.get("val/loss"))]
        names = ("step", "train/loss", "optim/lr", "optim/grad_norm", "optim/update_ratio")
        return cls(*(column(train, n) for n in names), *(column(val, n) for n in ("step", "val/loss", "val/gap")))

    @property
    def areas(self) -> tuple[np.ndarray, np.ndarray]:
        """At each validation the sum of the learning rates so far, and the rate as a share of its peak."""
        if len(self.steps) < 2 or not np.nanmax(self.lr) > 0:
            return self.val_steps.astype(float), np.ones(len(self.val_steps))
        grid = np.arange(1, max(self.steps[-1], self.val_steps[-1]) + 1)
        lr = np.interp(grid, self.steps, self.lr)
        at = self.val_steps.astype(int) - 1
        return np.cumsum(lr)[at], lr[at] / lr.max()

    @property
    def excess_gap(self) -> float | None:
        """The gap at the best validation, beyond that of the first: what is learnt by heart, not what is harder."""
        if not len(self.val):
            return None
        gap = self.gap[int(self.val.argmin())] - self.gap[0]
        return None if np.isnan(gap) else float(gap)


@dataclass(frozen=True)
class Facts:
    """What is known of a run beside its curve. Losses in nats a token; None: not known, or none.

    unigram, ngram: the floors on val. charge: what the protocol adds to them and to the held-out loss for the letters
    of <unk>, and not to the training loss. normalised: whether the optimizer's steps are of one size whatever the
    gradient's, as all but SGD's are. settings: what the config says of `SETTINGS` and `RATES`, by dotted key.
    best_step: that of best.ckpt.
    """

    vocab_size: int
    parameters: int
    train_tokens: int
    train_bytes: int
    epochs: float
    steps: int
    unigram: float | None
    ngram: float | None
    first_loss: float | None
    normalised: bool
    settings: Mapping[str, Any]
    failure: str | None = None
    charge: float = 0.0
    best_step: int | None = None

    @classmethod
    def of(
        cls,
        config: Mapping[str, Any],
        decided: Mapping[str, Any],
        train: Mapping[str, int],
        floors: Mapping[str, Mapping[str, Mapping[str, float]]],
        points: Sequence[Mapping[str, Any]],
        failure: str | None,
        charge: float = 0.0,
    ) -> "Facts":
        """config, decided: of config.yaml. train: tokens and bytes of that split. floors: as in results.json."""
        losses = {name: floors.get(name, {}).get("val", {}).get("nll") for name in ("unigram", "kneser_ney_5")}
        steps = max((int(p["step"]) for p in points), default=0)
        shown = [p["train/loss"] for p in points if _given(p.get("train/loss"))]
        return cls(
            vocab_size=decided["vocab_size"],
            parameters=decided["n_params"],
            train_tokens=train["tokens"],
            train_bytes=train["bytes"],
            epochs=steps / decided["steps_per_epoch"],
            steps=steps,
            unigram=losses["unigram"],
            ngram=losses["kneser_ney_5"],
            first_loss=float(shown[0]) if shown else None,
            normalised=not config["optimizer"]["_target_"].endswith("SGD"),
            settings=settings(config),
            failure=failure,
            charge=charge,
        )

    @property
    def frequencies(self) -> float | None:
        """What the training loss is where only frequencies are known."""
        return None if self.unigram is None else self.unigram - self.charge

    @property
    def tokens_per_parameter(self) -> float:
        return self.train_tokens / max(self.parameters, 1)

    @property
    def bits_per_parameter(self) -> float | None:
        """Of the train text, as a 5-gram would pack it."""
        packed = self.ngram if self.ngram is not None else self.unigram
        return None if packed is None else self.train_tokens * packed / math.log(2) / max(self.parameters, 1)


def _given(cell: Any) -> bool:
    """Whether a row has something there: NaN, the number, is a table's empty cell."""
    return cell is not None and cell != "" and cell == cell


def _number(cell: Any) -> float:
    return float(cell) if _given(cell) else math.nan


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says of `SETTINGS` and `RATES`; a key that it does not have is left out."""
    flat = flatten(config)
    rates = {key: value for key, value in flat.items() if RATES.fullmatch(key) and isinstance(value, int | float)}
    return {key: flat[key] for key in SETTINGS if key in flat} | rates
