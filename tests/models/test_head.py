import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lmlab.models import cross_entropy
from lmlab.models.dropout import LockedDropout
from lmlab.models.head import AdaptiveHead, LinearHead, MixtureHead

D, V = 6, 101


@pytest.fixture
def blocks(monkeypatch):
    """Tiny sizes that take the path of large vocabularies."""
    for name, value in {"SMALL": 0, "BLOCK": 16, "WIDTHS": (16, 16), "ALIGN": 8}.items():
        monkeypatch.setattr(cross_entropy, name, value)


def test_logits_are_in_autocasts_precision_and_the_rest_in_full():
    linear, hidden = LinearHead(D, V, bias=True, softcap=None), torch.randn(2, 3, D)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear.logits(hidden).dtype == torch.bfloat16
        assert linear.log_probs(hidden).dtype == torch.float32
        assert linear.nll(hidden, torch.zeros(2, 3, dtype=torch.long)).dtype == torch.float32


def test_a_tied_matrix_is_shared_and_reached_by_a_projection_where_widths_differ():
    same, other = nn.Embedding(V, D), nn.Embedding(V, 4)
    assert LinearHead(D, V, True, None, embedding=same.weight).weight is same.weight
    tied = LinearHead(D, V, False, None, embedding=other.weight)
    hidden = torch.randn(2, 3, D)
    torch.testing.assert_close(tied.logits(hidden), hidden @ tied.project.weight.T @ other.weight.T)


def test_softcap_bounds_the_logits():
    linear = LinearHead(D, V, False, 2.0)
    logits = linear.logits(100 * torch.randn(4, 5, D))
    assert 1.9 < logits.abs().max() <= 2
    with pytest.raises(ValueError, match=r"softcap=0.0 must be positive"):
        LinearHead(D, V, False, 0.0)


def test_output_dropout_belongs_to_the_head():
    linear = LinearHead(D, V, False, None, dropout=LockedDropout(0.5))
    hidden = torch.ones(2, 3, D)
    assert (linear.drop(hidden) == 0).any()
    assert not torch.equal(linear.logits(hidden), F.linear(hidden, linear.weight))
    linear.eval()
    assert torch.equal(linear.drop(hidden), hidden)
    assert torch.equal(linear.logits(hidden), F.linear(hidden, linear.weight))


def adaptive(counts):
    torch.manual_seed(0)
    ours = AdaptiveHead(D, V, cutoffs=[10, 40], div_value=2.0, token_counts=counts)
    theirs = nn.AdaptiveLogSoftmaxWithLoss(D, V, [10, 40], div_value=2.0)
    ours.load_state_dict({"rank": ours.rank} | renamed(theirs))
    return ours, theirs


def renamed(theirs):
    names = (("head", "short"), ("tail", "clusters"))
    state = theirs.state_dict()
    return {new + k.removeprefix(old): v for old, new in names for k, v in state.items() if k.startswith(old)}


def test_adaptive_head_equals_pytorchs_on_ids_sorted_by_frequency():
    ours, theirs = adaptive(torch.arange(V, 0, -1))
    hidden, targets = torch.randn(4, 30, D), torch.randint(V, (4, 30))
    torch.testing.assert_close(ours.log_probs(hidden).flatten(0, 1), theirs.log_prob(hidden.flatten(0, 1)))
    nll = -theirs(hidden.flatten(0, 1), targets.flatten()).output
    torch.testing.assert_close(ours.nll(hidden, targets).flatten(), nll, atol=1e-5, rtol=1e-5)


def test_adaptive_head_ranks_ids_by_their_counts():
    counts = torch.randperm(V)
    ours, theirs = adaptive(counts)
    hidden = torch.randn(1, 3, D)
    by_rank = theirs.log_prob(hidden[0])
    order = counts.argsort(descending=True)
    torch.testing.assert_close(ours.log_probs(hidden)[0][:, order], by_rank)


def test_adaptive_head_gives_every_cluster_a_gradient_though_no_target_is_in_it():
    ours, _ = adaptive(torch.arange(V, 0, -1))
    ours.nll(torch.randn(2, 3, D), torch.zeros(2, 3, dtype=torch.long)).sum().backward()
    assert all(p.grad is not None for p in ours.parameters())


def test_adaptive_head_refuses_what_it_cannot_do():
    counts = torch.ones(V, dtype=torch.long)
    with pytest.raises(ValueError, match="tie_embeddings=false"):
        AdaptiveHead(D, V, [10], 2.0, embedding=nn.Parameter(torch.zeros(V, D)), token_counts=counts)
    with pytest.raises(ValueError, match="needs token_counts for vocab_size=101 ids, found none"):
        AdaptiveHead(D, V, [10], 2.0)
    for cutoffs in ([], [0, 5], [5, 5], [9, 5], [V]):
        with pytest.raises(
            ValueError, match=r"model\.head\.cutoffs=.* must increase, above 0 and below vocab_size=101"
        ):
            AdaptiveHead(D, V, cutoffs, 2.0, token_counts=counts)
    with pytest.raises(ValueError, match=r"model\.head\.div_value=4.0 leaves cluster 2 no width at model\.d_model=6"):
        AdaptiveHead(D, V, [10, 20], 4.0, token_counts=counts)


@pytest.mark.parametrize("tied", [True, False])
def test_mixture_is_the_weighted_sum_of_softmaxes(tied, blocks):
    torch.manual_seed(0)
    shared = nn.Parameter(torch.randn(V, 4)) if tied else None
    mixture = MixtureHead(D, V, n_experts=3, d_latent=4, dropout_latent=0.0, embedding=shared)
    nn.init.normal_(mixture.bias)
    hidden, targets = torch.randn(2, 3, D), torch.randint(V, (2, 3))
    # Equation 2 of Yang et al. for each position alone.
    expected = torch.zeros(2, 3, V)
    for b, t in itertools.product(range(2), range(3)):
        h = hidden[b, t]
        priors = torch.softmax(mixture.prior.weight @ h, 0)
        for k in range(3):
            rows = slice(4 * k, 4 * k + 4)
            latent = torch.tanh(mixture.latent.weight[rows] @ h + mixture.latent.bias[rows])
            expected[b, t] += priors[k] * torch.softmax(mixture.weight @ latent + mixture.bias, 0)
    torch.testing.assert_close(mixture.log_probs(hidden).exp(), expected, atol=1e-5, rtol=1e-5)
    nll = -expected.log().gather(-1, targets[..., None])[..., 0]
    torch.testing.assert_close(mixture.nll(hidden, targets), nll, atol=1e-5, rtol=1e-5)


def test_mixture_refuses_a_latent_width_that_a_shared_matrix_does_not_have():
    with pytest.raises(ValueError, match=r"model\.head\.d_latent=5 must be the shared embedding's width 4"):
        MixtureHead(D, V, 2, 5, 0.0, embedding=nn.Parameter(torch.zeros(V, 4)))
    with pytest.raises(ValueError, match="n_experts=0 must be at least 1"):
        MixtureHead(D, V, 0, None, 0.0)
