"""The evaluation protocol: which tokens count, from which context, and how. No number without it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from lmlab.data.batching import cut, document_spans
from lmlab.data.store import Split
from lmlab.models import precision as precisions
from lmlab.types import Batch

POLICIES = ("carried", "sliding", "documents")
# What an <unk> may cost, and the version of protocols under which it does: raised when the same protocol would give
# other numbers.
VERSIONS = {"token": 1, "spelled": 2}
# What says which context a token is predicted from.
CONTEXT = {"policy", "lanes", "stride", "max_context"}
# Tokens a row that carries its state reads at once: speed and memory, never a number.
CHUNK = 128
# Rows side by side where nobody says how many and each has a state: a product of one position's wants many.
ROWS = 32
# Numbers in the hidden vectors of the windows that a processor reads at once. More no longer fit its cache: 8,192
# tokens of 256 numbers took a third longer than 1,024, and 128 of 64 twice as long as 2,048 (one core with AVX2).
AT_ONCE = 2**18
# Tokens of them that a GPU reads at once.
AT_ONCE_ON_GPU = 2**15


@dataclass(frozen=True)
class Protocol:
    """How a split is scored. Every token is scored exactly once, the first of a text from `start_id`.

    carried: the text in `lanes` equal parts, each read from its start with the state carried.
    sliding: windows of `max_context` tokens, one every `stride`; the first scores all of them, later ones their last
    `stride`, so that a token sees at least max_context - stride + 1 tokens, once there are as many.
    documents: each document from its own start; with a `stride` windows slide inside a document, without one the
    state is carried through it.
    max_context: how far back a token can see, in tokens; None: to the start. limit_tokens: only the first so many
    tokens of the split are scored; None: all.
    unknown: `token` predicts <unk> as a token like any other, so that a word outside the vocabulary costs no more than
    that; `spelled` adds what its letters cost under a spelling model (see `spelling`).
    normalisation: what sums are divided by. `source`: bytes, characters and words of the source text as it was read,
    <eos> being a token of no bytes; nothing is lower-cased, stripped or counted from decoded tokens.
    options: what was done besides reading (`adaptation`), with every value that it was done with.
    name: made of all that tells numbers apart: two protocols are comparable exactly when their names are the same.
    """

    version: int
    policy: str
    lanes: int | None
    stride: int | None
    max_context: int | None
    precision: str
    limit_tokens: int | None
    # These two are what a run has that was recorded before they could be chosen.
    unknown: str = "token"
    normalisation: str = "source"
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    name: str = ""

    def __post_init__(self):
        object.__setattr__(self, "name", _name(self))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def now(self, **changes: Any) -> "Protocol":
        """The same, or with these changes, in the version that is measured today: a run may be older."""
        changed = replace(self, **changes)
        return replace(changed, version=VERSIONS[changed.unknown])

    def describe(self, unknown: Mapping[str, int] | None = None) -> str:
        """One line for people. unknown: {split: its <unk>}, told where each costs its token and not its letters."""
        window = f"windows of {self.max_context} tokens, stride {self.stride}"
        context = f"context of {self.max_context} tokens" if self.max_context else "unbounded context"
        inside = window if self.stride else f"state carried, {context}"
        text = {
            "carried": f"carried through {self.lanes} lanes, {context}",
            "sliding": f"sliding {window}",
            "documents": f"each document alone, {inside}",
        }[self.policy]
        limit = "" if self.limit_tokens is None else f", first {self.limit_tokens:,} tokens"
        spelled = ", <unk> spelled out" if self.unknown == "spelled" else ""
        more = "".join(f", {key} {_values(value, ' ')}" for key, value in self.options.items())
        told = f"{text}, precision {self.precision}{limit}{spelled}{more} (protocol {self.version})"
        counts = {split: n for split, n in (unknown or {}).items() if n and self.unknown == "token"}
        if not counts:
            return told
        counted = ", ".join(
            f"{n:,} <unk>" + (f" of {split}" if len(unknown) > 1 else "") for split, n in counts.items()
        )
        return f"{told}; {counted} that cost no more than the token (evaluation.unknown=spelled charges their letters)"

    def differences(self, other: "Protocol", own_contexts: bool = False) -> list[str]:
        """What makes numbers of the two incomparable; empty when nothing does.

        Where both carry their state, how far back one can see is its model's own limit: the text is the same.
        own_contexts: what a token is predicted from may differ, but nothing else.
        """
        ours, theirs = self.as_dict(), other.as_dict()
        own = {"name"} | ({"max_context"} if self.policy == other.policy == "carried" else set())
        own |= CONTEXT if own_contexts else set()
        return [f"{k}: {ours[k]} against {theirs[k]}" for k in ours if k not in own and ours[k] != theirs[k]]


def _name(protocol: Protocol) -> str:
    """E.g. carried-16, sliding-256/128, documents-512/256-spelled-v2+cache(size=500,theta=0.3,weight=0.1)."""
    words = [protocol.policy]
    words += [] if protocol.lanes is None else [f"{protocol.lanes}"]
    if protocol.policy != "carried" and protocol.max_context is not None:
        words.append(f"{protocol.max_context}" + (f"/{protocol.stride}" if protocol.stride else ""))
    words += [] if protocol.precision == "32" else [protocol.precision]
    words += [] if protocol.limit_tokens is None else [f"first{protocol.limit_tokens}"]
    words += [] if protocol.unknown == "token" else [protocol.unknown]
    words += [] if protocol.normalisation == "source" else [protocol.normalisation]
    words += [] if protocol.version == 1 else [f"v{protocol.version}"]
    return "-".join(words) + "".join(f"+{key}({_values(value, ',')})" for key, value in protocol.options.items())


def _values(value: Any, separator: str) -> str:
    if isinstance(value, Mapping):
        return separator.join(f"{k}={_values(v, separator)}" for k, v in value.items())
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def resolve(
    policy: str,
    precision: str | int,
    model: nn.Module,
    lanes: int | None = None,
    stride: int | None = None,
    max_context: int | None = None,
    limit_tokens: int | None = None,
    unknown: str = "token",
) -> Protocol:
    """The protocol for this model. policy=auto: recurrent models carry their state, the others slide.

    max_context: None means the model's. stride: None means half of it. lanes: used where the state is carried.
    """
    if policy == "auto":
        policy = "carried" if model.recurrent else "sliding"
    if policy not in POLICIES:
        raise ValueError(f"evaluation.policy={policy!r} must be auto or one of {', '.join(POLICIES)}")
    if limit_tokens is not None and limit_tokens < 1:
        raise ValueError(f"evaluation.limit_tokens={limit_tokens} must be at least 1, or null for all")
    if unknown not in VERSIONS:
        raise ValueError(f"evaluation.unknown={unknown} must be one of {', '.join(VERSIONS)}")
    fixed = {"version": VERSIONS[unknown], "policy": policy, "limit_tokens": limit_tokens, "unknown": unknown}
    fixed["precision"] = precisions.check("evaluation.precision", precision)
    if policy == "carried" or (policy == "documents" and model.recurrent):
        return Protocol(**fixed, **_carried(policy, model, lanes, stride, max_context))
    return Protocol(**fixed, **_windowed(policy, model, stride, max_context))


def check_lanes(evaluation: Mapping[str, Any], protocols: Iterable[Protocol]) -> None:
    """Raise ValueError where lanes are asked for beside a run's own context, and none of the protocols has any."""
    asked = None if "_target_" in evaluation else evaluation.get("lanes")
    protocols = list(protocols)
    if asked is not None and all(protocol.lanes is None for protocol in protocols):
        names = ", ".join(dict.fromkeys(protocol.name for protocol in protocols))
        raise ValueError(f"evaluation.lanes={asked} does nothing under {names}: add evaluation=carried")


