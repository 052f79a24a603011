"""The log-probability of given text, laid open token by token: ln P(W) = sum over t of ln P(w_t | w_<t)."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from lmlab.errors import check_text
from lmlab.metrics import Likelihood
from lmlab.models.carry import Carry, device_of
from lmlab.scoring.display import as_table
from lmlab.scoring.score import Alternative, TextScore, TokenScore, as_json
from lmlab.types import for_float64

__all__ = [
    "Alternative",
    "ContinuationScore",
    "TextScore",
    "TokenScore",
    "as_json",
    "as_table",
    "continuation",
    "continuations",
    "score_many",
    "score_text",
]

# Positions, of all rows, whose distributions over the vocabulary are held at once: bounds memory, changes no score.
CHUNK = 256


class ContinuationScore(NamedTuple):
    """ln P(continuation | context) in nats; is_greedy: was the continuation's each token the likeliest one?"""

    log_prob: float
    is_greedy: bool
    n_tokens: int
    n_bytes: int


class _Row(NamedTuple):
    """Scores of n tokens: log_probs and ranks (n,), the likeliest ids and their log-probabilities (n, top)."""

    log_probs: np.ndarray
    ranks: np.ndarray
    top_ids: np.ndarray
    top_log_probs: np.ndarray


def score_text(model: nn.Module, tokenizer, text: str, *, top: int, eos: bool, chunk_size: int = CHUNK) -> TextScore:
    """Score one text of any length; see `score_many`."""
    return next(score_many(model, tokenizer, [text], top=top, eos=eos, batch_size=1, chunk_size=chunk_size))


def score_many(
    model: nn.Module,
    tokenizer,
    texts: Iterable[str],
    *,
    top: int,
    eos: bool,
    batch_size: int,
    chunk_size: int = CHUNK,
) -> Iterator[TextScore]:
    """Score each text by itself, predicted from `tokenizer.start_id` on, `batch_size` texts at a time.

    The state is carried through a text, so each token sees all the context that the model can hold; learned
    positions slide with a stride of half the context. top: how many alternatives to list. eos: score the <eos> that
    closes the text too (where the tokenizer closes such a text). batch_size and chunk_size change no score.
    """
    if top < 0:
        raise ValueError(f"top={top} must be 0 or more")
    for group in _groups(texts, batch_size):
        for text in group:
            check_text("text", text)
        encodings = [tokenizer.encode(text) for text in group]
        ids = [
            [*encoding.ids.tolist(), *([tokenizer.eos_id] if eos and tokenizer.needs_eos(text) else [])]
            for text, encoding in zip(group, encodings, strict=True)
        ]
        rows = _score_rows(model, tokenizer, ids, top, chunk_size)
        for text, encoding, row_ids, row in zip(group, encodings, ids, rows, strict=True):
            yield _text_score(tokenizer, text, encoding.ends, row_ids, row)


def continuation(model: nn.Module, tokenizer, context: str, continuation: str) -> ContinuationScore:
    """Score what follows a context; see `continuations`."""
    return next(continuations(model, tokenizer, [(context, continuation)], batch_size=1))


def continuations(
    model: nn.Module, tokenizer, pairs: Iterable[tuple[str, str]], *, batch_size: int, chunk_size: int = CHUNK
) -> Iterator[ContinuationScore]:
    """Score the second text of each pair after the first.

    The two are encoded together, as they would stand in running text; a token that spans the border (the space
    before a word, say) belongs to the continuation.
    """
    for group in _groups(pairs, batch_size):
        encodings = [tokenizer.encode(before + after) for before, after in group]
        rows = _score_rows(model, tokenizer, [e.ids.tolist() for e in encodings], 0, chunk_size)
        for (before, after), encoding, row in zip(group, encodings, rows, strict=True):
            inside = np.asarray(encoding.ends) > len(before.encode())
            yield ContinuationScore(
                float(row.log_probs[inside].sum()),
                bool((row.ranks[inside] == 1).all()),
                int(inside.sum()),
                len(after.encode()),
            )


def _groups(items: Iterable, size: int) -> Iterator[list]:
    items = iter(items)
    while group := list(islice(items, size)):
        yield group


