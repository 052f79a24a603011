import io
import itertools
import json
import math

import numpy as np
import pytest
import torch
from rich.console import Console
from tests.generation.toys import Head
from torch import nn

from lmlab.scoring import as_json, as_table, continuation, continuations, score_many, score_text
from lmlab.tokenizers import Encoding
from lmlab.tokenizers.vocabulary import Vocabulary


class Pieces(Vocabulary):
    """Pieces of bytes as tokens, after <eos> and <unk>; the longest piece that fits is taken."""

    kind = "pieces"

    def __init__(self, *pieces: bytes):
        super().__init__([b"", b"?", *pieces], {"<eos>": 0, "<unk>": 1}, eos_id=0, unk_id=1)

    def encode(self, text: str) -> Encoding:
        source, ids, ends, at = text.encode(), [], [], 0
        while at < len(source):
            fits = [i for i, piece in enumerate(self.pieces) if i > 1 and source.startswith(piece, at)]
            ids.append(max(fits, key=lambda i: len(self.pieces[i]), default=1))
            at += len(self.pieces[ids[-1]]) if fits else 1
            ends.append(at)
        return Encoding(np.array(ids, dtype=np.int32), np.array(ends, dtype=np.int64))

    def to_json(self) -> str:
        return str(self.pieces)


class Mixing(nn.Module):
    """Logits from a running sum of tokens and learned positions, up to max_context of them; or none (positions 1)."""

    recurrent = False

    def __init__(self, vocab_size: int, max_context: int | None):
        super().__init__()
        self.vocab_size, self.max_context, self.slides = vocab_size, max_context, max_context is None
        self.embed, self.out, self.head = nn.Embedding(vocab_size, 16), nn.Linear(16, vocab_size), Head()
        self.positions = nn.Parameter(torch.randn(max_context, 16) if max_context else torch.ones(1, 16))
        nn.init.normal_(self.out.weight, std=2.0)

    def forward(self, tokens, state=None):
        past = tokens[:, :0] if state is None else state[0] - 1
        text = torch.cat([past, tokens], 1)
        if self.max_context and text.shape[1] > self.max_context:
            raise ValueError(f"{text.shape[1]} tokens exceed max_context={self.max_context}")
        positions = self.positions[: text.shape[1]] if self.max_context else self.positions
        mixed = (self.embed(text) * positions).cumsum(1)[:, past.shape[1] :]
        return self.out(mixed.tanh()), (text + 1,)


ABC = Pieces(b"a", b"b", b" ", b" b", b"ba", "春".encode(), b"\xe6", b"\xb1", b"\x9f", b"\n")
TEXTS = ["ab ba", "", "b", "a b ab" * 9, "春江a", "bbbb aaaa"]


@pytest.fixture(params=["unbounded", "learned positions"])
def model(request):
    torch.manual_seed(4)
    return Mixing(ABC.vocab_size, None if request.param == "unbounded" else 80).eval()


def joint(model, ids: list[int]) -> float:
    """ln P by the chain rule, each factor from a reading of its own."""
    total = 0.0
    for t, i in enumerate(ids):
        hidden, _ = model(torch.tensor([[0, *ids[:t]]]))
        total += model.head.log_probs(hidden)[0, -1, i].item()
    return total


def test_token_log_probs_sum_to_the_joint_of_the_chain_rule(model):
    score = score_text(model, ABC, "ab ba a", top=0, eos=True)
    ids = [*ABC.encode("ab ba a").ids.tolist(), 0]
    assert [t.id for t in score.tokens] == ids
    assert score.log_prob == pytest.approx(joint(model, ids), rel=1e-6)
    assert score.log_prob == pytest.approx(sum(t.log_prob for t in score.tokens), rel=1e-12)


def test_the_probabilities_of_all_texts_sum_to_one():
    torch.manual_seed(0)
    letters = Pieces(b"a", b"b")
    model = Mixing(4, None)
    # Texts of up to three letters with <eos>, and everything that is longer or holds <unk>.
    ended = [math.exp(score_text(model, letters, "".join(w), top=0, eos=True).log_prob)
             for n in range(3) for w in itertools.product("ab", repeat=n)]  # fmt: skip
    going_on = [math.exp(joint(model, list(w))) for w in itertools.product((2, 3), repeat=3)]
    with_unk = [math.exp(joint(model, [*w, 1])) for n in range(3) for w in itertools.product((2, 3), repeat=n)]
    assert sum(ended) + sum(going_on) + sum(with_unk) == pytest.approx(1, rel=1e-6)


def test_scores_are_those_of_a_single_forward(model):
    text = TEXTS[3]
    score, ids = score_text(model, ABC, text, top=0, eos=True), [*ABC.encode(text).ids.tolist(), 0]
    hidden, _ = model(torch.tensor([[0, *ids[:-1]]]))
    nll = model.head.nll(hidden, torch.tensor([ids]))[0]
    torch.testing.assert_close(torch.tensor([t.log_prob for t in score.tokens]), -nll.detach())
    likelihood = score.likelihood
    assert likelihood.ppl == pytest.approx(math.exp(nll.mean().item()), rel=1e-5)
    assert likelihood.bpb == pytest.approx(nll.sum().item() / math.log(2) / len(text.encode()), rel=1e-5)


