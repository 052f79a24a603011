import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import nn

from lmlab.generation import Decoding, filters, generate
from lmlab.tokenizers import Encoding, byte, word
from lmlab.tokenizers.vocabulary import Vocabulary

NEUTRAL = {
    "max_new_tokens": 8,
    "temperature": 0.0,
    "top_k": None,
    "top_p": None,
    "min_p": None,
    "repetition_penalty": None,
    "num_samples": 1,
    "num_beams": 1,
    "length_penalty": 1.0,
    "stop": (),
    "stop_at_eos": None,
    "ban_unk": True,
    "seed": 0,
}


class Letters(Vocabulary):
    """Pieces of text as tokens, after <eos> and <unk>; the longest piece that fits is taken."""

    kind = "letters"

    def __init__(self, *pieces: str):
        specials = {"<eos>": 0, "<unk>": 1}
        super().__init__([b"", b"?", *(piece.encode() for piece in pieces)], specials, eos_id=0, unk_id=1)

    def encode(self, text: str) -> Encoding:
        source, ids, ends, at = text.encode(), [], [], 0
        while at < len(source):
            fits = [i for i, piece in enumerate(self.pieces) if i > 1 and source.startswith(piece, at)]
            ids.append(max(fits, key=lambda i: len(self.pieces[i]), default=1))
            at += len(self.pieces[ids[-1]]) if fits else len(source[at:].decode()[0].encode())
            ends.append(at)
        return Encoding(np.array(ids, dtype=np.int32), np.array(ends, dtype=np.int64))

    def to_json(self) -> str:
        return str(self.pieces)


class Head(nn.Module):
    """hidden is the logits."""

    def logits(self, hidden):
        return hidden

    def log_probs(self, hidden):
        return hidden.log_softmax(-1)

    def nll(self, hidden, targets):
        return -self.log_probs(hidden).gather(-1, targets[..., None])[..., 0]


class Table(nn.Module):
    """Logits looked up by the last two tokens (0 where there is none); counts the positions that it reads."""

    recurrent, max_context = True, None

    def __init__(self, logits: torch.Tensor):
        super().__init__()
        self.vocab_size = self.d_model = logits.shape[-1]
        self.register_buffer("table", logits)
        self.head = Head()
        self.widths: list[tuple[int, ...]] = []

    @classmethod
    def bigram(cls, probs) -> "Table":
        logits = torch.tensor(probs).log()
        return cls(logits.expand(len(logits) + 1, -1, -1))

    def forward(self, tokens, state=None):
        self.widths.append(tuple(tokens.shape))
        past = torch.zeros(len(tokens), 1, dtype=torch.long) if state is None else state[0]
        words = torch.cat([past, tokens + 1], 1)
        return self.table[words[:, :-1], tokens], (words[:, -1:],)


class Recurrent(nn.Module):
    """A GRU, the state of which it overwrites in place."""

    recurrent, max_context = True, None

    def __init__(self, vocab_size: int):
        super().__init__()
        self.vocab_size = self.d_model = vocab_size
        self.embed = nn.Embedding(vocab_size, 16)
        self.gru = nn.GRU(16, 16, batch_first=True)
        self.out = nn.Linear(16, vocab_size)
        self.head = Head()
        # Sharper than at the start, so that texts vary.
        nn.init.normal_(self.out.weight, std=2.0)

    def forward(self, tokens, state=None):
        hidden, last = self.gru(self.embed(tokens), None if state is None else state[0].transpose(0, 1).contiguous())
        last = last.transpose(0, 1)
        return self.out(hidden), (last if state is None else state[0].copy_(last),)


class Learned(nn.Module):
    """Learned positions: refuses to read past max_context."""

    recurrent, slides = False, False

    def __init__(self, vocab_size: int, max_context: int):
        super().__init__()
        self.vocab_size, self.max_context, self.d_model = vocab_size, max_context, vocab_size
        self.embed, self.positions = nn.Embedding(vocab_size, 16), nn.Embedding(max_context, 16)
        self.out = nn.Linear(16, vocab_size)
        self.head = Head()
        nn.init.normal_(self.out.weight, std=2.0)

    def forward(self, tokens, state=None):
        past = tokens[:, :0] if state is None else state[0] - 1
        text = torch.cat([past, tokens], 1)
        if text.shape[1] > self.max_context:
            raise ValueError(f"{text.shape[1]} tokens exceed max_context={self.max_context}")
        mixed = (self.embed(text) * self.positions.weight[: text.shape[1]]).cumsum(1)
        return self.out(mixed.tanh())[:, past.shape[1] :], (text + 1,)