def _score_rows(model: nn.Module, tokenizer, rows: Sequence[list[int]], top: int, chunk_size: int) -> list[_Row]:
    """Score rows of ids side by side: padded at their ends, which causal models do not see, and dropped when done."""
    if tokenizer.vocab_size > model.vocab_size:
        raise ValueError(
            f"tokenizer.vocab_size={tokenizer.vocab_size} exceeds model.vocab_size={model.vocab_size}: "
            "use the tokenizer that the model was trained with"
        )
    top = min(top, tokenizer.vocab_size)
    empty = _Row(np.zeros(0), np.zeros(0, int), np.zeros((0, top), int), np.zeros((0, top)))
    parts: list[list[_Row]] = [[empty] for _ in rows]
    was_training = model.training
    model.eval()
    try:
        for number, part in _score_chunks(model, tokenizer, rows, top, chunk_size):
            parts[number].append(part)
    finally:
        model.train(was_training)
    return [_Row(*map(np.concatenate, zip(*part, strict=True))) for part in parts]


@torch.inference_mode()
def _score_chunks(
    model: nn.Module, tokenizer, rows: Sequence[list[int]], top: int, chunk_size: int
) -> list[tuple[int, _Row]]:
    """Stretch by stretch, each row's scores, as (number of the row, scores)."""
    carry, device, done, scores = Carry(model), device_of(model), 0, []
    alive = [number for number, ids in enumerate(rows) if ids]
    while alive:
        width = max(1, min(chunk_size // len(alive), max(len(rows[number]) for number in alive) - done))
        stretches = [[tokenizer.start_id, *rows[number]][done : done + width + 1] for number in alive]
        padded = [ids + [tokenizer.start_id] * (width + 1 - len(ids)) for ids in stretches]
        tokens = torch.tensor(padded, device=device)
        log_probs = model.head.log_probs(carry.read(tokens[:, :-1])).float()
        # A model may have more rows than its tokenizer has ids (padded embeddings): those are no alternatives.
        arrays = _look_up(log_probs[..., : tokenizer.vocab_size], tokens[:, 1:], top)
        if any(np.isnan(arrays[0][place, : len(ids) - 1]).any() for place, ids in enumerate(stretches)):
            raise ValueError("the model gave no number: its weights diverged; take another checkpoint")
        for place, (number, ids) in enumerate(zip(alive, stretches, strict=True)):
            scores.append((number, _Row(*(array[place, : len(ids) - 1] for array in arrays))))
        done += width
        left = [place for place, number in enumerate(alive) if len(rows[number]) > done]
        if left and len(left) < len(alive):
            carry.keep(torch.tensor(left, device=device))
        alive = [alive[place] for place in left]
    return scores


def _look_up(log_probs: torch.Tensor, targets: torch.Tensor, top: int) -> list[np.ndarray]:
    chosen = log_probs.gather(-1, targets[..., None])
    ranks = 1 + (log_probs > chosen).sum(-1)
    best = log_probs.topk(top, -1)
    tensors = (for_float64(chosen[..., 0]).double(), ranks, best.indices, for_float64(best.values).double())
    return [tensor.cpu().numpy() for tensor in tensors]


def _text_score(tokenizer, text: str, ends: np.ndarray, ids: list[int], row: _Row) -> TextScore:
    sizes, source = np.diff(np.asarray(ends, dtype=np.int64), prepend=0).tolist(), text.encode()
    if len(ids) > len(sizes):
        # The closing <eos> has no bytes of its own, but those that no token claims (white space at the end).
        sizes.append(len(source) - sum(sizes))
    columns = (ids, row.log_probs.tolist(), row.ranks.tolist(), sizes, row.top_ids.tolist(), row.top_log_probs.tolist())
    tokens = tuple(
        TokenScore(
            tokenizer.token(id),
            id,
            log_prob,
            rank,
            n_bytes,
            tuple(Alternative(tokenizer.token(i), i, p) for i, p in zip(top_ids, top_log_probs, strict=True)),
        )
        for id, log_prob, rank, n_bytes, top_ids, top_log_probs in zip(*columns, strict=True)
    )
    covered = source[: sum(sizes)].decode(errors="replace")
    likelihood = Likelihood(
        nats=-float(row.log_probs.sum()),
        tokens=len(ids),
        bytes=sum(sizes),
        chars=len(covered),
        words=len(covered.split()),
    )
    return TextScore(text, tokens, likelihood)