def test_white_space_that_no_token_claims_falls_to_eos(model):
    class Trimming(Pieces):
        def encode(self, text):
            return super().encode(text.rstrip())

    trimming = Trimming(*ABC.pieces[2:])
    closed, open_ended = (score_text(model, trimming, "ab  ", top=0, eos=eos) for eos in (True, False))
    assert [t.n_bytes for t in closed.tokens] == [1, 1, 2]
    assert (closed.likelihood.bytes, open_ended.likelihood.bytes) == (4, 2)
    assert show(open_ended).startswith("ab  ")


@pytest.mark.parametrize(("batch_size", "chunk_size"), [(1, 1), (1, 7), (3, 1000), (6, 5), (100, 64)])
def test_neither_chunks_nor_neighbours_change_a_score(model, batch_size, chunk_size):
    scores = list(score_many(model, ABC, iter(TEXTS), top=2, eos=True, batch_size=batch_size, chunk_size=chunk_size))
    assert [s.text for s in scores] == TEXTS
    for score in scores:
        alone = score_text(model, ABC, score.text, top=2, eos=True)
        assert score.log_prob == pytest.approx(alone.log_prob, rel=1e-5)
        assert [(t.id, t.rank, t.n_bytes) for t in score.tokens] == [(t.id, t.rank, t.n_bytes) for t in alone.tokens]


def test_past_learned_positions_the_context_slides_by_half():
    torch.manual_seed(4)
    model, text = Mixing(ABC.vocab_size, 8), "ab ba b" * 4
    ids = ABC.encode(text).ids.tolist()
    score = score_text(model, ABC, text, top=0, eos=False, chunk_size=5)
    inputs, start = [0, *ids[:-1]], 0
    for t in range(len(ids)):
        start = t - 4 if t >= 8 and t % 4 == 0 else start
        hidden, _ = model(torch.tensor([inputs[start : t + 1]]))
        expected = model.head.log_probs(hidden)[0, -1, ids[t]].item()
        assert score.tokens[t].log_prob == pytest.approx(expected, rel=1e-5)


def test_rank_and_alternatives_are_those_of_the_distribution(model):
    score = score_text(model, ABC, "ba", top=4, eos=False)
    log_probs = model.head.log_probs(model(torch.tensor([[0]]))[0])[0, 0]
    first, order = score.tokens[0], log_probs.argsort(descending=True).tolist()
    assert order[first.rank - 1] == first.id
    assert [a.id for a in first.alternatives] == order[:4]
    assert [a.log_prob for a in first.alternatives] == pytest.approx(log_probs[order[:4]].tolist())
    assert [a.token for a in first.alternatives] == [ABC.token(i) for i in order[:4]]
    assert len(score_text(model, ABC, "ba", top=99, eos=False).tokens[0].alternatives) == ABC.vocab_size


def test_rows_beyond_the_vocabulary_are_no_alternatives():
    score = score_text(Mixing(40, None), ABC, "ba", top=40, eos=True)
    assert all({a.id for a in t.alternatives} == set(range(ABC.vocab_size)) for t in score.tokens)
    assert all(t.alternatives[t.rank - 1].id == t.id for t in score.tokens)


def test_every_byte_of_the_source_is_counted_once(model):
    score = score_text(model, ABC, "春江 a\nb", top=0, eos=True)
    assert [t.n_bytes for t in score.tokens] == [3, 1, 1, 1, 1, 1, 1, 1, 0]
    sums = score.likelihood
    assert (sums.tokens, sums.bytes, sums.chars, sums.words) == (9, 10, 6, 3)
    assert [t.token for t in score.tokens[:4]] == ["春", "\\xe6", "\\xb1", "\\x9f"]


def test_eos_is_scored_only_where_asked_and_where_the_tokenizer_closes_a_text(model, monkeypatch):
    assert len(score_text(model, ABC, "ab", top=0, eos=False).tokens) == 2
    assert len(score_text(model, ABC, "ab", top=0, eos=True).tokens) == 3
    monkeypatch.setattr(ABC, "needs_eos", lambda tail: not tail.endswith("\n"), raising=False)
    assert len(score_text(model, ABC, "ab\n", top=0, eos=True).tokens) == 3


def test_weights_that_diverged_give_no_score():
    model = Mixing(ABC.vocab_size, None).eval()
    nn.init.constant_(model.out.weight, float("nan"))
    with pytest.raises(ValueError, match="the model gave no number: its weights diverged; take another checkpoint"):
        score_text(model, ABC, "ab", top=0, eos=False)


