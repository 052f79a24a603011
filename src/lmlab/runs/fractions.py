"""Runs on parts of a text, and what they say of more of it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lmlab.config import differences, lengthened
from lmlab.evaluation.protocol import Protocol

if TYPE_CHECKING:
    from lmlab.runs.run import Run

# Differences of two runs that a line names.
SHOWN = 8


def sizes_and_losses(run: "Run", parts: "Sequence[Run]") -> tuple[list[int], list[float]]:
    """Tokens of train that each run had, and its loss on val in nats per token; `run` first.

    Raises ValueError where one has not come to its end, or differs from `run` in more than train_share and the seed.
    """
    for part in parts:
        check(run, part)
    found = [_size_and_loss(one) for one in (run, *parts)]
    return [size for size, _ in found], [loss for _, loss in found]


def check(run: "Run", part: "Run") -> None:
    """Raises ValueError where `part` differs in more than train_share and the seed."""
    asked = differences(*(one.directory.asked() | lengthened(one.directory.results()) for one in (run, part)))
    differing = [key for key in asked if key not in ("train_share", "seed")]
    ours, theirs = run.config["decided"], part.config["decided"]
    # Where a text lies is no part of what was asked: at another place may be another text, and other tokens of it.
    made_of = {"the text": "fingerprint", "the tokenizer": "tokenizer"}
    differing += [name for name, key in made_of.items() if ours.get(key) != theirs.get(key)]
    differing += Protocol(**ours["protocol"]).differences(Protocol(**theirs["protocol"]))
    if differing:
        shown = ", ".join(differing[:SHOWN]) + (f" and {more} more" if (more := len(differing) - SHOWN) > 0 else "")
        raise ValueError(
            f"fractions: {part.path} differs from {run.path} in {shown}; only runs that differ in train_share alone, "
            "or in the seed besides, tell what more text would bring"
        )


def _size_and_loss(run: "Run") -> tuple[int, float]:
    # One that was interrupted has results, too: of a training that was shorter.
    if not run.directory.finished():
        raise ValueError(
            f"fractions: {run.path} has not come to its end: repeat the command that trained it, which continues it, "
            "or leave it out"
        )
    share = run.config.get("train_share", 1.0)
    return round(len(run.store().split("train")) * share), run.results["splits"]["val"]["nll"]
