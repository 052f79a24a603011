"""Scores of each token: in the text's order however they were made, and the same after a trip through a file."""

import sys

import numpy as np
import pytest
import torch
from tests.evaluation.texts import Text, V

from lmlab.config import compose
from lmlab.evaluation.evaluate import evaluate
from lmlab.evaluation.protocol import batches, resolve
from lmlab.evaluation.scores import COLUMNS, Keeper, read, write
from lmlab.instantiate import instantiate

ABOUT = {"split": "test", "text": "t", "protocol": {"name": "p"}}


@pytest.fixture
def model():
    torch.manual_seed(0)
    node = compose(["model=lstm", "model.d_model=12", "model.n_layers=1"]).model
    return instantiate(node)(vocab_size=V, token_counts=torch.ones(V).long())


def scores(model, policy="carried", text=None, batch_size=4, **how):
    text = text or Text()
    protocol = resolve(policy, "32", model, lanes=3 if policy == "carried" else None, **how)
    keeper = Keeper(text, protocol)
    likelihood = evaluate(model, batches(text, protocol, 0, batch_size), "32", keep=keeper)
    return keeper.scores(np.bincount(text.ids, minlength=V), ABOUT), likelihood


@pytest.mark.parametrize("policy", ["carried", "sliding", "documents"])
def test_they_add_up_to_the_likelihood_whatever_the_batch_size(model, policy):
    how = {"max_context": 6} if policy == "sliding" else {}
    one, likelihood = scores(model, policy, batch_size=1, **how)
    assert one.likelihood().as_dict() == pytest.approx(likelihood.as_dict())
    assert one.ids.tolist() == Text().ids.tolist()
    many, _ = scores(model, policy, batch_size=16, **how)
    np.testing.assert_allclose(one.nats, many.nats, rtol=1e-5)
    assert one.positions.tolist() == many.positions.tolist()


def test_positions_count_what_was_read_before():
    model = torch.nn.Module()
    model.recurrent, model.max_context = True, None
    text = Text(ids=range(7))
    text.doc_starts, text.__dict__["docs"] = np.array([0, 4]), [{"name": "a"}, {"name": "b"}]
    for policy, how, expected in (
        # The second lane begins with token 3, which is predicted from token 2.
        ("carried", {"lanes": 2}, [0, 1, 2, 1, 2, 3, 4]),
        ("documents", {}, [0, 1, 2, 3, 0, 1, 2]),
        # Windows 0-3, 3-6: the second reads tokens 2 to 5 and scores its last three.
        ("sliding", {"max_context": 4, "stride": 3}, [0, 1, 2, 3, 2, 3, 4]),
        ("sliding", {"max_context": 4, "stride": 4}, [0, 1, 2, 3, 1, 2, 3]),
    ):
        protocol = resolve(policy, "32", model, **how)
        keeper = Keeper(text, protocol)
        for batch in batches(text, protocol, 0, 2, chunk=2):
            keeper(batch, torch.zeros(batch.targets.shape))
        assert keeper.scores(np.ones(V, int), {}).positions.tolist() == expected


def test_a_model_that_gives_no_number_is_the_user_s_to_know_of(model):
    with torch.no_grad():
        model.head.weight[3] = torch.nan
    with pytest.raises(ValueError, match=r"no number for 101 of 101 tokens, token 1 the first.*another checkpoint"):
        scores(model)


def test_a_charge_is_kept_apart_and_counted(model):
    text = Text()
    text.charges = np.where(text.ids == 3, 2.5, 0.0).astype(np.float32)
    charged, likelihood = scores(model, text=text)
    plain, without = scores(model)
    assert charged.nats.tolist() == plain.nats.tolist()
    n = int((text.ids == 3).sum())
    assert n
    assert likelihood.nats == pytest.approx(without.nats + 2.5 * n)
    assert charged.likelihood().nats == pytest.approx(likelihood.nats)


def test_a_file_gives_them_back_and_is_small(model, tmp_path):
    kept, _ = scores(model)
    write(kept, tmp_path / "scores.parquet")
    found = read(tmp_path / "scores.parquet", {"split": "test"})
    for name in COLUMNS:
        assert getattr(found, name).tolist() == getattr(kept, name).tolist()
        assert getattr(found, name).dtype == getattr(kept, name).dtype
    assert found.about == kept.about
    assert [p.name for p in tmp_path.iterdir()] == ["scores.parquet"]


def test_scores_of_something_else_are_none(model, tmp_path):
    assert read(tmp_path / "scores.parquet") is None
    write(scores(model)[0], tmp_path / "scores.parquet")
    assert read(tmp_path / "scores.parquet", {"protocol": {"name": "another"}}) is None


def test_a_damaged_file_is_said_to_be(model, tmp_path):
    path = tmp_path / "scores.parquet"
    write(scores(model)[0], path)
    whole = path.read_bytes()
    for damage in (b"", whole[: len(whole) // 2], b"x" * 200):
        path.write_bytes(damage)
        with pytest.raises(ValueError, match=r"scores\.parquet is damaged"):
            read(path)


def test_without_pyarrow_the_extra_is_named(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"lmlab\[files\]"):
        write(scores(model)[0], tmp_path / "scores.parquet")