def test_what_has_no_mean_is_no_number_in_the_table_and_a_long_table_ends(model, capsys):
    console = Console(width=100)
    console.print(as_table(score_text(model, ABC, "", top=0, eos=False)))
    assert "nll -  ppl -  bits per byte -" in capsys.readouterr().out
    console.print(as_table(score_text(Mixing(ABC.vocab_size, None).eval(), ABC, "a" * 1200, top=0, eos=False)))
    shown = capsys.readouterr().out
    assert "and 200 more: format=json has all" in shown
    assert shown.count("\n") < 1100


def test_an_empty_text_is_its_eos_alone(model):
    assert [t.id for t in score_text(model, ABC, "", top=1, eos=True).tokens] == [0]
    nothing = score_text(model, ABC, "", top=1, eos=False)
    assert nothing.tokens == ()
    assert nothing.log_prob == 0


def test_a_continuation_completes_its_context(model):
    whole = score_text(model, ABC, "ab a", top=0, eos=False).log_prob
    context = score_text(model, ABC, "ab", top=0, eos=False).log_prob
    result = continuation(model, ABC, "ab", " a")
    assert result.log_prob == pytest.approx(whole - context, rel=1e-5)
    assert (result.n_tokens, result.n_bytes) == (2, 2)
    pairs = [("ab", " a"), ("", "b"), ("a" * 30, "")]
    several = list(continuations(model, ABC, pairs, batch_size=2))
    assert several[0].log_prob == pytest.approx(result.log_prob, rel=1e-5)
    assert several[2] == (0, True, 0, 0)


def test_a_token_across_the_border_belongs_to_the_continuation(model):
    # " b" is one token, which the space of the context begins.
    result, score = continuation(model, ABC, "a ", "b"), score_text(model, ABC, "a b", top=0, eos=False)
    assert (result.n_tokens, result.n_bytes) == (1, 1)
    assert result.log_prob == pytest.approx(score.tokens[1].log_prob, rel=1e-6)


def test_is_greedy_says_whether_each_token_is_the_likeliest(model):
    hidden, _ = model(torch.tensor([[0, 2]]))
    best = int(hidden[0, -1].argmax())
    letters = Pieces(*ABC.pieces[2:])
    for i in range(2, letters.vocab_size):
        letters.encode = lambda text, i=i: Encoding(np.array([2, i][: len(text)]), np.arange(1, len(text) + 1))
        assert continuation(model, letters, "a", "?").is_greedy == (i == best)


def test_the_model_is_left_in_the_mode_it_was_in(model):
    seen = []
    model.register_forward_hook(lambda *_: seen.append(model.training))
    for score in score_many(model.train(), ABC, ["a", "b"], top=0, eos=True, batch_size=1):
        assert model.training
        assert not torch.is_inference_mode_enabled()
        assert score.tokens
    assert seen == [False, False]


def test_bad_calls_are_refused_with_the_remedy(model):
    with pytest.raises(ValueError, match="top=-1"):
        score_text(model, ABC, "a", top=-1, eos=True)
    with pytest.raises(ValueError, match=r"tokenizer.vocab_size=14 exceeds model.vocab_size=12"):
        score_text(model, Pieces(*ABC.pieces[2:], b"x", b"y"), "a", top=1, eos=True)


def test_as_json_is_plain_data_with_every_number(model):
    score = score_text(model, ABC, "春江 a", top=2, eos=True)
    data = json.loads(json.dumps(as_json(score)))
    assert (data["text"], data["log_prob"], data["bpb"]) == ("春江 a", score.log_prob, score.likelihood.bpb)
    assert len(data["tokens"]) == 7
    assert data["tokens"][0]["token"] == "春"
    assert set(data["tokens"][0]) == {"token", "id", "log_prob", "rank", "n_bytes", "alternatives"}
    assert set(data["tokens"][0]["alternatives"][1]) == {"token", "id", "log_prob"}


def show(score, **options) -> str:
    console = Console(file=io.StringIO(), width=100, **options)
    console.print(as_table(score))
    return console.file.getvalue()


def test_as_table_says_it_all_without_colours(model):
    score = score_text(model, ABC, "春江 a\nb", top=2, eos=True)
    shown = show(score)
    assert "\x1b" not in shown
    assert shown.startswith("春江 a")
    for part in (
        "春",
        "\\xe6",
        "␣",
        "<eos>",
        f"{score.log_prob:.3f}",
        f"{score.likelihood.bpb:.4f}",
        f"{score.tokens[0].log_prob:.3f}",
    ):
        assert part in shown


def test_as_table_shades_by_surprisal_and_lets_no_text_steer_the_terminal(model):
    tokenizer = Pieces(*ABC.pieces[2:-1], b"\x1b[31m[bold]")
    shown = show(
        score_text(model, tokenizer, "a\x1b[31m[bold]b", top=1, eos=False),
        force_terminal=True,
        color_system="truecolor",
    )
    assert "\x1b[30;48;2;" in shown
    assert "\x1b[31m" not in shown
    assert "\\x1b[31m[bold]" in shown