ABC = Letters("a", "b", "c", "d", "ab")
FAMILIES = {
    "recurrent": lambda: Recurrent(7),
    "table": lambda: Table(torch.randn(8, 7, 7)),
    "learned": lambda: Learned(7, 8),
}


@pytest.fixture(params=FAMILIES)
def model(request):
    torch.manual_seed(3)
    return FAMILIES[request.param]()


def write(model, prompts=("",), tokenizer=ABC, on_text=None, batch_size=None, **settings):
    return generate(model, tokenizer, prompts, on_text=on_text, batch_size=batch_size, **(NEUTRAL | settings))


def one(*args, **settings):
    return write(*args, **settings)[0][0]


def naive_greedy(model, prompt: str, n: int, banned=(1,)) -> list[int]:
    """Reads the whole text anew for each token; past learned positions in windows that move by half of them."""
    ids = [0, *ABC.encode(prompt).ids.tolist()]
    first, start = len(ids), 0
    window = None if getattr(model, "slides", True) else model.max_context
    while (len(ids) < first + n and ids[-1] != 0) or len(ids) == first:
        while window and len(ids) - start > window:
            start += window - window // 2
        logits = model.head.logits(model(torch.tensor([ids[start:]]))[0])[0, -1].detach()
        logits[list(banned)] = -math.inf
        ids.append(int(logits.argmax()))
    return ids[first:]


# --- filters


def probs_after(name: str, probs: list[float], *args) -> list[float]:
    return getattr(filters, name)(torch.tensor([probs]).log(), *args).softmax(-1)[0].tolist()


def test_top_p_keeps_the_fewest_tokens_that_reach_p():
    probs = [0.1, 0.5, 0.15, 0.25]
    # 0.5 alone reaches 0.5; 0.5 + 0.25 reaches 0.7; with 0.15 more 0.8.
    assert probs_after("keep_top_p", probs, 0.5) == pytest.approx([0, 1, 0, 0])
    assert probs_after("keep_top_p", probs, 0.7) == pytest.approx([0, 2 / 3, 0, 1 / 3])
    assert probs_after("keep_top_p", probs, 0.8) == pytest.approx([0, 5 / 9, 1.5 / 9, 2.5 / 9])
    assert probs_after("keep_top_p", probs, 1e-9) == pytest.approx([0, 1, 0, 0])


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


# --- decoding


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("banned", [(), (0, 3), tuple(range(36))])
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [*itertools.product([0.7, 1.0], [None, 1, 5, 39, 40, 100], [None, 0.6], [None, 0.2])],
)
def test_drawing_among_the_top_k_alone_takes_the_same_tokens(temperature, top_k, top_p, min_p, banned, ties):
    draws = torch.Generator().manual_seed(3)
    scores = torch.randn(200, 40, generator=draws) * 2
    scores = scores.round() if ties and top_p is None else scores
    scores[:, list(banned)] = -math.inf
    uniforms = torch.rand(200, generator=draws, dtype=torch.float64)
    settings = (temperature, top_k, top_p, min_p)
    expected = filters.draw(filters.warp(scores, *settings), uniforms)
    assert torch.equal(filters.sample(scores, uniforms, *settings), expected)
    for row in range(20):
        assert filters.sample(scores[row : row + 1], uniforms[row : row + 1], *settings) == expected[row]


def test_greedy_follows_the_likeliest_token():
    uniform = [1 / 7] * 7
    rows = [
        [0.1, 0, 0.6, 0.3, 0, 0, 0],  # after <eos>: a
        uniform,
        [0.2, 0.1, 0.2, 0.5, 0, 0, 0],  # after a: b
        [0.1, 0.2, 0.1, 0.1, 0.5, 0, 0],  # after b: c
        [0.3, 0, 0.7, 0, 0, 0, 0],  # after c: a
        uniform,
        uniform,
    ]
    table = Table.bigram(rows)
    result = one(table, max_new_tokens=5)
    assert (result.text, result.ids, result.stopped_because) == ("abcab", (2, 3, 4, 2, 3), "max_new_tokens")
    assert result.log_prob == pytest.approx(math.log(0.6 * 0.5 * 0.5 * 0.7 * 0.5), rel=1e-6)


@pytest.mark.parametrize("prompt", ["", "a", "dcbaabdcab", "c" * 40])
def test_the_carried_state_writes_what_reading_the_whole_text_anew_would(model, prompt):
    assert list(one(model, [prompt], max_new_tokens=20).ids) == naive_greedy(model, prompt, 20)


