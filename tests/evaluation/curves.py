"""Made curves and the facts of a run that they could be of, for diagnosis and remedies."""

import math
from dataclasses import replace

import numpy as np

from lmlab.evaluation.curve import Facts

STEPS = np.arange(10, 401, 10)
V, UNIGRAM, NGRAM = 80, 3.0, 1.5
# Of the config of such a run, as `settings` would read them.
SETTINGS = {
    "trainer.max_steps": 400, "trainer.max_epochs": None, "trainer.max_time": None, "max_tokens": None,
    "corpus._target_": "lmlab.data.corpora.Files", "corpus.path": None, "train_share": 1.0, "init_from": None,
    "model.d_model": 48, "model.n_heads": 2, "model.n_layers": 1, "model.dropout": 0.0,
    "schedule.warmup": 0, "training.clip_norm": 1.0, "optimizer.lr": 3e-3,
}  # fmt: skip
GOOD = Facts(
    vocab_size=V, parameters=50_000, train_tokens=1_000_000, train_bytes=1_000_000, epochs=0.4, steps=400,
    unigram=UNIGRAM, ngram=NGRAM, first_loss=math.log(V), normalised=True, settings=SETTINGS,
)  # fmt: skip
SMALL = replace(GOOD, train_tokens=5_000, train_bytes=5_000, epochs=80.0)


def noise(seed, scale):
    return np.random.default_rng(seed).normal(0, scale, len(STEPS))


def points(loss, val=None, train=None, lr=None, update=0.01):
    """Rows as in curves.csv: training every 10 steps, a validation every 40."""
    lr = np.full(len(loss), 3e-3) if lr is None else lr
    rows = []
    for i, step in enumerate(STEPS[: len(loss)]):
        rows.append({"step": str(step), "train/loss": repr(float(loss[i])), "optim/lr": repr(float(lr[i])),
                     "optim/update_ratio": repr(update), "val/loss": "", "val/gap": ""})  # fmt: skip
        if step % 40 == 0:
            held_out = float((loss if val is None else val)[i])
            fixed = float((loss if train is None else train)[i])
            rows.append({"step": str(step), "train/loss": "", "val/loss": repr(held_out),
                         "val/gap": repr(held_out - fixed)})  # fmt: skip
    return rows


def learning(c=1.6, b=0.5, late=0):
    return c + (math.log(V) - c) * ((STEPS + late) / (10 + late)) ** -b
