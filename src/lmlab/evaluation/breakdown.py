"""Where the nats go: kept scores by position in the context, by frequency in training, by document, by year."""

import difflib
from typing import Any

import numpy as np

from lmlab.evaluation.scores import Scores
from lmlab.metrics import Likelihood

Row = dict[str, Any]


def breakdown(scores: Scores, by: str) -> list[Row]:
    """One row a group, in order: its name, tokens, shares of tokens and of nats, nll, ppl, bpb.

    by: position, frequency, document, or whatever the documents say of themselves (a year, a party).
    """
    if by == "position":
        return _rows(scores, *_bins(scores.positions, 2, "tokens before"))
    if by == "frequency":
        if scores.counts is None:
            raise ValueError("by=frequency needs counts of the train split, with which these scores were not made")
        return _rows(scores, *_bins(scores.counts, 10, "times in train"))
    docs = scores.about["documents"]
    if by == "document":
        return _rows(scores, scores.documents, [f"{i}. {doc['name']}" for i, doc in enumerate(docs, 1)])
    told = [doc.get(by) for doc in docs]
    if all(value is None for value in told):
        said = dict.fromkeys(key for doc in docs for key in doc if key != "name")
        known = ["position", "frequency", "document", *said]
        near = difflib.get_close_matches(by, known, n=1)
        raise ValueError(f"by={by} must be of {', '.join(known)}" + (f"; did you mean {near[0]}?" if near else ""))
    values = sorted(set(told), key=lambda v: (v is None, isinstance(v, str), v))
    place = np.array([values.index(value) for value in told])
    return _rows(scores, place[scores.documents], [str(v) if v is not None else "not said" for v in values])


def _bins(values: np.ndarray, base: int, unit: str) -> tuple[np.ndarray, list[str]]:
    """The group of each value, 0 alone and then [base**k, base**(k + 1)), and the groups' names."""
    edges = [1]
    while edges[-1] * base <= int(values.max()):
        edges.append(edges[-1] * base)
    names = [f"0 {unit}"]
    for low in edges:
        names.append(f"{low:,}" if base * low - 1 == low else f"{low:,} to {base * low - 1:,}")
    return np.searchsorted(edges, values, side="right"), names


def _rows(scores: Scores, group: np.ndarray, names: list[str]) -> list[Row]:
    total = scores.likelihood()
    columns = (scores.costs, None, scores.n_bytes, scores.n_chars, scores.n_words)
    sums = np.stack([np.bincount(group, column, len(names)) for column in columns], 1)
    rows = []
    for name, (nats, *sizes) in zip(names, sums.tolist(), strict=True):
        part = Likelihood(nats, *map(int, sizes))
        if part.tokens:
            shares = {"share_of_tokens": part.tokens / total.tokens, "share_of_nats": part.nats / total.nats}
            told = {key: getattr(part, key) for key in ("tokens", "bytes", "nll", "ppl", "bpb")}
            rows.append({"group": name, **told, **shares})
    return rows
