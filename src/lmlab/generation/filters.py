"""Logit filters, with the meaning and in the order that `transformers` gives them.

Each takes scores (B, V), up to an additive constant per row, and returns scores with forbidden tokens at -inf.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lmlab.types import for_float64

Scores = Float[Tensor, "B V"]


def forbid(scores: Scores, ids: Int[Tensor, " N"]) -> Scores:
    """Never these tokens."""
    # A copy of all scores costs more than a step of a small model.
    if not len(ids):
        return scores
    return scores.index_fill(1, ids, -math.inf)


def penalise_repetition(scores: Scores, seen: Bool[Tensor, "B V"], penalty: float) -> Scores:
    """Tokens of the prompt and of the text so far lose: divided by `penalty` above zero, multiplied below.

    Keskar et al. 2019 (CTRL), section 4.1; not invariant to a constant added to the scores.
    """
    penalised = torch.where(scores < 0, scores * penalty, scores / penalty)
    return torch.where(seen, penalised, scores)


def divide_by_temperature(scores: Scores, temperature: float) -> Scores:
    """Below 1 sharper, above 1 flatter; the maximum becomes 0, so that small temperatures do not overflow."""
    return (scores - scores.amax(-1, keepdim=True)) / temperature


def keep_top_k(scores: Scores, k: int) -> Scores:
    """The k likeliest tokens, and those that tie with the last of them (Fan et al. 2018)."""
    least = scores.topk(min(k, scores.shape[-1])).values[:, -1:]
    return scores.masked_fill(scores < least, -math.inf)


def keep_top_p(scores: Scores, p: float) -> Scores:
    """The fewest likeliest tokens whose probabilities reach p: the nucleus (Holtzman et al. 2020, eq. 2)."""
    ordered, order = scores.sort(descending=True)
    probs = ordered.softmax(-1)
    # A token stays while those before it have not reached p; so the first always stays.
    outside = probs.cumsum(-1) - probs >= p
    outside[:, 0] = False
    return scores.masked_fill(outside.scatter(1, order, outside), -math.inf)


def keep_min_p(scores: Scores, p: float) -> Scores:
    """Tokens at least p times as probable as the likeliest one (Nguyen et al. 2024)."""
    if p == 0:
        return scores
    return scores.masked_fill(scores < scores.amax(-1, keepdim=True) + math.log(p), -math.inf)


def warp(scores: Scores, temperature: float, top_k: int | None, top_p: float | None, min_p: float | None) -> Scores:
    """The filters of sampling in their order: temperature, top_k, top_p, min_p; None leaves one out."""
    scores = divide_by_temperature(scores, temperature)
    if top_k is not None:
        scores = keep_top_k(scores, top_k)
    if top_p is not None and top_p < 1:
        scores = keep_top_p(scores, top_p)
    if min_p is not None:
        scores = keep_min_p(scores, min_p)
    return scores


def draw(scores: Scores, uniforms: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """One token a row from softmax(scores), by inversion of the cumulative distribution at `uniforms` in [0, 1).

    One random number a token makes a row's draws independent of the vocabulary's size and of the other rows.
    """
    cumulative = for_float64(scores).double().softmax(-1).cumsum(-1)
    total = cumulative[:, -1:]
    # Strictly below the total, so that the token found has a probability above zero.
    uniforms = uniforms.to(total.device, torch.float64)
    target = torch.minimum(uniforms[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    found = torch.searchsorted(cumulative, target, right=True).squeeze(1).clamp(max=scores.shape[1] - 1)
    return found.to(scores.device)


def sample(
    scores: Scores,
    uniforms: Float[Tensor, " B"],
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
) -> Int[Tensor, " B"]:
    """draw(warp(scores, ...), uniforms); with top_k, where none ties with the last, among those k alone.

    In the order of ids, so that the same number finds the same token.
    """
    if top_k is not None and top_k < scores.shape[1]:
        values, ids = scores.topk(top_k + 1)
        if bool((values[:, top_k] < values[:, top_k - 1]).all()):
            ids, order = ids[:, :top_k].sort()
            place = draw(warp(values.gather(1, order), temperature, None, top_p, min_p), uniforms)
            return ids.gather(1, place[:, None])[:, 0]
    return draw(warp(scores, temperature, top_k, top_p, min_p), uniforms)
