"""Which tokens may be drawn, and how one is."""

import itertools
import math

import pytest
import torch

from lmlab.generation import filters


def probs_after(name: str, probs: list[float], *args) -> list[float]:
    return getattr(filters, name)(torch.tensor([probs]).log(), *args).softmax(-1)[0].tolist()


def test_top_p_keeps_the_fewest_tokens_that_reach_p():
    probs = [0.1, 0.5, 0.15, 0.25]
    # 0.5 alone reaches 0.5; 0.5 + 0.25 reaches 0.7; with 0.15 more 0.8.
    assert probs_after("keep_top_p", probs, 0.5) == pytest.approx([0, 1, 0, 0])
    assert probs_after("keep_top_p", probs, 0.7) == pytest.approx([0, 2 / 3, 0, 1 / 3])
    assert probs_after("keep_top_p", probs, 0.8) == pytest.approx([0, 5 / 9, 1.5 / 9, 2.5 / 9])
    assert probs_after("keep_top_p", probs, 1e-9) == pytest.approx([0, 1, 0, 0])


def test_of_ties_at_the_edge_of_the_nucleus_the_lowest_ids_are_kept():
    # Each of 0.125 after the first: 0.25 + 3 x 0.125 reaches 0.6, all of them 1.
    probs = [0.125, 0.125, 0.25, 0.125, 0.125, 0.125, 0.125]
    assert probs_after("keep_top_p", probs, 0.6) == pytest.approx([0.2, 0.2, 0.4, 0.2, 0, 0, 0])
    assert probs_after("keep_top_p", probs, 0.9999) == pytest.approx(probs)
    assert probs_after("keep_top_p", [0.25] * 4, 0.7) == pytest.approx([1 / 3] * 3 + [0])


@pytest.mark.parametrize("p", [1e-9, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("coarse", [False, True])
def test_the_nucleus_is_that_of_a_stable_sort(p, coarse):
    torch.manual_seed(0)
    scores = 3 * torch.randn(50, 300)
    scores = scores.round() if coarse else scores
    ordered, order = scores.sort(descending=True, stable=True)
    probs = ordered.softmax(-1)
    outside = probs.cumsum(-1) - probs >= p
    outside[:, 0] = False
    expected = scores.masked_fill(outside.scatter(1, order, outside), -math.inf)
    assert torch.equal(filters.keep_top_p(scores, p), expected)


def test_the_likeliest_is_the_first_of_equals():
    scores = [[0.0, 2.0, 2.0], [-math.inf, -math.inf, -3.0], [1.0, 0.0, 1.0]]
    assert filters.likeliest(torch.tensor(scores)).tolist() == [1, 2, 0]


def test_top_k_keeps_ties_and_min_p_compares_with_the_likeliest():
    assert probs_after("keep_top_k", [0.4, 0.2, 0.2, 0.2], 2) == pytest.approx([0.4, 0.2, 0.2, 0.2])
    assert probs_after("keep_top_k", [0.5, 0.3, 0.2], 9) == pytest.approx([0.5, 0.3, 0.2])
    assert probs_after("keep_min_p", [0.6, 0.29, 0.11], 0.2) == pytest.approx([0.6 / 0.89, 0.29 / 0.89, 0])


def test_temperature_squares_probabilities_at_one_half():
    assert probs_after("divide_by_temperature", [0.6, 0.3, 0.1], 0.5) == pytest.approx(
        [0.36 / 0.46, 0.09 / 0.46, 0.01 / 0.46]
    )


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"), [(None, None, None), (7, 0.9, 0.05), (5, None, 0.3), (None, 0.6, None)]
)
@pytest.mark.parametrize("penalty", [1.0, 1.7, 0.5])
def test_filters_agree_with_transformers_in_meaning_and_order(temperature, top_k, top_p, min_p, penalty):
    process = pytest.importorskip("transformers.generation.logits_process", reason="transformers is not installed")
    torch.manual_seed(0)
    logits, ids = 4 * torch.randn(6, 40), torch.randint(40, (6, 9))
    theirs = process.LogitsProcessorList([process.RepetitionPenaltyLogitsProcessor(penalty)])
    theirs.append(process.TemperatureLogitsWarper(temperature))
    theirs += [] if top_k is None else [process.TopKLogitsWarper(top_k)]
    theirs += [] if top_p is None else [process.TopPLogitsWarper(top_p)]
    theirs += [] if min_p is None else [process.MinPLogitsWarper(min_p)]
    seen = torch.zeros(6, 40, dtype=torch.bool).scatter(1, ids, True)
    ours = filters.warp(filters.penalise_repetition(logits, seen, penalty), temperature, top_k, top_p, min_p)
    torch.testing.assert_close(ours.softmax(-1), theirs(ids, logits).softmax(-1))


def test_draw_inverts_the_cumulative_distribution_and_never_takes_an_impossible_token():
    scores = torch.tensor([[0.0, 0.5, 0.0, 0.3, 0.2, 0.0]]).log()
    uniforms = torch.tensor([0, 0.499, 0.501, 0.799, 0.801, 1 - 2**-53], dtype=torch.float64)
    assert filters.draw(scores.expand(6, -1), uniforms).tolist() == [1, 1, 3, 3, 4, 4]


def test_ties_with_the_last_of_the_top_k_need_no_look_at_the_whole_vocabulary(monkeypatch):
    looked = []
    monkeypatch.setattr(
        filters, "warp", lambda scores, *how, warp=filters.warp: looked.append(scores) or warp(scores, *how)
    )
    scores = torch.arange(500.0).repeat_interleave(2)[None, :-1]
    for top_k, expected in ((5, 5 + 1), (4, 4 + filters.TIES)):
        filters.sample(scores, torch.tensor([0.5], dtype=torch.float64), 1.0, top_k, None, None)
        assert looked.pop().shape[1] == expected


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("banned", [(), (0, 3), tuple(range(36))])
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [*itertools.product([0.7, 1.0], [None, 1, 5, 39, 40, 100], [None, 0.6], [None, 0.2])],
)
def test_drawing_among_the_top_k_alone_takes_the_same_tokens(
    temperature, top_k, top_p, min_p, banned, ties, monkeypatch
):
    monkeypatch.setattr(filters, "TIES", 9)
    draws = torch.Generator().manual_seed(3)
    scores = torch.randn(200, 40, generator=draws) * 2
    scores = scores.round() if ties else scores
    scores[:, list(banned)] = -math.inf
    uniforms = torch.rand(200, generator=draws, dtype=torch.float64)
    settings = (temperature, top_k, top_p, min_p)
    expected = filters.draw(filters.warp(scores, *settings), uniforms)
    assert torch.equal(filters.sample(scores, uniforms, *settings), expected)
    for row in range(20):
        assert filters.sample(scores[row : row + 1], uniforms[row : row + 1], *settings) == expected[row]