def test_a_token_costs_one_step_however_long_the_text():
    table = Table(torch.zeros(8, 7, 7))
    table.table[..., 2] = 1.0
    write(table, ["abcd" * 4, "a"], max_new_tokens=50)
    # The shortest prompt at once with the start token, then a step for each token but the last.
    assert table.widths[0] == (2, 2)
    assert {width for _, width in table.widths[1:]} == {1}
    assert len(table.widths) == 1 + 49 + (len(ABC.encode("abcd" * 4).ids) - 1)


@pytest.mark.parametrize("batch_size", [None, 1, 2, 5])
def test_a_text_does_not_depend_on_the_others_in_the_batch(model, batch_size):
    prompts, how = (
        ["", "abcd", "a", "bbbbccccdddd", "abcd"],
        {"temperature": 1.0, "num_samples": 3, "repetition_penalty": 1.2},
    )
    together = write(model, prompts, batch_size=batch_size, **how)
    for place, prompt in enumerate(prompts):
        # The number of a prompt is part of its seed: the others become empty.
        alone = write(model, ["" if i != place else prompt for i in range(place + 1)], **how)
        assert [g.ids for g in together[place]] == [g.ids for g in alone[place]]
    assert together[1][0].ids != together[4][0].ids or together[1][1].ids != together[4][1].ids


def test_the_seed_alone_decides_and_the_global_generator_is_left_alone(model):
    how = {"temperature": 1.0, "max_new_tokens": 30, "num_samples": 4}
    before = torch.get_rng_state()
    first = write(model, **how)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    assert write(model, **how) == first
    assert write(model, seed=1, **how) != first


def test_samples_have_the_frequencies_of_the_table():
    probs = [0.2, 0.0, 0.4, 0.25, 0.1, 0.04, 0.01]
    samples = write(Table.bigram([probs] * 7), max_new_tokens=1, temperature=1.0, num_samples=4000)[0]
    counts = np.bincount([g.ids[0] for g in samples], minlength=7)
    # Chi-square with 5 degrees of freedom stays under 20.5 with probability 0.999; the seed is fixed.
    expected = 4000 * np.array(probs)
    assert ((counts - expected)[expected > 0] ** 2 / expected[expected > 0]).sum() < 20.5
    assert counts[1] == 0


def test_log_prob_is_the_models_own_whatever_the_filters():
    probs = [0.2, 0.3, 0.3, 0.1, 0.05, 0.05, 0.0]
    result = one(Table.bigram([probs] * 7), temperature=0.5, top_k=3, top_p=0.9, repetition_penalty=1.5)
    assert result.log_prob == pytest.approx(sum(math.log(probs[i]) for i in result.ids), rel=1e-6)


def test_repetition_penalty_counts_the_prompt_but_not_the_start_token():
    # Logits 2 for a, 1.5 for b, 1.2 for <eos>: a in the prompt falls to 1, the start token <eos> keeps 1.2.
    table = Table(torch.tensor([1.2, 0.0, 2.0, 1.1, 0.0, 0.0, 0.0]).expand(8, 7, 7))
    assert one(table, [""], max_new_tokens=1, repetition_penalty=2.0).text == "a"
    assert one(table, ["a"], max_new_tokens=1, repetition_penalty=2.0).stopped_because == "eos"


def test_unk_and_rows_beyond_the_vocabulary_are_never_written():
    table = Table(torch.tensor([0.0, 9.0, 1.0, 0.0, 0.0, 0.0, 0.0, 8.0]).expand(9, 8, 8))
    assert one(table).ids == (2,) * 8
    assert one(table, ban_unk=False).ids == (1,) * 8
    assert set(one(table, temperature=5.0, max_new_tokens=300, stop_at_eos=False).ids) == {0, 2, 3, 4, 5, 6}


def test_characters_that_the_vocabulary_lacks_are_read_as_unk_and_named(model, caplog):
    with caplog.at_level("INFO", "lmlab"):
        results = write(model, ["aéb☃é", "ab"])
    assert results[0][0].notes[0] == "the vocabulary lacks 'é', '☃': read as <unk>"
    assert "'é', '☃'" in caplog.text
    assert not any("lacks" in note for note in results[1][0].notes)


