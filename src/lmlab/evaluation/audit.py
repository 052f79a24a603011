"""Whether a run's numbers can be trusted: checks of its model, its evaluation, its tokens and its text."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from lmlab.data.corpora import Corpus
from lmlab.data.store import Store
from lmlab.evaluation import text_checks
from lmlab.evaluation.checks import MODEL_CHECKS, Check, Probe
from lmlab.evaluation.protocol import Protocol

# Multiplications that the checks of the model may take at the end of a training: some 0.3 s of two cores.
QUICK_WORK = 1e10
# {Store.made, and whether its tokenizer comes from its text: what was found}
_known: dict[tuple[Path, int, bool], list[Check]] = {}


def quick(
    model: nn.Module,
    store: Store,
    protocol: Protocol,
    device: str,
    measured: Mapping[str, Mapping[str, float]],
    trained_here: bool,
) -> list[Check]:
    """What can be asked in less than a second: of little text, and without reading the source again.

    measured: {split: sums} as results.json has them. trained_here: whether the tokenizer comes from this text.
    """
    checks = _of_model(model, store, protocol, device, QUICK_WORK)
    return [*checks, text_checks.ledger(store, _whole(measured, protocol), None), *_of_store(store, trained_here)]


def _of_store(store: Store, trained_here: bool) -> list[Check]:
    """What a store alone tells. Once a process for each: a worker of a sweep trains on the same text many times."""
    if (key := (*store.made, trained_here)) not in _known:
        given = None if trained_here and store.tokenizer.kind != "byte" else "the tokenizer was not trained here"
        checks = [text_checks.decoding(store, None), text_checks.vocabulary(store, None, given)]
        _known[key] = [*checks, text_checks.tokens_overlap(store)]
    return _known[key]


def full(
    model: nn.Module,
    store: Store,
    protocol: Protocol,
    device: str,
    measured: Mapping[str, Mapping[str, float]],
    corpus: Corpus,
    train_tokenizer: Callable[..., Any] | None,
    shown: int,
) -> list[Check]:
    """Everything, over all of the source. train_tokenizer: as the run's was; None where it came from elsewhere.

    shown: passages of each kind and split that train and held-out text share.
    """
    checks = _of_model(model, store, protocol, device, None)
    checks += [text_checks.ledger(store, _whole(measured, protocol), corpus), text_checks.decoding(store, corpus)]
    given, remade = "the tokenizer was not trained on this text", None
    if store.tokenizer.kind == "byte":
        given = "bytes need no training"
    elif train_tokenizer is not None and "train" in store.splits:
        given = None
        remade = train_tokenizer(documents=_Train(corpus))
    checks.append(text_checks.vocabulary(store, remade, given))
    return [*checks, text_checks.words_overlap(corpus, store.splits, shown)]


class _Train:
    """The train split's pieces, as often as they are asked for."""

    def __init__(self, corpus: Corpus):
        self.corpus = corpus

    def __iter__(self):
        for document in self.corpus.documents("train"):
            yield from document.pieces


def _of_model(model: nn.Module, store: Store, protocol: Protocol, device: str, work: float | None) -> list[Check]:
    split = next((s for s in ("val", "test", "train") if s in store.splits and len(store.split(s)) > 2), None)
    if split is None:
        return []
    was_training = model.training
    model.eval()
    try:
        probe = Probe(model, store.split(split), store.tokenizer.start_id, protocol, device)
        if work is not None:
            probe.limit(work)
        return [check(probe) for check in MODEL_CHECKS]
    finally:
        model.train(was_training)


def _whole(measured: Mapping[str, Mapping[str, float]], protocol: Protocol) -> Mapping[str, Mapping[str, float]]:
    """Sums that are of whole splits."""
    return measured if protocol.limit_tokens is None else {}


def verdict(checks: list[Check]) -> str:
    """One line."""
    failed = [c for c in checks if c.passed is False]
    asked = [c for c in checks if c.passed is not None]
    if failed:
        return "audit: " + "; ".join(f"{c.name} FAILED: {c.figure}" for c in failed)
    left = len(checks) - len(asked)
    more = f", {left} not applicable" if left else ""
    return f"audit: {len(asked)} checks passed{more} ({', '.join(c.name for c in asked)})"


def record(checks: list[Check], began: float) -> dict[str, Any]:
    """What results.json keeps. began: of time.perf_counter()."""
    return {
        "passed": all(c.passed is not False for c in checks),
        "seconds": round(time.perf_counter() - began, 3),
        "checks": {c.name: c.as_dict() for c in checks},
    }
