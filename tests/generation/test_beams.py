"""Beam search against exhaustive search and an independent implementation."""

import itertools
import math

import pytest
import torch
from tests.generation.toys import ABC, Head, Learned, Table, one, write
from torch import nn


def trap() -> Table:
    """Greedy takes a (0.6) and then at best 0.3; b (0.4) leads to a sure thing."""
    end = [1.0, 0, 0, 0, 0, 0, 0]
    return Table.bigram(
        [[0, 0, 0.6, 0.4, 0, 0, 0], end, [0.3, 0, 0.2, 0.2, 0.3, 0, 0], [0, 0, 0, 0, 0, 1, 0], end, end, end]
    )


def test_beams_find_what_greedy_misses():
    greedy, best = one(trap()), one(trap(), num_beams=2)
    assert greedy.ids[0] == 2
    assert (best.text, best.stopped_because) == ("bd", "eos")
    assert best.log_prob == pytest.approx(math.log(0.4), rel=1e-5)


def test_length_penalty_decides_between_short_and_long():
    end = [1.0, 0, 0, 0, 0, 0, 0]
    # "" 0.3, "a" 0.7 * 0.4 = 0.28, "ab" 0.7 * 0.6 * 0.5 = 0.21, "abb" and "abc" less.
    rows = [[0.3, 0, 0.7, 0, 0, 0, 0], end, [0.4, 0, 0, 0.6, 0, 0, 0], [0.5, 0, 0, 0.25, 0.25, 0, 0], end, end, end]
    table = Table.bigram(rows)
    sums, means = (write(table, num_beams=4, num_samples=3, length_penalty=p)[0] for p in (0.0, 1.0))
    assert [g.text for g in sums] == ["", "a", "ab"]
    # ln 0.21 / 3 = -0.52, above ln 0.28 / 2 = -0.64 and ln 0.3 = -1.2; the best of length 4 is "abc" with
    # ln(0.7 * 0.6 * 0.25) / 4 = -0.56.
    assert [g.text for g in means] == ["ab", "abc", "a"]


@pytest.mark.parametrize("length_penalty", [0.0, 0.7, 1.0, 2.0, -0.5])
def test_beams_wide_enough_are_an_exhaustive_search(length_penalty):
    torch.manual_seed(1)
    table, steps, k = Table(2 * torch.randn(8, 7, 7)), 3, 7**3
    results = write(table, ["ab"], num_beams=k, num_samples=5, length_penalty=length_penalty, max_new_tokens=steps)[0]
    start, every = [0, *ABC.encode("ab").ids.tolist()], {}
    for ids in itertools.product(range(7), repeat=steps):
        ids = ids[: ids.index(0) + 1] if 0 in ids else ids
        if 1 not in ids:
            log_probs = table(torch.tensor([[*start, *ids]]))[0].log_softmax(-1)[0, len(start) - 1 : -1]
            every[ids] = sum(log_probs[t, i].item() for t, i in enumerate(ids))
    best = sorted(every, key=lambda ids: every[ids] / len(ids) ** length_penalty, reverse=True)[:5]
    assert [g.ids for g in results] == best
    assert [g.log_prob for g in results] == pytest.approx([every[ids] for ids in best], rel=1e-5)


def test_beams_past_learned_positions_and_with_stop_strings():
    torch.manual_seed(2)
    model = Learned(7, 8)
    results = write(model, ["abcd", ""], num_beams=4, num_samples=2, max_new_tokens=20, stop=["cd"], stop_at_eos=False)
    assert all("cd" not in g.text and len(texts) == 2 for texts in results for g in texts)
    alone = write(model, ["abcd"], num_beams=4, num_samples=2, max_new_tokens=20, stop=["cd"], stop_at_eos=False)
    assert alone[0] == results[0]


def test_as_many_go_on_as_are_wanted_where_more_than_half_of_the_best_complete_a_stop_string():
    # "a" is sure, and after it b, c, d and "ab" (0.3, 0.25, 0.2, 0.2) each complete a stop string; a (0.05) is the
    # fifth of two beams' four best, and then <eos> is sure.
    table = Table.bigram([[0, 0, 1.0, 0, 0, 0, 0]] + [[1.0, 0, 0, 0, 0, 0, 0]] * 6).table.clone()
    table[1, 2] = torch.tensor([0, 0, 0.05, 0.3, 0.25, 0.2, 0.2]).log()
    found = write(Table(table), num_beams=2, num_samples=2, stop=["ab", "ac", "ad"], length_penalty=2.0)[0]
    # ln 0.3 / 2**2 = -0.301, ln 0.05 / 3**2 = -0.333, ln 0.25 / 2**2 = -0.347.
    assert [(g.ids, g.stopped_because) for g in found] == [((2, 3), "stop"), ((2, 2, 0), "eos")]
    assert found[1].log_prob == pytest.approx(math.log(0.05), rel=1e-5)


class HuggingFace(nn.Module):
    """GPT-2 of `transformers` behind our contract, without a cache: the state is the text."""

    recurrent, slides = False, True

    def __init__(self, gpt2):
        super().__init__()
        self.gpt2, self.head = gpt2, Head()
        self.eval()
        self.vocab_size, self.max_context = gpt2.config.vocab_size, gpt2.config.n_positions

    def forward(self, tokens, state=None):
        text = tokens if state is None else torch.cat([state[0] - 1, tokens], 1)
        return self.gpt2(text).logits[:, -tokens.shape[1] :], (text + 1,)


BEAMS = {"num_beams": 3, "num_samples": 3, "length_penalty": 1.0}


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("settings", [{}, BEAMS, BEAMS | {"num_samples": 1, "length_penalty": 0.0}])
def test_greedy_and_beams_write_what_transformers_writes(settings, penalty):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(5)
    shape = {"vocab_size": 7, "n_positions": 64, "n_embd": 16, "n_layer": 1, "n_head": 2}
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, initializer_range=0.5)).eval()
    how = settings | {"max_new_tokens": 12, "repetition_penalty": penalty}
    ours = write(HuggingFace(gpt2), ["abc"], ban_unk=False, **how)[0]
    ids = torch.tensor([[0, *ABC.encode("abc").ids.tolist()]])
    theirs = gpt2.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=0,
        pad_token_id=0,
        num_beams=settings.get("num_beams", 1),
        num_return_sequences=settings.get("num_samples", 1),
        length_penalty=settings.get("length_penalty", 1.0),
        early_stopping="never" if settings else False,
        # The start token is no part of the prompt.
        logits_processor=[transformers.RepetitionPenaltyLogitsProcessor(penalty, prompt_ignore_length=1)],
    )
    for result, row in zip(ours, theirs[:, ids.shape[1] :].tolist(), strict=True):
        assert list(result.ids) == row[: len(result.ids)]
        assert all(i == 0 for i in row[len(result.ids) :])
