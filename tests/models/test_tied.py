import pytest
import torch
import torch.nn.functional as F

from lmlab.models import cross_entropy, tied
from lmlab.models.cross_entropy import linear_nll
from lmlab.models.tied import embed_tied

V, D = 30, 5


@pytest.fixture(autouse=True)
def blocks(monkeypatch):
    """The path of large vocabularies, which announces its gradient."""
    monkeypatch.setattr(cross_entropy, "SMALL", 0)


@pytest.fixture
def found(monkeypatch):
    """Whether each backward pass of an embedding found a gradient to add to."""
    answers, ask = [], tied._waiting

    def waiting(weight):
        whole = ask(weight)
        answers.append(whole is not None)
        return whole

    monkeypatch.setattr(tied, "_waiting", waiting)
    return answers


@pytest.fixture
def table():
    return torch.nn.Parameter(torch.randn(V, D, generator=torch.Generator().manual_seed(0)))


TOKENS = torch.tensor([[1, 1, 2], [29, 7, 3]])


def loss(embed, table, heads=1, tokens=TOKENS):
    hidden = embed(tokens, table).flatten(0, 1).tanh()
    return sum(linear_nll(hidden, table, None, tokens.flatten().roll(k)).sum() for k in range(heads))


def expected(table, **changes):
    return torch.autograd.grad(loss(F.embedding, table, **changes), table)[0]


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_the_embeddings_gradient_goes_into_the_heads(table, found):
    loss(embed_tied, table).backward()
    close(table.grad, expected(table))
    assert found == [True]


def test_gradients_accumulate_over_passes(table, found):
    loss(embed_tied, table).backward()
    loss(embed_tied, table, tokens=TOKENS.flip(0)).backward()
    close(table.grad, expected(table) + expected(table, tokens=TOKENS.flip(0)))
    assert found == [True, True]


def test_two_heads_and_repeated_backward_passes_are_right(table):
    total = loss(embed_tied, table, heads=2)
    close(torch.autograd.grad(total, table, retain_graph=True)[0], expected(table, heads=2))
    close(torch.autograd.grad(total, table)[0], expected(table, heads=2))


def test_without_the_head_the_gradient_is_the_embeddings_own(table, found):
    embed_tied(TOKENS, table).square().sum().backward()
    close(table.grad, torch.autograd.grad(F.embedding(TOKENS, table).square().sum(), table)[0])
    assert found == [False]


def test_a_gradient_that_somebody_keeps_is_not_written_to_by_a_later_pass(table, found):
    kept = torch.autograd.grad(loss(embed_tied, table), table)[0]
    before = kept.clone()
    embed_tied(TOKENS, table).sum().backward()
    assert torch.equal(kept, before)
    assert found == [True, False]


def test_a_pass_that_is_cut_in_two_adds_up(table):
    """The head's half ends before the embedding's begins."""
    hidden = embed_tied(TOKENS, table).flatten(0, 1).tanh()
    cut = hidden.detach().requires_grad_()
    linear_nll(cut, table, None, TOKENS.flatten()).sum().backward()
    hidden.backward(cut.grad)
    close(table.grad, expected(table))


def test_another_tables_head_is_left_alone(table):
    other = torch.nn.Parameter(torch.ones(V, D))
    nll = linear_nll(embed_tied(TOKENS, table).flatten(0, 1), other, None, TOKENS.flatten()).sum()
    plain = linear_nll(F.embedding(TOKENS, table).flatten(0, 1), other, None, TOKENS.flatten()).sum()
    for ours, theirs in zip(*(torch.autograd.grad(x, [table, other]) for x in (nll, plain)), strict=True):
        close(ours, theirs)
