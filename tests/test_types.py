"""State and Batch: what moves to a device and what stays."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lmlab import metrics, types
from lmlab.generation import beams, filters
from lmlab.metrics import TokenNLL
from lmlab.models.attention import rotary_angles
from lmlab.models.ngram import NGramLM
from lmlab.types import Batch, reset, send


def test_a_batch_moves_but_for_what_the_processor_decides_by():
    tokens = torch.zeros(2, 3, dtype=torch.long)
    batch = Batch(tokens, tokens, tokens == 0, torch.tensor([True, False]), torch.zeros(2, 3, dtype=torch.long))
    moved = batch.to("meta")
    assert {getattr(moved, name).device.type for name in ("inputs", "targets", "mask", "counts")} == {"meta"}
    assert moved.reset.device.type == "cpu"
    assert moved.reset.tolist() == [True, False]


def test_what_is_sent_to_a_gpu_is_pinned(monkeypatch):
    """A copy from other memory would be waited for."""
    tokens = torch.zeros(2, 3, dtype=torch.long)
    told = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda t: told.append("pinned") or t)
    monkeypatch.setattr(
        torch.Tensor, "to", lambda t, device, non_blocking: told.append((device.type, non_blocking)) or t
    )
    for kind in ("cuda", "mps"):
        send(tokens, torch.device(kind))
    assert told == ["pinned", ("cuda", True), ("mps", True)]


def test_all_targets_count_where_there_is_no_mask():
    tokens = torch.zeros(2, 3, dtype=torch.long)
    assert Batch(tokens, tokens).counted.all()
    mask = torch.tensor([[True, True, False], [False, False, False]])
    for batch in (Batch(tokens, tokens), Batch(tokens, tokens, mask)):
        assert int(batch.counted.sum()) == batch.n_targets
    assert Batch(tokens, tokens, mask).counted is mask


def test_states_of_consecutive_rows_join_to_the_whole():
    state = (torch.arange(10.0).view(5, 2), (torch.arange(5), None))
    cut = [types.map_state(lambda t, a=a, b=b: t[a:b], state) for a, b in ((0, 2), (2, 3), (3, 5))]
    whole = types.join(cut)
    assert torch.equal(whole[0], state[0])
    assert torch.equal(whole[1][0], state[1][0])
    assert whole[1][1] is None
    assert types.join([None, None]) is None


def test_rows_are_reset_on_whichever_device_their_state_is():
    (there,) = reset((torch.ones(2, 3, device="meta"),), torch.tensor([True, False]))
    assert (there.device.type, there.shape) == ("meta", (2, 3))
    (here,) = reset((torch.ones(2, 3),), torch.tensor([True, False]))
    assert here.tolist() == [[0, 0, 0], [1, 1, 1]]
    assert reset((torch.ones(2, 3),), torch.tensor([True, True])) is None


# Apple's GPU has no float64. None is here: a device without values stands in for it.


class Apple(TorchDispatchMode):
    """Fails as that does where a tensor on the device "meta" is to be float64; copies from there are zeros."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and args[0].is_meta and kwargs.get("device") == torch.device("cpu"):
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype", args[0].dtype))
        out = func(*args, **kwargs)
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "meta" and tensor.dtype == torch.float64:
                raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support it")
        return out


def lacks_float64(monkeypatch, kind: str) -> None:
    for module in (types, metrics):
        monkeypatch.setattr(module, "WITHOUT_FLOAT64", (kind,))


@pytest.fixture
def apple(monkeypatch):
    lacks_float64(monkeypatch, "meta")
    with Apple():
        yield torch.device("meta")


def test_the_stand_in_fails_as_the_device_does(apple):
    for use in (lambda: torch.zeros(2).to(apple).double(), lambda: torch.zeros(2, dtype=torch.float64).to(apple)):
        with pytest.raises(TypeError, match="Cannot convert a MPS Tensor"):
            use()


def test_likelihood_is_summed_where_the_device_has_no_float64(apple):
    # As validation's, a child of what is moved.
    parent = nn.ModuleDict({"sums": TokenNLL(), "model": nn.Linear(2, 2)}).to(apple)
    metric = parent["sums"]
    assert parent["model"].weight.device.type == "meta"
    for add in (metric.add, metric.update):
        add(
            torch.zeros(2, 3).to(apple),
            torch.zeros(2, 3, dtype=torch.bool).to(apple),
            torch.zeros(2, 3).long().to(apple),
        )
    assert metric.likelihood().tokens == 0
    metric.reset()
    assert {metric.nats.device.type, metric.tokens.device.type} == {"cpu"}
    assert metric.nats.dtype == torch.float64


def test_tokens_are_chosen_where_the_device_has_no_float64(apple):
    scores = torch.zeros(2, 5).to(apple)
    chosen = filters.sample(scores, torch.zeros(2, dtype=torch.float64), 0.8, top_k=None, top_p=0.9, min_p=0.1)
    assert (chosen.device.type, chosen.shape) == ("meta", (2,))
    assert beams._added(scores, [0.0, 1.0]).device.type == "cpu"


def test_models_stand_where_the_device_has_no_float64(apple):
    cos, _ = rotary_angles(torch.zeros(3, dtype=torch.long).to(apple), 4, 1e4)
    assert cos.device.type == "meta"
    model = NGramLM(vocab_size=5, order=3).to(apple)
    tokens = torch.zeros(2, 3, dtype=torch.long).to(apple)
    hidden, state = model(tokens)
    assert {hidden.device.type, state.device.type, model.head.nll(hidden, tokens).device.type} == {"meta"}
    assert model.head.unigram.device.type == "cpu"


def test_what_is_worked_out_elsewhere_is_the_same(monkeypatch):
    random = torch.Generator().manual_seed(0)
    scores, uniforms = torch.randn(50, 9, generator=random), torch.rand(50, generator=random, dtype=torch.float64)
    nll, mask, counts = scores.abs(), scores > 0, torch.randint(1, 9, (50, 3), generator=random)

    def found():
        metric = TokenNLL()
        metric.add(nll, mask, counts)
        ngram = NGramLM(9, 2).fit(np.arange(9), 0)
        log_probs = ngram.head.log_probs(ngram(torch.zeros(1, 3, dtype=torch.long))[0])
        chosen = [filters.sample(scores, uniforms, 0.8, k, None, None).tolist() for k in (None, 3)]
        return metric.likelihood(), chosen, log_probs.tolist(), beams._added(scores, range(50)).tolist()

    expected = found()
    lacks_float64(monkeypatch, "cpu")
    assert found() == expected