def test_past_learned_positions_a_note_says_so():
    torch.manual_seed(0)
    model = Learned(7, 8)
    short, long = write(model, ["ab", "abc" * 5], max_new_tokens=5, stop_at_eos=False)
    assert short[0].notes == ()
    assert "8 positions" in long[0].notes[0]
    # <eos> and the prompt take 2 positions, 7 written tokens of which the last is not read: all 8 and no more.
    assert one(model, ["a"], max_new_tokens=7, stop_at_eos=False).notes == ()
    assert one(model, ["a"], max_new_tokens=8, stop_at_eos=False).notes != ()


def test_the_model_is_left_in_the_mode_it_was_in(model):
    seen = []
    model.register_forward_hook(lambda *_: seen.append((model.training, torch.is_inference_mode_enabled())))
    write(model.train())
    assert model.training
    assert set(seen) == {(False, True)}
    write(model.eval())
    assert not model.training


# --- where a text ends


def chain(*pieces: str) -> tuple[Table, Letters]:
    """A model that writes these pieces one after the other, then <eos>."""
    tokenizer = Letters(*pieces)
    probs = torch.full((len(pieces) + 2,) * 2, 1e-6)
    for i, j in itertools.pairwise([0, *range(2, len(pieces) + 2), 0]):
        probs[i, j] = 1.0
    return Table(probs.log().expand(len(probs) + 1, -1, -1)), tokenizer


def test_eos_ends_a_text_and_is_not_shown():
    model, tokenizer = chain("One. ", "Two.")
    result = one(model, [""], tokenizer)
    assert (result.text, result.ids, result.stopped_because) == ("One. Two.", (2, 3, 0), "eos")


def test_where_eos_is_every_newline_a_text_goes_on_after_it():
    model, tokenizer = chain("One. ", "Two.")
    tokenizer.needs_eos = lambda tail: not tail.endswith("\n")
    assert one(model, [""], tokenizer).ids == (2, 3, 0, 2, 3, 0, 2, 3)
    assert one(model, [""], tokenizer, stop_at_eos=True).ids == (2, 3, 0)


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        (["STOP"], "One ST two "),
        (["x", "TOP"], "One ST two S"),
        (["ST two STOP!", "two"], "One ST "),
        (["never"], "One ST two STOP! end"),
        (["One"], ""),
        (["OP! e", "P!"], "One ST two ST"),
    ],
)
def test_stop_strings_are_found_across_tokens_and_never_streamed(stop, text):
    model, tokenizer = chain("One S", "T two ", "S", "T", "OP", "! e", "nd")
    heard = []
    result = one(model, [""], tokenizer, on_text=heard.append, stop=stop)
    assert result.text == "".join(heard) == text
    assert result.stopped_because == ("eos" if stop == ["never"] else "stop")
    assert all(heard)


def test_text_is_streamed_as_it_is_written():
    model, tokenizer = chain("a", "b", "c", "d")
    heard = []
    one(model, [""], tokenizer, on_text=heard.append, stop=["cx"])
    assert heard == ["a", "b", "cd"]


def forced(tokenizer, text: str) -> Table:
    """A model that writes exactly this text, the tokens of which are all different."""
    ids = [tokenizer.start_id, *tokenizer.encode(text).ids.tolist(), tokenizer.eos_id]
    table = torch.zeros(tokenizer.vocab_size + 1, tokenizer.vocab_size, tokenizer.vocab_size)
    for before, i, j in zip([-1, *ids], ids, ids[1:], strict=False):
        table[before + 1, i, j] = 30.0
    return Table(table)


def test_a_character_of_several_tokens_is_streamed_whole():
    tokenizer, heard = byte.train([]), []
    result = one(forced(tokenizer, "春江。"), [""], tokenizer, max_new_tokens=20, on_text=heard.append)
    assert heard == ["春", "江", "。"]
    assert result.text == "春江。"
    assert one(forced(tokenizer, "春江"), [""], tokenizer, max_new_tokens=5).text == "春\ufffd"


def test_words_are_set_off_from_the_prompt_and_lines_go_on():
    tokenizer = word.train(["the cat sat . on it !"], min_count=1, max_vocab=None)
    model = forced(tokenizer, "the cat sat .\non it !")
    result = one(model, ["the cat"], tokenizer, max_new_tokens=7)
    assert result.text == " sat .\non it !\n"
    assert one(model, ["the cat"], tokenizer, max_new_tokens=9, stop_at_eos=True).text == " sat ."
    assert one(model, ["the cat"], tokenizer, max_new_tokens=9, stop=[".\non"]).text == " sat "
    assert one(model, [""], tokenizer, max_new_tokens=1).text == "the"


# --- beams


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


