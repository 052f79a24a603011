"""Each check passes for honest models and evaluators, and catches the fault that was planted for it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from lmlab.config import compose
from lmlab.data.store import Split
from lmlab.evaluation import checks, protocol
from lmlab.evaluation.protocol import Protocol
from lmlab.experiment import build_model
from lmlab.metrics import TokenNLL
from lmlab.models.ngram import NGramLM

V, N = 23, 251
OPTIONS = {
    "transformer": "model=transformer model.d_model=16 model.n_layers=2 model.n_heads=2 model.max_context=24",
    "learned": "model=transformer model.d_model=16 model.n_layers=1 model.n_heads=2 model.max_context=24 "
    "model.positions=learned",
    "lstm": "model=lstm model.d_model=16 model.n_layers=2",
    "mixture": "model=lstm model.d_model=16 model/head=mixture",
}
SLIDING = Protocol(1, "sliding", None, 12, 24, "32", None)
CARRIED = Protocol(1, "carried", 5, None, None, "32", None)
DOCUMENTS = Protocol(1, "documents", None, 12, 24, "32", None)


class Text(Split):
    """Random tokens in documents of many lengths."""

    def __init__(self):
        random = np.random.default_rng(0)
        self.ids = random.integers(0, V, N).astype(np.uint16)
        self.n_bytes = random.integers(1, 5, N).astype(np.uint8)
        self.n_chars = self.n_bytes
        self.n_words = (self.n_bytes > 2).astype(np.uint8)
        self.doc_starts = np.array([0, 3, 40, 41, 130, 222], np.int64)


def model(name):
    torch.manual_seed(0)
    if name == "ngram":
        return NGramLM(V, 3).fit(Text().ids, 0).eval()
    return build_model(compose(OPTIONS[name].split()).model, V, torch.ones(V, dtype=torch.long)).eval()


def probe(lm, how=None):
    how = how or (CARRIED if lm.recurrent else SLIDING)
    return checks.Probe(lm, Text(), 0, how, "cpu")


@pytest.mark.parametrize("name", [*OPTIONS, "ngram"])
@pytest.mark.parametrize("check", checks.MODEL_CHECKS, ids=lambda check: check.__name__)
def test_an_honest_model_passes(name, check):
    found = check(probe(model(name)))
    assert found.passed, found


@pytest.mark.parametrize("check", checks.MODEL_CHECKS, ids=lambda check: check.__name__)
def test_an_honest_model_passes_on_documents(check):
    found = check(probe(model("transformer"), DOCUMENTS))
    assert found.passed, found


def test_the_text_that_is_read_is_bounded_by_the_model_s_size():
    tried = probe(model("lstm"))
    tried.limit(1e-9)
    assert tried.n_tokens == checks.FEWEST
    tried.limit(1e9)
    assert tried.n_tokens == N


class Planted(nn.Module):
    """A model with a fault, around an honest one."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.head = inner, inner.head
        self.recurrent, self.max_context, self.vocab_size = inner.recurrent, inner.max_context, inner.vocab_size

    def forward(self, tokens, state=None):
        return self.inner(tokens, state)


class SeesTheNext(Planted):
    def forward(self, tokens, state=None):
        hidden, state = self.inner(tokens, state)
        return hidden + 0.01 * hidden.roll(-1, 1), state


class SeesTheWhole(Planted):
    """Normalised over the length, as batch and layer norms over time are."""

    def forward(self, tokens, state=None):
        hidden, state = self.inner(tokens, state)
        return hidden - 0.05 * hidden.mean(1, keepdim=True), state


class SeesOneFarAway(Planted):
    """Only the first place looks ahead, and only to the last."""

    def forward(self, tokens, state=None):
        hidden, state = self.inner(tokens, state)
        hidden = hidden.clone()
        hidden[:, 0] += 0.05 * hidden[:, -1]
        return hidden, state


class Forgets(Planted):
    def forward(self, tokens, state=None):
        return self.inner(tokens, None)


class MixesRows(Planted):
    """Each row sees the others of its batch."""

    def forward(self, tokens, state=None):
        hidden, state = self.inner(tokens, state)
        return hidden + 0.1 * hidden.mean((0, 1)), state