def _carried(policy: str, model: nn.Module, lanes: int | None, stride: int | None, max_context: int | None) -> dict:
    for key, value in (("stride", stride), ("max_context", max_context)):
        if value is not None:
            raise ValueError(f"evaluation.{key}={value} needs evaluation=sliding: this model's state is carried")
    if not getattr(model, "slides", True):
        raise ValueError(
            f"evaluation.policy={policy} carries the state past max_context={model.max_context}, which learned "
            "positions cannot; use evaluation=sliding"
        )
    if policy == "carried" and (lanes is None or lanes < 1):
        raise ValueError(f"evaluation.lanes={lanes} must be at least 1 where the state is carried")
    return {"lanes": lanes if policy == "carried" else None, "stride": None, "max_context": model.max_context}


def _windowed(policy: str, model: nn.Module, stride: int | None, max_context: int | None) -> dict:
    most = model.max_context
    if max_context is None and most is None:
        raise ValueError(
            f"evaluation.policy={policy} needs evaluation.max_context=N: this model has no limit of its own"
        )
    context = most if max_context is None else max_context
    if context < 1 or (most is not None and context > most):
        raise ValueError(f"evaluation.max_context={context} must be at least 1 and at most model.max_context={most}")
    stride = max(1, context // 2) if stride is None else stride
    if not 1 <= stride <= context:
        raise ValueError(f"evaluation.stride={stride} must be at least 1 and at most max_context={context}")
    return {"lanes": None, "stride": stride, "max_context": context}


def unknown(split: Split, unk_id: int | None, protocol: Protocol) -> int:
    """How many of the tokens that the protocol scores are <unk>."""
    return 0 if unk_id is None else int((np.asarray(split.ids[: protocol.limit_tokens]) == unk_id).sum())


def mean_charge(split: Split, protocol: Protocol) -> float:
    """Nats a token that the protocol adds to what a model says of the split."""
    return 0.0 if split.charges is None else float(split.charges[: protocol.limit_tokens].mean(dtype=np.float64))


def at_once(model: nn.Module, device: torch.device | str) -> int | None:
    """Tokens of windows that the device reads fastest side by side; None where it is rows that count."""
    if torch.device(device).type != "cpu":
        return AT_ONCE_ON_GPU
    return None if model.recurrent else AT_ONCE // model.d_model


def batches(
    split: Split,
    protocol: Protocol,
    start_id: int,
    batch_size: int | None,
    limit_tokens: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    chunk: int = CHUNK,
    at_once: int | None = None,
) -> Iterator[Batch]:
    """This rank's share of the split, every token scored exactly once whatever the batch size, ranks and chunk.

    batch_size: lanes, windows or documents side by side; None takes ROWS, or of windows as many as have `at_once`
    tokens. limit_tokens: score the first so many, no more than the protocol's. chunk: tokens a carried row reads at
    once.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    n_tokens = min(n for n in (len(split), limit_tokens, protocol.limit_tokens) if n is not None)
    if not n_tokens:
        raise ValueError("the split to evaluate has no tokens; give it some text")
    if protocol.policy == "carried":
        edges = np.arange(protocol.lanes + 1) * n_tokens // protocol.lanes
        starts, lengths = edges[:-1], np.diff(edges)
    elif protocol.policy == "documents":
        starts, lengths = document_spans(split, n_tokens)
    else:
        starts, lengths = np.array([0]), np.array([n_tokens])
    # Only a lane goes on in the middle of its text: its first input is the token before it.
    begins = (starts == 0) | (protocol.policy != "carried")
    if protocol.stride is None:
        rows = [starts, lengths, begins]
    else:
        rows = _windows(starts, lengths, protocol.max_context, protocol.stride)
    # Longest first: neighbours differ little, so there is little padding. Stable, hence the same everywhere.
    order = np.argsort(-rows[1], kind="stable")
    order = order[rows[1][order] > 0][rank::world_size]
    done = 0
    while done < len(order):
        size = batch_size or ROWS
        if batch_size is None and at_once is not None and protocol.stride is not None:
            size = max(1, at_once // int(rows[1][order[done]]))
        group = [column[order[done : done + size]] for column in rows]
        done += size
        if protocol.stride is None:
            yield from _carry(split, start_id, chunk, *group)
        else:
            yield _slide(split, start_id, *group)


def _windows(starts: np.ndarray, lengths: np.ndarray, context: int, stride: int) -> list[np.ndarray]:
    """Starts, lengths, whether each begins its text, and how many targets are context only: (windows,) each."""
    # Every window after the first adds `stride` tokens, the last one perhaps fewer.
    n_windows = 1 + -(-np.maximum(lengths - context, 0) // stride)
    text = np.repeat(np.arange(len(starts)), n_windows)
    nth = np.arange(len(text)) - np.repeat(np.cumsum(n_windows) - n_windows, n_windows)
    offsets = nth * stride
    skip = np.where(nth == 0, 0, context - stride)
    return [starts[text] + offsets, np.minimum(context, lengths[text] - offsets), nth == 0, skip]


def _slide(
    split: Split, start_id: int, starts: np.ndarray, lengths: np.ndarray, begins: np.ndarray, skip: np.ndarray
) -> Batch:
    return cut(split, starts, int(lengths.max()), start_id, lengths=lengths, skip=skip, begins=begins)


def _carry(
    split: Split, start_id: int, chunk: int, starts: np.ndarray, lengths: np.ndarray, begins: np.ndarray
) -> Iterator[Batch]:
    """Rows in step, `chunk` tokens at a time; those that are done are padded until the longest is."""
    width = min(chunk, int(lengths.max()))
    for done in range(0, int(lengths.max()), width):
        left = np.clip(lengths - done, 0, width)
        # A row that is done stands still at its last token, so that no position lies past the split.
        at = np.minimum(starts + done, starts + lengths - 1)
        batch = cut(split, at, width, start_id, lengths=left, begins=begins & (done == 0))
        yield replace(batch, reset=torch.full((len(starts),), done == 0))