# --- bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.5}, r"temperature=-0\.5 must be 0 \(greedy\)"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"top_p": 0.0}, r"top_p=0\.0 must be above 0"),
        ({"top_p": 1.1}, r"top_p=1\.1 must be above 0 and at most 1"),
        ({"top_k": 0}, "top_k=0 must be at least 1"),
        ({"min_p": 2.0}, r"min_p=2\.0"),
        ({"repetition_penalty": 0.0}, r"repetition_penalty=0\.0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"num_beams": 4, "temperature": 0.8}, r"num_beams=4 .*temperature=0\.8 .*set temperature=0"),
        ({"num_beams": 4, "top_k": 5}, "top_k=5 .*set top_k=null"),
        ({"num_beams": 2, "num_samples": 3}, "num_samples=3 must be at most num_beams=2"),
        ({"num_samples": 3}, "num_samples=3 with temperature=0"),
        ({"stop": "END"}, r"stop='END' must be a list .*\['END'\]"),
        ({"stop": [""]}, "leave the empty string out"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_settings_that_make_no_sense_are_refused_with_the_remedy(settings, message):
    with pytest.raises(ValueError, match=message):
        Decoding(**(NEUTRAL | settings))


def test_bad_calls_are_refused_with_the_remedy(model):
    with pytest.raises(ValueError, match="prompts='ab' must be a list"):
        write(model, "ab")
    with pytest.raises(ValueError, match="on_text streams a single text"):
        write(model, ["a", "b"], on_text=print)
    with pytest.raises(ValueError, match=r"tokenizer.vocab_size=9 exceeds model.vocab_size=7"):
        write(model, ["a"], Letters(*"abcdefg"))


def test_weights_that_are_nan_are_named():
    with pytest.raises(ValueError, match="NaN"):
        write(Table(torch.full((8, 7, 7), math.nan)), temperature=1.0)


# --- the models that ship

CONF = Path(__file__).parents[1] / "conf"
SMALL = "model.n_layers=2 model.d_model=16 model.n_heads=2"
SHIPPED = {
    "lstm": "+model=lstm model.d_model=16",
    "gru with a mixture": "+model=lstm model/head=mixture model.cell=gru model.d_model=16",
    "transformer": f"+model=transformer {SMALL} model.max_context=8 model.init_std=0.3",
    "alibi in a window": f"+model=transformer {SMALL} model.positions=alibi model.window=5 model.init_std=0.3"
    " model.max_context=64",
    "summed tokens": f"+model=transformer {SMALL} model.max_context=8 model.embed_ngram=3 model.init_std=0.3",
    "gpt2": f"+model=gpt2 {SMALL} model.max_context=8 model.init_std=0.3",
    "ngram": "+model=ngram model.order=3",
}


@pytest.fixture(params=SHIPPED)
def shipped(request):
    torch.manual_seed(6)
    with initialize_config_dir(version_base=None, config_dir=str(CONF)):
        config = compose(overrides=SHIPPED[request.param].split())
    model = instantiate(config.model)(vocab_size=ABC.vocab_size)
    if request.param == "ngram":
        model.fit(np.random.default_rng(0).integers(0, ABC.vocab_size, 400), start_id=0)
    return model.eval()


def test_every_shipped_model_writes_from_its_state_what_reading_anew_would(shipped):
    for prompt in ("", "dcbaabdcab"):
        assert list(one(shipped, [prompt], max_new_tokens=24).ids) == naive_greedy(shipped, prompt, 24)


def test_every_shipped_model_samples_whatever_is_beside_it(shipped):
    prompts, how = ["", "abcd", "bbbbccccdddd"], {"temperature": 1.0, "num_samples": 2, "max_new_tokens": 16}
    together = write(shipped, prompts, **how)
    for place, samples in enumerate(write(shipped, prompts, batch_size=1, **how)):
        assert [g.ids for g in samples] == [g.ids for g in together[place]]


@pytest.mark.parametrize("how", [{"temperature": 1.0, "num_samples": 2}, {"num_beams": 3, "num_samples": 2}])
def test_the_log_prob_of_what_a_shipped_model_wrote_is_its_score(shipped, how):
    prompt = ABC.encode("abcd").ids.tolist()
    for result in write(shipped, ["abcd"], max_new_tokens=3, **how)[0]:
        ids = [0, *prompt, *result.ids]
        log_probs = shipped.head.log_probs(shipped(torch.tensor([ids[:-1]]))[0])[0]
        chosen = [log_probs[t, ids[t + 1]].item() for t in range(len(prompt), len(ids) - 1)]
        assert result.log_prob == pytest.approx(sum(chosen), rel=1e-4)