@pytest.mark.parametrize("fault", [SeesTheNext, SeesTheWhole, SeesOneFarAway])
@pytest.mark.parametrize("name", ["transformer", "lstm"])
def test_a_leak_from_the_future_is_caught(fault, name):
    assert checks.causality(probe(fault(model(name)))).passed is False


def test_inputs_that_are_their_own_targets_are_caught(monkeypatch):
    honest = protocol.batches

    def leaking(*args, **options):
        for batch in honest(*args, **options):
            yield replace(batch, inputs=batch.targets)

    monkeypatch.setattr(protocol, "batches", leaking)
    found = checks.causality(probe(model("transformer")))
    assert found.passed is False
    assert "before their target" in found.figure


class Scaled(nn.Module):
    """A head whose nll is not that of its probabilities, or whose probabilities do not sum to one."""

    def __init__(self, inner, nll=1.0, probs=0.0):
        super().__init__()
        self.inner, self.by, self.off = inner, nll, probs

    def nll(self, hidden, targets):
        return self.inner.nll(hidden, targets) * self.by - self.off

    def log_probs(self, hidden):
        return self.inner.log_probs(hidden) + self.off


@pytest.mark.parametrize("fault", [{"nll": 0.99}, {"probs": 0.001}])
def test_probabilities_that_do_not_sum_to_one_are_caught(fault):
    planted = Planted(model("lstm"))
    planted.head = Scaled(planted.head, **fault)
    assert checks.normalised(probe(planted)).passed is False


@pytest.mark.parametrize("name", ["transformer", "lstm", "ngram"])
def test_a_state_that_is_dropped_between_chunks_is_caught(name):
    assert checks.chunked(probe(Forgets(model(name)))).passed is False


def test_padding_that_is_counted_is_caught(monkeypatch):
    def careless(self, nll, mask, counts):
        self.nats.add_(nll.sum(dtype=torch.float64))
        self.tokens.add_(nll.numel())
        self.counts.add_(counts.sum(0))

    monkeypatch.setattr(TokenNLL, "_add", careless)
    assert checks.padding(probe(model("transformer"), DOCUMENTS)).passed is False
    assert checks.padding(probe(model("lstm"))).passed is False


def test_padding_that_is_counted_in_nats_alone_is_caught(monkeypatch):
    """The counts are right: only the sum by hand tells."""
    honest = TokenNLL._add

    def careless(self, nll, mask, counts):
        honest(self, nll, mask, counts)
        if mask is not None:
            self.nats.add_(0.01 * (~mask).sum())

    monkeypatch.setattr(TokenNLL, "_add", careless)
    assert checks.padding(probe(model("transformer"))).passed is False


def test_tokens_that_are_scored_twice_are_caught(monkeypatch):
    honest = protocol.batches

    def generous(*args, **options):
        for batch in honest(*args, **options):
            mask = None if batch.mask is None else torch.ones_like(batch.mask)
            yield replace(batch, mask=mask)

    monkeypatch.setattr(protocol, "batches", generous)
    assert checks.padding(probe(model("transformer"))).passed is False


def test_rows_that_see_each_other_are_caught():
    assert checks.padding(probe(MixesRows(model("transformer")))).passed is False


def test_a_rank_that_repeats_rows_is_caught(monkeypatch):
    """As samplers do that fill up each rank's share."""
    honest = protocol.batches

    def repeating(*args, rank=0, world_size=1, **options):
        found = list(honest(*args, rank=rank, world_size=world_size, **options))
        yield from found
        if world_size > 1 and rank == world_size - 1:
            yield found[-1]

    monkeypatch.setattr(protocol, "batches", repeating)
    assert checks.ranks(probe(model("transformer"))).passed is False


def test_a_rank_that_is_lost_is_caught(monkeypatch):
    honest = protocol.batches

    def losing(*args, rank=0, world_size=1, **options):
        return iter(()) if rank == 2 else honest(*args, rank=rank, world_size=world_size, **options)

    monkeypatch.setattr(protocol, "batches", losing)
    assert checks.ranks(probe(model("lstm"))).passed is False
